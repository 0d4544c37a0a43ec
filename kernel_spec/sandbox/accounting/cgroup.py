"""The control groups of one workspace: limits, counters, freezing and killing all of its processes.

A workspace has one group in each hierarchy in use: in version 2 where it is delegated, in version 1, or in both. On a
hybrid machine the controllers are in version 1 hierarchies, while the unified one has none but still counts CPU time
and stops a group at once.

A process that moves with all its threads waits until every processor has passed a quiescent state, 5 to 15 ms on an
idle machine (measured; Linux keeps exec and exit of threads out, cgroup_attach_lock). A thread that moves itself
alone does not: 0.1 ms. So the first process of a workspace, which has one thread, enters as a thread, by ``tasks`` in
version 1 and by ``cgroup.threads`` in a unified hierarchy without controllers. The latter requires threaded groups
beneath a root from which the process comes (cgroups(7), "Thread mode"), so the process that opens a tree is in its
root.

Everything else is done by the launcher. Nothing here is needed in the kernel process.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from kernel_spec.linux import procfs
from kernel_spec.sandbox.accounting.cgroup_mounts import Hierarchy, read, write
from kernel_spec.sandbox.policy.errors import SandboxError
from kernel_spec.sandbox.policy.plan import CGROUP

#: Time for the killed processes of a group to leave it.
REMOVE_SECONDS: Final = 2.0
PAUSE_SECONDS: Final = 0.002


class Group:
    """The groups of one workspace, one in each hierarchy in use."""

    def __init__(self, directories: dict[Path, Hierarchy]) -> None:
        self._directories = directories

    @property
    def entrances(self) -> tuple[str, ...]:
        """Files to which a process writes ``0`` to move itself, and so its later children, into the group."""
        return tuple(str(directory / hierarchy.entrance) for directory, hierarchy in self._directories.items())

    def attach(self, pid: int) -> None:
        """Move a process, and so its later children; its memory stays accounted to the group before.

        Raises
        ------
        SandboxError
            The process has ended, or Linux refused.
        """
        for directory in self._directories:
            write(directory / "cgroup.procs", pid)

    def pids(self) -> frozenset[int]:
        """Return the processes in the group, as the launcher sees them."""
        found: set[int] = set()
        for directory in self._directories:
            with suppress(OSError):
                found.update(map(int, read(directory / "cgroup.procs").split()))
        return frozenset(found)

    def threads(self) -> frozenset[int]:
        """Return the threads in the group, including exiting ones that Linux has not removed yet."""
        for directory, hierarchy in self._directories.items():
            with suppress(OSError):
                name = "cgroup.threads" if hierarchy.version == 2 else "tasks"
                return frozenset(map(int, read(directory / name).split()))
        return frozenset()

    def is_stopped(self) -> bool:
        """Return whether nothing in the group can run any more, though Linux may not have removed it yet.

        The threads are read twice. One that runs at the second reading either is new, and so missing in the first, or
        was there and not exiting: even a chain of processes that fork and end at once cannot hide between the two.
        """
        first = self.threads()
        if not all(map(procfs.is_exiting, first)):
            return False
        return self.threads() <= first

    def freeze(self) -> bool:
        """Ask every thread of the group to stop until it is killed; return whether this is possible.

        Version 2 only (cgroup.freeze): in version 1 a frozen thread may not be killed before it is thawed.
        """
        for directory, hierarchy in self._directories.items():
            if hierarchy.version == 2:
                with suppress(SandboxError):
                    write(directory / "cgroup.freeze", 1)
                    return True
        return False

    def is_frozen(self) -> bool:
        """Return whether every thread of the group has stopped, new ones included (cgroup.events)."""
        for directory, hierarchy in self._directories.items():
            if hierarchy.version == 2:
                with suppress(OSError):
                    return "frozen 1" in read(directory / "cgroup.events")
        return False

    def oom_kills(self) -> int:
        """Return how many processes the memory limit has killed since the group was made."""
        for directory, hierarchy in self._directories.items():
            if "memory" in hierarchy.controllers:
                name = "memory.events" if hierarchy.version == 2 else "memory.oom_control"
                return _read_entries(directory / name).get("oom_kill", 0)
        return 0

    def cpu_seconds(self) -> float | None:
        """Return the processor time used since the group was made; None where only version 1 is mounted."""
        for directory, hierarchy in self._directories.items():
            if hierarchy.version == 2:
                return _read_entries(directory / "cpu.stat").get("usage_usec", 0) / 1e6
        return None

    def kill(self) -> None:
        """Send SIGKILL to every process of the group: at once in version 2, else one by one.

        Threaded groups cannot be killed at once (cgroup.kill). They are frozen, so that a process that was forked
        meanwhile does not run, and the next call kills it.
        """
        for directory, hierarchy in self._directories.items():
            if hierarchy.version == 2:
                with suppress(SandboxError):
                    write(directory / ("cgroup.freeze" if hierarchy.is_threaded else "cgroup.kill"), 1)
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def remove(self, *, deadline_seconds: float = REMOVE_SECONDS) -> None:
        """Kill the remaining processes and remove the groups.

        Raises
        ------
        SandboxError
            A group still has processes at the deadline.
        """
        deadline = time.monotonic() + deadline_seconds
        for directory in self._directories:
            while not removed(directory):
                if time.monotonic() > deadline:
                    raise SandboxError(CGROUP, f"{directory} is still busy after {deadline_seconds:g} s")
                self.kill()
                time.sleep(PAUSE_SECONDS)


def removed(directory: Path) -> bool:
    """Remove an empty group; return whether it is gone."""
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _read_entries(path: Path) -> dict[str, int]:
    """Return the counters of a flat keyed file, cgroups(7); none if the group is gone."""
    try:
        lines = read(path).splitlines()
    except OSError:
        return {}
    return {name: int(value) for name, value in map(str.split, lines)}
