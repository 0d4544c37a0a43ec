"""Which processes belong to a seat, what they use together, and how to end them all."""

from __future__ import annotations

import signal
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass

from kernel_spec.limits import Limits
from kernel_spec.messages import SeatInfo
from kernel_spec.sandbox import Identity, SandboxError, cgroup, disk_quota, memory_watch, processes, procfs
from kernel_spec.sandbox.plan import MEMORY_WATCH

# How long the launcher looks at one seat only, before it serves the others and comes back: time for one round of
# stopping and one of killing.
_BLOCKING_SECONDS = 0.03
_LONGEST_LOOK_ENTRIES = 20_000

# The kernel and, where a middle process starts them, the init of its pid namespace and the broker of its sockets: not
# the job's to count. Where there are fewer it is RLIMIT_NPROC that keeps the job from having more.
_OWN_PROCESSES = 3


@dataclass(frozen=True, slots=True)
class SeatUsage:
    """What all processes of a seat use now."""

    processes: int
    memory_bytes: int
    cpu_seconds: float


class Containment:
    """The processes of one seat: its control group if it has one, else all of its user, else all with its mark.

    Parameters
    ----------
    hidden_bytes
        Tells how much memory lies in /dev/shm that belongs to some seat, but to which one cannot be seen.
    """

    def __init__(self, seat: SeatInfo, *, own_uid: bool, hidden_bytes: Callable[[], int] = lambda: 0) -> None:
        self._seat = seat
        self._hidden_bytes = hidden_bytes
        self._identity = Identity(seat.uid, seat.gid) if own_uid else None
        self._group: cgroup.Group | None = None

    def enclose(self, tree: cgroup.Tree | None, limits: Limits) -> tuple[str, ...]:
        """Make a control group for the seat, if there are control groups, and return the files that let a process in.

        The first process goes in by itself. Moving it from here would stop the launcher for 10 ms each time
        (measured, version 1: the kernel waits for a grace period), and with it every kill that is under way.

        Raises
        ------
        SandboxError
            The group could not be made; the kernel must not start.
        """
        if tree is None:
            return ()
        if self._group is None:
            self._group = tree.create(self._seat.name, limits, extra_processes=_OWN_PROCESSES)
        else:
            # Frozen when the kernel before was halted or killed.
            self._group.thaw()
        return self._group.entrances

    def strike(self) -> None:
        """Send SIGKILL to all that is in the control group, at once and without a look at /proc."""
        if self._group is not None:
            self._group.kill()

    def freeze(self) -> bool:
        """Stop all that is in the control group, and return whether there is one that can; see `is_frozen`."""
        return self._group is not None and self._group.freeze()

    def is_frozen(self) -> bool:
        """Return whether all of it has stopped."""
        return self._group is not None and self._group.is_frozen()

    def is_halted(self) -> bool:
        """Return whether nothing of the seat can run any more; False also where only the end of all can tell."""
        return self._group is not None and self._group.is_halted()

    def living(self) -> list[int]:
        """Return the processes of the seat that are not dead; zombies are."""
        return [status.pid for status in self._living()]

    def end(self) -> None:
        """Kill what lives, until nothing does or for a moment; the caller reaps, looks again and comes back.

        Nothing is reaped here: the status of a kernel and what it used are collected in one place. And the init of a
        pid namespace ends only when the kernel has been reaped, so waiting here for all to be gone would be in vain.
        """
        with suppress(SandboxError):
            processes.end_all(self._living, deadline_seconds=_BLOCKING_SECONDS)

    def usage(self, limits: Limits, template_bytes: int) -> SeatUsage:
        """Measure memory and processor time of all processes of the seat."""
        uid = self._identity.uid if self._identity is not None else None
        found = memory_watch.measure(
            self._statuses(),
            limit_bytes=limits.memory_bytes,
            template_bytes=template_bytes,
            uid=uid,
            hidden_bytes=self._hidden_bytes(),
        )
        cpu_seconds = found.cpu_seconds
        if self._group is not None:
            grouped = self._group.usage()
            cpu_seconds = max(cpu_seconds, grouped.cpu_seconds or 0.0)
        return SeatUsage(found.processes, found.memory_bytes, cpu_seconds)

    def disk_bytes(self, limit_bytes: int) -> int:
        """Return what the job has on disk; more entries than anybody needs count as over the limit.

        Inputs are not the job's: it cannot write there, and they may be far larger than what it may leave.
        """
        seat = self._seat
        pids: Collection[int] = self.living()
        used_bytes = entries = 0
        for directory in (seat.work_dir, seat.out_dir, seat.ipc_dir):
            found = disk_quota.measure(directory, pids=pids, most_entries=_LONGEST_LOOK_ENTRIES)
            used_bytes, entries, pids = used_bytes + found.used_bytes, entries + found.entries, ()
        return max(used_bytes, limit_bytes + 1) if entries > _LONGEST_LOOK_ENTRIES else used_bytes

    def oom_kills(self) -> int:
        """Return how many processes the control group's memory limit has killed."""
        return self._group.usage().oom_kills if self._group is not None else 0

    def dissolve(self) -> None:
        """Remove what the seat has outside of its directory; nothing of it lives any more.

        Raises
        ------
        SandboxError
            Something could not be removed; the seat is not fit for another kernel.
        """
        group, self._group = self._group, None
        if group is not None:
            group.remove()
        if self._identity is not None:
            # With a private /dev/shm there is nothing; without one the next kernel of this user could open it by name.
            try:
                memory_watch.sweep_shared_files(self._identity.uid)
            except OSError as error:
                raise SandboxError(MEMORY_WATCH, f"a file in /dev/shm could not be removed: {error}") from error

    def _living(self) -> tuple[procfs.Status, ...]:
        return tuple(status for status in self._statuses() if status.lives)

    def _statuses(self) -> tuple[procfs.Status, ...]:
        if self._group is not None:
            # The first process entered the group by itself before it forked any other, and none can leave: so this is
            # all of them, and a twentieth of the work of looking through /proc.
            found = map(procfs.read_status, self._group.pids())
            return tuple(status for status in found if status is not None)
        return processes.of_seat(self._seat.seat_dir, self._identity)


def kill_process(pidfd: int) -> None:
    """Send SIGKILL through a pidfd; a process that has ended is no error."""
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def end_marked(seat_dir: str) -> None:
    """Kill whatever carries the mark of a seat that a dead launcher has left, under our own user."""
    processes.end_seat(seat_dir, None)


def end_leftovers(uid: int) -> None:
    """Kill whatever runs under a user id that only we lease, and remove its shared memory; a dead launcher left it."""
    processes.end_seat("/", Identity(uid, uid))
    memory_watch.sweep_shared_files(uid)
