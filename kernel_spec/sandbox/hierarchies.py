"""Where control groups can be made: the hierarchies that are mounted, and our own group in each."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kernel_spec.sandbox.errors import SandboxError
from kernel_spec.sandbox.plan import CGROUP

PREFIX: Final = "transform-gateway."
_CONTROLLERS: Final = ("memory", "pids")


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A mounted hierarchy and the directory in it beneath which groups may be made.

    Attributes
    ----------
    is_threaded
        Version 2: whether seats' groups are threaded ones beneath a root in which we are.
    """

    version: int
    controllers: frozenset[str]
    directory: Path
    is_threaded: bool = False

    @property
    def entrance(self) -> str:
        """Name of the file in a group by which a process of one thread enters soonest."""
        if self.version == 1:
            return "tasks"
        return "cgroup.threads" if self.is_threaded else "cgroup.procs"


def find_hierarchies(mounts: str | None = None, membership: str | None = None) -> tuple[Hierarchy, ...]:
    """Return the hierarchies that are mounted and of use, memory first.

    Parameters
    ----------
    mounts, membership
        Texts of ``/proc/self/mountinfo`` and ``/proc/self/cgroup``; read when absent.
    """
    if mounts is None:
        mounts = Path("/proc/self/mountinfo").read_text()
    if membership is None:
        membership = Path("/proc/self/cgroup").read_text()
    own = _own_groups(membership)
    found = [h for line in mounts.splitlines() if (h := _hierarchy(line, own)) is not None]
    return tuple(sorted(found, key=lambda h: ("memory" not in h.controllers, h.version)))


def _own_groups(membership: str) -> dict[str, str]:
    """Map each controller (version 2: the empty name) to the path of our group."""
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
            # We are in the root of a tree of ours already, see `open_tree`, or in a leaf, see `move_into_leaf`.
            directory = directory.parent
        return Hierarchy(2, _delegated(directory), directory)
    controllers = frozenset(options.rpartition(" ")[2].split(",")) & set(_CONTROLLERS)
    if not controllers:
        return None
    return Hierarchy(1, controllers, _visible(root, mountpoint, own.get(min(controllers), "/")))


def _visible(root: str, mountpoint: str, path: str) -> Path:
    """Return where our group is in the mount: a container may see a part of the hierarchy only."""
    relative = path[len(root) :] if root != "/" and path.startswith(root) else path
    directory = Path(mountpoint + "/" + relative.strip("/"))
    return directory if directory.is_dir() else Path(mountpoint)


def _delegated(directory: Path) -> frozenset[str]:
    """Return the controllers that a child of this version 2 group gets, enabling them if that is possible.

    A group with processes of its own cannot hand out controllers (the "no internal processes" rule). A service started
    with ``Delegate=yes`` or a container with its own tree has to put itself into a leaf first, see the manual.
    """
    try:
        available = set((directory / "cgroup.controllers").read_text().split()) & set(_CONTROLLERS)
        enabled = set((directory / "cgroup.subtree_control").read_text().split())
        for controller in available - enabled:
            with suppress(SandboxError):
                write(directory / "cgroup.subtree_control", f"+{controller}")
        return frozenset(available & set((directory / "cgroup.subtree_control").read_text().split()))
    except OSError:
        return frozenset()


def move_into_leaf(hierarchy: Hierarchy, name: str = f"{PREFIX}self") -> frozenset[str]:
    """Move all processes of our version 2 group into a leaf so that it may hand out controllers; return those.

    For a container or service whose group is ours alone; the caller decides that it is.

    Raises
    ------
    SandboxError
        A process could not be moved.
    """
    leaf = hierarchy.directory / name
    try:
        leaf.mkdir(exist_ok=True)
        for pid in (hierarchy.directory / "cgroup.procs").read_text().split():
            write(leaf / "cgroup.procs", pid)
    except OSError as error:
        raise SandboxError(CGROUP, f"cannot move into {leaf}: {error}") from error
    return _delegated(hierarchy.directory)


def write(path: Path, value: int | str) -> None:
    """Write to a file of a control group.

    Raises
    ------
    SandboxError
        It is not there or the kernel refused.
    """
    # O_WRONLY without O_CREAT: a controller that is not there must not become a file of ours.
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, str(value).encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise SandboxError(CGROUP, f"cannot write {value} to {path}: {error.strerror}") from error
