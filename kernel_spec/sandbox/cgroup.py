"""Memory and processes of a whole seat by control groups: version 2 where it is delegated, version 1, or both mixed.

One tree of ours, ``transform-gateway.<stamp>``, lies beneath the group in which this process runs, so that
the limits of a container or service go on holding; each seat has a group in it. On a hybrid machine the controllers
are in version 1 hierarchies, while the unified one has none but still counts CPU time and stops a group at once.

A process that moves with all its threads waits until every processor has passed a quiescent state, 5 to 15 ms on an
idle machine (measured; the kernel keeps exec and exit of threads out, cgroup_attach_lock). A thread that moves itself
alone does not: 0.1 ms. So the first process of a seat, which has one thread, enters as a thread, by ``tasks`` in
version 1 and by ``cgroup.threads`` in a unified hierarchy without controllers. The latter asks for threaded groups
beneath a root that the process comes from (cgroups(7), "Thread mode"), so whoever opens a tree lives in its root.

Everything else is done by the launcher. Nothing here is needed in the kernel process.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from kernel_spec.limits import Limits
from kernel_spec.sandbox import hierarchies, procfs
from kernel_spec.sandbox.errors import SandboxError
from kernel_spec.sandbox.hierarchies import PREFIX, Hierarchy, write
from kernel_spec.sandbox.plan import CGROUP

_REMOVE_SECONDS: Final = 2.0
_PAUSE_SECONDS: Final = 0.002


@dataclass(frozen=True, slots=True)
class GroupUsage:
    """What a group has used: peaks and counts since it was made, None where the kernel does not tell."""

    memory_bytes: int | None
    peak_memory_bytes: int | None
    oom_kills: int
    processes: int
    cpu_seconds: float | None


class Group:
    """The groups of one seat, one in each hierarchy in use."""

    def __init__(self, directories: dict[Path, Hierarchy]) -> None:
        self._directories = directories

    @property
    def entrances(self) -> tuple[str, ...]:
        """Paths that a process writes ``0`` to in order to move itself, and so its later children, into the group."""
        return tuple(str(directory / hierarchy.entrance) for directory, hierarchy in self._directories.items())

    def attach(self, pid: int) -> None:
        """Move a process; its children follow, what it has allocated stays accounted where it was.

        Raises
        ------
        SandboxError
            The process is gone or the kernel refused.
        """
        for directory in self._directories:
            write(directory / "cgroup.procs", pid)

    def pids(self) -> frozenset[int]:
        """Return the processes in the group, as the launcher sees them."""
        found: set[int] = set()
        for directory in self._directories:
            with suppress(OSError):
                found.update(map(int, (directory / "cgroup.procs").read_text().split()))
        return frozenset(found)

    def threads(self) -> frozenset[int]:
        """Return the threads in the group, those that are exiting among them until they are taken apart."""
        for directory, hierarchy in self._directories.items():
            with suppress(OSError):
                name = "cgroup.threads" if hierarchy.version == 2 else "tasks"
                return frozenset(map(int, (directory / name).read_text().split()))
        return frozenset()

    def is_halted(self) -> bool:
        """Return whether nothing in the group can run any more, though it may not have been taken apart yet.

        Two looks. Whatever runs at the second is either new, and then not in the first, or was there, and then not
        exiting: so not even a chain of processes that fork and end at once can hide between the two.
        """
        first = self.threads()
        if not all(map(procfs.is_exiting, first)):
            return False
        return self.threads() <= first

    def freeze(self) -> bool:
        """Ask every thread of the group to stop where it is, until it is killed; return whether a group here can.

        Version 2 only (cgroup.freeze): the kernel of version 1 may let a stopped thread be killed only once it is let
        go on.
        """
        for directory, hierarchy in self._directories.items():
            if hierarchy.version == 2:
                with suppress(SandboxError):
                    write(directory / "cgroup.freeze", 1)
                    return True
        return False

    def thaw(self) -> None:
        """Let whatever is in the group run, and whatever enters it.

        Raises
        ------
        SandboxError
            The group is gone.
        """
        for directory, hierarchy in self._directories.items():
            if hierarchy.version == 2:
                write(directory / "cgroup.freeze", 0)

    def is_frozen(self) -> bool:
        """Return whether every thread of the group has stopped, new ones included (cgroup.events)."""
        for directory, hierarchy in self._directories.items():
            if hierarchy.version == 2:
                with suppress(OSError):
                    return "frozen 1" in (directory / "cgroup.events").read_text()
        return False

    def usage(self) -> GroupUsage:
        """Read the counters."""
        memory = self._first("memory.current", "memory.usage_in_bytes")
        peak = self._first("memory.peak", "memory.max_usage_in_bytes")
        return GroupUsage(
            memory_bytes=memory,
            peak_memory_bytes=peak,
            oom_kills=self._oom_kills(),
            processes=len(self.pids()),
            cpu_seconds=self._cpu_seconds(),
        )

    def kill(self) -> None:
        """Send SIGKILL to every process of the group: at once in version 2, else one by one.

        Threaded groups cannot be killed at once (cgroup.kill). They are frozen, so that what a process has forked
        before it stopped does not run on and is met by the next call.
        """
        for directory, hierarchy in self._directories.items():
            if hierarchy.version == 2:
                with suppress(SandboxError):
                    write(directory / ("cgroup.freeze" if hierarchy.is_threaded else "cgroup.kill"), 1)
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def remove(self, *, deadline_seconds: float = _REMOVE_SECONDS) -> None:
        """Kill what is left and remove the groups.

        Raises
        ------
        SandboxError
            A group still has processes at the deadline.
        """
        deadline = time.monotonic() + deadline_seconds
        for directory in self._directories:
            while not _removed(directory):
                if time.monotonic() > deadline:
                    raise SandboxError(CGROUP, f"{directory} is still busy after {deadline_seconds:g} s")
                self.kill()
                time.sleep(_PAUSE_SECONDS)

    def _first(self, *names: str) -> int | None:
        for directory in self._directories:
            for name in names:
                with suppress(OSError, ValueError):
                    return int((directory / name).read_text())
        return None

    def _oom_kills(self) -> int:
        for directory in self._directories:
            for name in ("memory.events", "memory.oom_control"):
                with suppress(OSError, ValueError):
                    lines = (directory / name).read_text().splitlines()
                    return int(dict(line.split() for line in lines)["oom_kill"])
        return 0

    def _cpu_seconds(self) -> float | None:
        for directory in self._directories:
            with suppress(OSError, ValueError, KeyError):
                lines = (directory / "cpu.stat").read_text().splitlines()
                return int(dict(line.split() for line in lines)["usage_usec"]) / 1e6
        return None


class Tree:
    """Our tree: makes the groups of seats, sweeps what a predecessor left, goes away with the launcher."""

    def __init__(self, stamp: str, hierarchies: tuple[Hierarchy, ...]) -> None:
        self.hierarchies = hierarchies
        self._roots = {h.directory / f"{PREFIX}{stamp}": h for h in hierarchies}
        self._locks = [_lock(root) for root in self._roots]

    def create(self, name: str, limits: Limits, *, extra_processes: int = 1) -> Group:
        """Make the group of a seat with its limits.

        Parameters
        ----------
        name
            A directory name, the seat's.
        limits
            Memory and processes are taken from here.
        extra_processes
            Processes in the group that are ours, such as the init of its pid namespace.

        Raises
        ------
        SandboxError
            The group could not be made or a limit not set; nothing of it is left then.
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
        """Move a process that was started before the tree was opened to where it would have been born after.

        One that has ended meanwhile is no error: its successor is born there.
        """
        for root, hierarchy in self._roots.items():
            if hierarchy.is_threaded:
                with suppress(SandboxError):
                    write(root / "cgroup.procs", pid)

    def sweep(self) -> int:
        """Kill and remove every group in the tree, as after a launcher that was killed; return how many."""
        names = {entry.name for root in self._roots for entry in _subdirectories(root)}
        for name in names:
            Group({root / name: h for root, h in self._roots.items() if (root / name).is_dir()}).remove()
        return len(names)

    def close(self) -> None:
        """Sweep and remove the tree itself.

        Raises
        ------
        SandboxError
            Something of it still lives.
        """
        self.sweep()
        while self._locks:
            if (lock := self._locks.pop()) is not None:
                os.close(lock)
        deadline = time.monotonic() + _REMOVE_SECONDS
        for root, hierarchy in self._roots.items():
            if hierarchy.is_threaded:
                write(hierarchy.directory / "cgroup.procs", 0)
            # What was killed before, a fork server above all, takes its time to give its memory back.
            while not _removed(root):
                if time.monotonic() > deadline:
                    raise SandboxError(CGROUP, f"cannot remove {root}")
                time.sleep(_PAUSE_SECONDS)


