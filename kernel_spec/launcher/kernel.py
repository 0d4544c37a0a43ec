"""The launcher's record of one kernel, and exit statuses of processes that are not known yet."""

from __future__ import annotations

import contextlib
import enum
import math
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass, field

from kernel_spec.launcher.event_loop import Timer
from kernel_spec.launcher.kernel_processes import KernelProcesses
from kernel_spec.launcher.user_leases import WorkspaceUser
from kernel_spec.linux import procfs
from kernel_spec.protocol.limits import Limits
from kernel_spec.protocol.values import Cause, ExitReport, WorkspaceInfo

#: After the soft limit a process gets SIGXCPU; one that ignores it is killed this much later (setrlimit(2)).
_CPU_GRACE_SECONDS = 2
_MOST_UNCLAIMED = 256


class KernelPhase(enum.Enum):
    """The phase of a kernel; phases follow one another in this order."""

    RESERVED = "reserved"
    STARTING = "starting"
    RUNNING = "running"
    ENDING = "ending"
    ENDED = "ended"


@dataclass(slots=True)
class Kernel:
    """One kernel, from the reservation of its workspace to the removal of its directory.

    Attributes
    ----------
    pid : int
        0 before the process is known.
    pidfd : int
        -1 before the kernel is the launcher's child.
    limit_hit : tuple of Cause and str, or None
        The limit monitor sets it just before the kernel is killed.
    base_cpu_seconds : float
        Processor time that was used before the limit of the job was set; it does not count.
    when_ended : list of callable
        Called with the report when the termination is over.
    timers : set of Timer
        Cancelled when the kernel ends.
    """

    kernel_id: str
    user: WorkspaceUser
    workspace: WorkspaceInfo
    processes: KernelProcesses
    phase: KernelPhase = KernelPhase.RESERVED
    limits: Limits = field(default_factory=Limits)
    pid: int = 0
    init_pid: int | None = None
    pidfd: int = -1
    asked_to_end: bool = False
    limit_hit: tuple[Cause, str] | None = None
    cpu_limit_seconds: float = 0.0
    base_cpu_seconds: float = 0.0
    peak_memory_bytes: int = 0
    cpu_seconds: float = 0.0
    wait_status: int | None = None
    report: ExitReport | None = None
    when_ended: list[Callable[[ExitReport | None], None]] = field(default_factory=list)
    timers: set[Timer] = field(default_factory=set)
    is_monitored: bool = False

    def reset(self) -> None:
        """Forget the kernel that has ended, so that another one can start in the same workspace."""
        self.close()
        self.pid, self.init_pid, self.wait_status, self.report = 0, None, None, None
        self.asked_to_end, self.limit_hit, self.is_monitored = False, None, False
        self.peak_memory_bytes, self.cpu_seconds, self.base_cpu_seconds = 0, 0.0, 0.0

    def was_reaped(self, status: int, usage: resource.struct_rusage) -> None:
        """Store the end of the kernel process."""
        self.wait_status = status
        self.peak_memory_bytes = max(self.peak_memory_bytes, usage.ru_maxrss * 1024)
        self.cpu_seconds = max(self.cpu_seconds, usage.ru_utime + usage.ru_stime)

    def limit_cpu(self, seconds: int) -> None:
        """Limit the processor time of the kernel process from now on, soft and hard.

        Parameters
        ----------
        seconds : int
            Processor time.

        Raises
        ------
        OSError
            The process is gone, or its present limit is lower and may not be raised.
        """
        if self.pid == 0 or self.wait_status is not None:
            raise ProcessLookupError(f"kernel {self.kernel_id} does not run")
        own_seconds = procfs.read_cpu_seconds(self.pid)
        # The limit monitor has measured children too, if this is not the first limit.
        self.base_cpu_seconds = max(own_seconds, self.cpu_seconds)
        self.cpu_limit_seconds = seconds
        soft = math.ceil(own_seconds) + seconds
        # Setting another user's limits needs CAP_SYS_RESOURCE (prlimit(2)), which root lacks in ordinary containers.
        # The limit monitor enforces the limit there, for all processes together; this one only acts faster.
        with contextlib.suppress(PermissionError):
            resource.prlimit(self.pid, resource.RLIMIT_CPU, (soft, soft + _CPU_GRACE_SECONDS))

    def cancel_timers(self) -> None:
        """Cancel all pending timers of this kernel."""
        for timer in self.timers:
            timer.cancel()
        self.timers.clear()

    def close(self) -> None:
        """Cancel the timers and close the pidfd."""
        self.cancel_timers()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1

    def make_report(self) -> ExitReport:
        """Return how the kernel ended, or that it was not reaped yet."""
        oom_kills = self.processes.oom_kills()
        if oom_kills:
            self.peak_memory_bytes = max(self.peak_memory_bytes, self.limits.memory_bytes)
        code = None if self.wait_status is None else os.waitstatus_to_exitcode(self.wait_status)
        number = -code if code is not None and code < 0 else None
        cause, detail = self._explain(code, number, oom_kills)
        return ExitReport(
            wait_status=self.wait_status,
            signal=number,
            exit_code=code if number is None else None,
            cause=cause,
            peak_memory_bytes=self.peak_memory_bytes,
            cpu_seconds=round(self.cpu_seconds, 3),
            detail=detail,
        )

    def _explain(self, code: int | None, number: int | None, oom_kills: int) -> tuple[Cause, str]:
        if self.limit_hit is not None:
            return self.limit_hit
        if oom_kills:
            # Perhaps of a child only, which the limit monitor had not seen yet when the job returned.
            return "memory_limit", f"exceeded its memory limit of {self.limits.memory_bytes} bytes"
        if self._ran_out_of_cpu(number):
            return "cpu_limit", f"used up its {self.cpu_limit_seconds:g} s of CPU time"
        if number is not None:
            if self.asked_to_end and number == signal.SIGKILL:
                return "killed_by_us", "was ended by the gateway"
            return "signal", f"was ended by signal {number} ({_signal_name(number)})"
        if code is None:
            return "killed_by_us", "was ended before it ran"
        return "exit", f"exited with code {code}"

    def _ran_out_of_cpu(self, number: int | None) -> bool:
        if number == signal.SIGXCPU:
            return True
        # A job that ignores SIGXCPU gets SIGKILL at the hard limit, without a word about the cause.
        return number == signal.SIGKILL and 0 < self.cpu_limit_seconds <= self.cpu_seconds - self.base_cpu_seconds


class UnclaimedStatuses:
    """Exit statuses of children whose pid was unknown when they were reaped: orphans of jobs, and new kernels."""

    def __init__(self) -> None:
        self._statuses: dict[int, tuple[int, resource.struct_rusage]] = {}

    def add(self, pid: int, status: int, usage: resource.struct_rusage) -> None:
        """Keep a status, and drop the oldest ones beyond 256."""
        self._statuses[pid] = (status, usage)
        while len(self._statuses) > _MOST_UNCLAIMED:
            del self._statuses[next(iter(self._statuses))]

    def take(self, pid: int) -> tuple[int, resource.struct_rusage] | None:
        """Return the wait status and the usage of a process whose pid has become known, or None if it still exists.

        If there is a process of that pid, a kept status is that of an earlier one.
        """
        found = self._statuses.pop(pid, None)
        return None if os.path.exists(f"/proc/{pid}") else found  # noqa: PTH110


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
