from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kernel_spec.sandbox.accounting import cgroup_mounts
from kernel_spec.sandbox.accounting.cgroup import Group
from kernel_spec.sandbox.accounting.cgroup_mounts import Hierarchy
from tests.kernel_spec.sandbox.children import fork


@pytest.fixture
def service(unified: Hierarchy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hierarchy]:
    """A real group with a process, and a controller that this host leaves to version 2 in place of that of memory."""
    above = unified.directory.parent, unified.directory
    free = set((above[0] / "cgroup.controllers").read_text().split()) - {"memory", "pids", "cpu", "cpuset", "io"}
    if not free:
        pytest.skip("version 2 has no controller here that could be lent to a test")
    controller = free.pop()
    monkeypatch.setattr(cgroup_mounts, "_CONTROLLERS", (controller,))
    was_on = controller in (above[0] / "cgroup.subtree_control").read_text().split()
    for group in above:
        (group / "cgroup.subtree_control").write_text(f"+{controller}")
    directory = unified.directory / "x.service"
    directory.mkdir()
    pid = fork()
    while pid == 0:
        signal.pause()
    Group({directory: unified}).attach(pid)
    yield replace(unified, directory=directory, controllers=frozenset({controller}))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    for group in (directory / f"{cgroup_mounts.PREFIX}self", directory):
        if group.exists():
            Group({group: unified}).remove()
    for group in reversed(above[was_on:]):
        (group / "cgroup.subtree_control").write_text(f"-{controller}")


def mount_of(hierarchy: Hierarchy, root: str) -> str:
    return f"27 20 0:25 {root} {hierarchy.directory} rw - cgroup2 cgroup2 rw\n"


def test_delegated_service_can_have_a_group_for_each_job(service: Hierarchy) -> None:
    """As under systemd: a group with processes hands out no controllers, so they are moved into a leaf."""
    mounts, membership = mount_of(service, "/x.service"), "0::/x.service\n"
    before = Group({service.directory: service}).pids()
    cgroup_mounts.free_own_group(mounts, membership)
    assert Group({service.directory: service}).pids() == before, "another program's processes may be in it"
    os.setxattr(service.directory, "trusted.delegate", b"1")
    cgroup_mounts.free_own_group(mounts, membership)
    leaf = service.directory / f"{cgroup_mounts.PREFIX}self"
    assert Group({leaf: service}).pids() == before
    (found,) = cgroup_mounts.find_hierarchies(mounts, f"0::/x.service/{leaf.name}\n")
    assert found == service


def test_container_with_a_tree_of_its_own_can_have_a_group_for_each_job(service: Hierarchy) -> None:
    before = Group({service.directory: service}).pids()
    cgroup_mounts.free_own_group(mount_of(service, "/"), "0::/\n")
    assert Group({service.directory / f"{cgroup_mounts.PREFIX}self": service}).pids() == before


HYBRID = """\
25 20 0:22 / /cg/memory rw,relatime - cgroup cgroup rw,memory
26 20 0:23 / /cg/cpu rw,relatime - cgroup cgroup rw,cpu
27 20 0:24 / /cg/unified rw,relatime - cgroup2 cgroup2 rw
28 20 0:25 / /proc rw - proc proc rw
"""


def test_hierarchies_of_use_are_read_from_the_mounts() -> None:
    found = cgroup_mounts.find_hierarchies(HYBRID, "4:memory:/a/b\n1:cpu:/\n0::/\n")
    assert [(h.version, sorted(h.controllers)) for h in found] == [(1, ["memory"]), (2, [])]


def test_own_group_is_found_in_a_container_that_sees_a_part(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    mounts = f"25 20 0:22 /docker/abc {tmp_path} ro - cgroup cgroup rw,memory\n"
    (found,) = cgroup_mounts.find_hierarchies(mounts, "4:memory:/docker/abc/sub\n")
    assert found.directory == tmp_path / "sub"
    (found,) = cgroup_mounts.find_hierarchies(mounts, "4:memory:/elsewhere\n")
    assert found.directory == tmp_path