def open_tree(stamp: str) -> Tree | None:
    """Return a tree that can bound memory and processes, made and tried; None where no hierarchy lets us.

    In a unified hierarchy without controllers the calling process moves into the root of the tree until that is closed,
    and what it starts is born there.

    `stamp` names the installation (one state directory), so that a successor finds the leftovers and two gateways
    on one machine do not meet.
    """
    usable: list[Hierarchy] = []
    for hierarchy in hierarchies.find_hierarchies():
        root = hierarchy.directory / f"{PREFIX}{stamp}"
        try:
            root.mkdir(exist_ok=True)
            if hierarchy.version == 2 and hierarchy.controllers:
                write(root / "cgroup.subtree_control", " ".join(f"+{c}" for c in hierarchy.controllers))
        except (OSError, SandboxError):
            _removed(root)
            continue
        usable.append(hierarchy)
    if not any("memory" in hierarchy.controllers for hierarchy in usable):
        for hierarchy in usable:
            _removed(hierarchy.directory / f"{PREFIX}{stamp}")
        return None
    # Only now: nobody can remove a group that it is in.
    return Tree(stamp, tuple(replace(h, is_threaded=_joined(h.directory / f"{PREFIX}{stamp}", h)) for h in usable))


def _joined(root: Path, hierarchy: Hierarchy) -> bool:
    """Move this process into a root that shall have threaded groups; return whether it may."""
    if hierarchy.version == 1 or hierarchy.controllers:
        return False
    try:
        write(root / "cgroup.procs", 0)
    except SandboxError:
        return False
    return True


def sweep_abandoned() -> int:
    """Remove the empty trees of launchers that were killed and whose state directory no gateway came back to.

    A launcher holds a lock on its tree as long as it lives, so one that can be locked is nobody's; one in which
    something still runs stays for its successor to end.
    """
    count = 0
    for hierarchy in hierarchies.find_hierarchies():
        for root in _subdirectories(hierarchy.directory):
            lock = _lock(root) if root.name.startswith(PREFIX) else None
            if lock is None:
                continue
            for group in _subdirectories(root):
                _removed(group)
            count += _removed(root)
            os.close(lock)
    return count


def _lock(root: Path) -> int | None:
    """Lock a tree and return the descriptor that holds it; None where another launcher does, or there is no tree."""
    try:
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _limit(directory: Path, hierarchy: Hierarchy, limits: Limits, extra_processes: int) -> None:
    if "memory" in hierarchy.controllers and hierarchy.version == 2:
        write(directory / "memory.max", limits.memory_bytes)
        # Swap is memory that the limit would not see; the file is absent where there is no swap accounting.
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


def _removed(directory: Path) -> bool:
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
