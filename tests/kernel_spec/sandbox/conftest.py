"""Workspaces and users for the tests of the layers."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from kernel_spec.sandbox import Identity
from tests.kernel_spec.sandbox import children

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user takes root")


@pytest.fixture
def scratch_dir() -> Iterator[str]:
    with children.scratch() as directory:
        yield directory


@pytest.fixture
def owner() -> Identity | None:
    """The workspace's user: one of its own as root, else nobody but us."""
    return children.WORKSPACE_USER if os.geteuid() == 0 else None


@pytest.fixture
def workspace_dir(scratch_dir: str, owner: Identity | None) -> str:
    return children.make_workspace(scratch_dir, owner)
