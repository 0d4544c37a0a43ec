"""The tree of control groups of one installation: made at the launcher's start, swept, removed at its end.

The tree, ``transform-gateway.<stamp>``, is beneath the group in which this process runs, so that the limits of a
container or service still apply; each workspace has a group in it (`cgroup.Group`).
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from kernel_spec.protocol.limits import Limits
from kernel_spec.sandbox.accounting import cgroup_mounts
from kernel_spec.sandbox.accounting.cgroup import PAUSE_SECONDS, REMOVE_SECONDS, Group, removed
from kernel_spec.sandbox.accounting.cgroup_mounts import PREFIX, Hierarchy, write
from kernel_spec.sandbox.policy.errors import SandboxError
from kernel_spec.sandbox.policy.plan import CGROUP


class Tree:
    """The tree of one launcher: makes groups of workspaces, removes those of a predecessor."""

    def __init__(self, roots: dict[Path, Hierarchy], locks: list[int]) -> None:
        self.hierarchies = tuple(roots.values())
        self._roots = roots
        self._locks = locks

    def create(self, name: str, limits: Limits, *, extra_processes: int = 1) -> Group:
        """Make the group of a workspace with its limits.

        Parameters
        ----------
        name : str
            Name of the workspace's directory.
        limits : Limits
            Limits of memory and processes.
        extra_processes : int
            Processes in the group that are not the job's, such as the init of its pid namespace.

        Raises
        ------
        SandboxError
            The group could not be made or a limit not set; the group does not exist then.
        """
        directories: dict[Path, Hierarchy] = {}
        group = Group(directories)
        try:
            for root, hierarchy in self._roots.items():
                directory = root / name
                directory.mkdir(parents=True, exist_ok=True)
                directories[directory] = hierarchy
                if hierarchy.is_threaded:
                    write(directory / "cgroup.type", "threaded")
                _limit(directory, hierarchy, limits, extra_processes)
        except (OSError, SandboxError) as error:
            group.remove()
            if isinstance(error, SandboxError):
                raise
            raise SandboxError(CGROUP, f"cannot make group {name}: {error}") from error
        return group

    def adopt(self, pid: int) -> None:
        """Move a process that was started before the tree was opened to the group that its successors start in.

        It is no error if the process has ended.
        """
        for root, hierarchy in self._roots.items():
            if hierarchy.is_threaded:
                with suppress(SandboxError):
                    write(root / "cgroup.procs", pid)

    def sweep(self) -> int:
        """Kill and remove every group in the tree, as a killed launcher leaves them; return their number."""
        names = {entry.name for root in self._roots for entry in _subdirectories(root)}
        for name in names:
            Group({root / name: h for root, h in self._roots.items() if (root / name).is_dir()}).remove()
        return len(names)

    def close(self) -> None:
        """Sweep and remove the tree itself.

        Raises
        ------
        SandboxError
            A process of the tree did not end.
        """
        try:
            self.sweep()
            deadline = time.monotonic() + REMOVE_SECONDS
            for root, hierarchy in self._roots.items():
                if hierarchy.is_threaded:
                    write(hierarchy.directory / "cgroup.procs", 0)
                # A process that was killed before, such as a fork server, takes a while to free its memory.
                while not removed(root):
                    if time.monotonic() > deadline:
                        raise SandboxError(CGROUP, f"cannot remove {root}")
                    time.sleep(PAUSE_SECONDS)
        finally:
            # Only now: a sweeper that locked a tree which its owner then removed would sweep the next one of that name.
            while self._locks:
                os.close(self._locks.pop())


def open_tree(stamp: str) -> Tree | None:
    """Return a new tree that can limit memory and processes; None where no hierarchy can be written to.

    In a unified hierarchy without controllers the calling process moves into the root of the tree until that is closed,
    and its children start there.

    Parameters
    ----------
    stamp : str
        Names the installation (one state directory): a successor finds the groups of a killed launcher, and two
        gateways on one machine do not share a tree.

    Returns
    -------
    Tree or None
    """
    roots: dict[Path, Hierarchy] = {}
    locks: list[int] = []
    for hierarchy in cgroup_mounts.find_hierarchies():
        root = hierarchy.directory / f"{PREFIX}{stamp}"
        try:
            if (lock := _make_and_lock(root)) is not None:
                locks.append(lock)
            if hierarchy.version == 2 and hierarchy.controllers:
                write(root / "cgroup.subtree_control", " ".join(f"+{c}" for c in hierarchy.controllers))
        except (OSError, SandboxError):
            removed(root)
            continue
        roots[root] = hierarchy
    if not any("memory" in hierarchy.controllers for hierarchy in roots.values()):
        for root in roots:
            removed(root)
        for lock in locks:
            os.close(lock)
        return None
    # Last, because no process can remove a group that it is in.
    return Tree({root: replace(h, is_threaded=_joined(root, h)) for root, h in roots.items()}, locks)


def _make_and_lock(root: Path) -> int | None:
    """Make a tree and lock it; None if another process keeps it locked, which protects it as well.

    `sweep_abandoned` of another launcher can lock the new directory first, find it empty and remove it. A tree that is
    then used without a lock would lose the groups of its workspaces to the next sweep, before their first processes
    enter them.
    """
    deadline = time.monotonic() + REMOVE_SECONDS
    while True:
        with suppress(FileExistsError):  # exist_ok=True raises it too, if a sweep removes the directory just then
            root.mkdir()
        lock = _lock(root)
        if lock is not None or time.monotonic() > deadline:
            return lock
        time.sleep(PAUSE_SECONDS)


def _joined(root: Path, hierarchy: Hierarchy) -> bool:
    """Move this process into the root of threaded groups; return whether that is possible."""
    if hierarchy.version == 1 or hierarchy.controllers:
        return False
    try:
        write(root / "cgroup.procs", 0)
    except SandboxError:
        return False
    return True


def sweep_abandoned() -> int:
    """Remove the empty trees of killed launchers whose state directory no gateway uses any more.

    A launcher holds a lock on its tree, so a tree that can be locked has no launcher. One in which a process still runs
    is left to its successor.
    """
    count = 0
    for hierarchy in cgroup_mounts.find_hierarchies():
        for root in _subdirectories(hierarchy.directory):
            lock = _lock(root) if root.name.startswith(PREFIX) else None
            if lock is None:
                continue
            for group in _subdirectories(root):
                removed(group)
            count += removed(root)
            os.close(lock)
    return count


def _lock(root: Path) -> int | None:
    """Lock a tree and return the descriptor that holds the lock; None if it is locked or does not exist.

    The path is looked up again under the lock: the tree that was opened may have been removed since then, and another
    launcher may have made the one that has its name now.
    """
    try:
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), root.stat()):
            return descriptor
    os.close(descriptor)
    return None


def _limit(directory: Path, hierarchy: Hierarchy, limits: Limits, extra_processes: int) -> None:
    if "memory" in hierarchy.controllers and hierarchy.version == 2:
        write(directory / "memory.max", limits.memory_bytes)
        # The limit does not include swap; the file does not exist without swap accounting.
        with suppress(SandboxError):
            write(directory / "memory.swap.max", 0)
        with suppress(SandboxError):
            write(directory / "memory.oom.group", 1)
    elif "memory" in hierarchy.controllers:
        write(directory / "memory.limit_in_bytes", limits.memory_bytes)
        with suppress(SandboxError):
            write(directory / "memory.memsw.limit_in_bytes", limits.memory_bytes)
    if "pids" in hierarchy.controllers:
        write(directory / "pids.max", limits.processes + extra_processes)


def _subdirectories(directory: Path) -> Iterator[Path]:
    with suppress(OSError):
        yield from [entry for entry in directory.iterdir() if entry.is_dir()]
