"""The mounted hierarchies of control groups, and the group of this process in each."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kernel_spec.sandbox.policy.errors import SandboxError
from kernel_spec.sandbox.policy.plan import CGROUP

PREFIX: Final = "transform-gateway."
_CONTROLLERS: Final = ("memory", "pids")


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A mounted hierarchy and the directory in it that new groups are made in.

    Attributes
    ----------
    is_threaded : bool
        Version 2: whether workspaces' groups are threaded groups beneath a root with this process in it.
    """

    version: int
    controllers: frozenset[str]
    directory: Path
    is_threaded: bool = False

    @property
    def entrance(self) -> str:
        """Name of the file in a group by which a process of one thread enters fastest."""
        if self.version == 1:
            return "tasks"
        return "cgroup.threads" if self.is_threaded else "cgroup.procs"


def find_hierarchies(mounts: str | None = None, membership: str | None = None) -> tuple[Hierarchy, ...]:
    """Return the usable hierarchies, that of the memory controller first.

    Parameters
    ----------
    mounts, membership : str or None
        Texts of ``/proc/self/mountinfo`` and ``/proc/self/cgroup``; default is to read these files.
    """
    if mounts is None:
        mounts = Path("/proc/self/mountinfo").read_text()
    if membership is None:
        membership = Path("/proc/self/cgroup").read_text()
    own = _own_groups(membership)
    found = [h for line in mounts.splitlines() if (h := _hierarchy(line, own)) is not None]
    return tuple(sorted(found, key=lambda h: ("memory" not in h.controllers, h.version)))


def _own_groups(membership: str) -> dict[str, str]:
    """Map each controller (version 2: the empty name) to the path of this process's group."""
    own: dict[str, str] = {}
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        own.update(dict.fromkeys(controllers.split(","), path))
    return own


def _hierarchy(mount: str, own: dict[str, str]) -> Hierarchy | None:
    # mountinfo: id parent major:minor root mountpoint options ... - type source superoptions
    before, _, after = mount.partition(" - ")
    kind, _, options = after.partition(" ")
    fields = before.split()
    if len(fields) < 5 or kind not in ("cgroup", "cgroup2"):
        return None
    root, mountpoint = fields[3], fields[4]
    if kind == "cgroup2":
        directory = _visible(root, mountpoint, own.get("", "/"))
        if directory.name.startswith(PREFIX):
            # The root of a tree, see `cgroup_tree.open_tree`, or the leaf of `free_own_group`.
            directory = directory.parent
        return Hierarchy(2, _delegated(directory), directory)
    controllers = frozenset(options.rpartition(" ")[2].split(",")) & set(_CONTROLLERS)
    if not controllers:
        return None
    return Hierarchy(1, controllers, _visible(root, mountpoint, own.get(min(controllers), "/")))


def _visible(root: str, mountpoint: str, path: str) -> Path:
    """Return the directory of this process's group; a container may see only a part of the hierarchy."""
    relative = path[len(root) :] if root != "/" and path.startswith(root) else path
    directory = Path(mountpoint + "/" + relative.strip("/"))
    return directory if directory.is_dir() else Path(mountpoint)


def _delegated(directory: Path) -> frozenset[str]:
    """Return the controllers that a child of this version 2 group gets, enabling them if that is possible.

    A group with processes of its own cannot hand out controllers (cgroups(7), the "no internal processes" rule).
    """
    try:
        available = _available(directory)
        enabled = set((directory / "cgroup.subtree_control").read_text().split())
        for controller in available - enabled:
            with suppress(SandboxError):
                write(directory / "cgroup.subtree_control", f"+{controller}")
        return frozenset(available & set((directory / "cgroup.subtree_control").read_text().split()))
    except OSError:
        return frozenset()


def free_own_group(mounts: str | None = None, membership: str | None = None) -> None:
    """Move the processes of this process's version 2 group into a leaf, so that the group can hand out controllers.

    Happens only where all of them belong to this service or container: systemd marks the group of a service with
    ``Delegate=yes`` by an extended attribute, and a container has the root of a cgroup namespace. Without the move
    neither could have a control group for each job.

    Parameters
    ----------
    mounts, membership : str or None
        As for `find_hierarchies`.

    Raises
    ------
    SandboxError
        A process could not be moved.
    """
    if membership is None:
        membership = Path("/proc/self/cgroup").read_text()
    is_root = _own_groups(membership).get("") == "/"
    for hierarchy in find_hierarchies(mounts, membership):
        group = hierarchy.directory
        if hierarchy.version == 1 or hierarchy.controllers or not _available(group):
            continue
        # The root of all groups has no type; it may have processes and hand out controllers.
        if _is_marked_as_delegated(group) or (is_root and (group / "cgroup.type").exists()):
            _move_into_leaf(group)


def _available(group: Path) -> frozenset[str]:
    with suppress(OSError):
        return frozenset((group / "cgroup.controllers").read_text().split()) & set(_CONTROLLERS)
    return frozenset()


def _is_marked_as_delegated(group: Path) -> bool:
    for name in ("trusted.delegate", "user.delegate"):
        with suppress(OSError):
            return os.getxattr(group, name) == b"1"
    return False


def _move_into_leaf(group: Path) -> None:
    leaf = group / f"{PREFIX}self"
    try:
        leaf.mkdir(exist_ok=True)
        for pid in (group / "cgroup.procs").read_text().split():
            write(leaf / "cgroup.procs", pid)
    except OSError as error:
        raise SandboxError(CGROUP, f"cannot move into {leaf}: {error}") from error


def write(path: Path, value: int | str) -> None:
    """Write to a file of a control group.

    Raises
    ------
    SandboxError
        The file does not exist, or Linux refused.
    """
    # O_WRONLY without O_CREAT: where a controller is missing, no ordinary file must be made.
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, str(value).encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise SandboxError(CGROUP, f"cannot write {value} to {path}: {error.strerror}") from error
