"""A real group of version 2 for the tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

from kernel_spec.sandbox.accounting import cgroup_mounts
from kernel_spec.sandbox.accounting.cgroup import Group
from kernel_spec.sandbox.accounting.cgroup_mounts import Hierarchy


@pytest.fixture
def unified() -> Iterator[Hierarchy]:
    """A group of our own in a real version 2 hierarchy, most often one without memory and processes."""
    found = [h for h in cgroup_mounts.find_hierarchies() if h.version == 2]
    if os.geteuid() != 0 or not found:
        pytest.skip("no version 2 hierarchy is mounted that could be written to")
    (hierarchy,) = found
    place = hierarchy.directory / f"{cgroup_mounts.PREFIX}test-v2-{os.getpid()}"
    try:
        place.mkdir()
    except OSError:
        pytest.skip("the version 2 hierarchy cannot be written to")
    try:
        yield replace(hierarchy, directory=place)
    finally:
        Group({place: hierarchy}).kill()
        for leaf in place.iterdir():
            if leaf.is_dir():
                Group({leaf: hierarchy}).remove()
        Group({place: hierarchy}).remove()
