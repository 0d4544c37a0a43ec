"""What the launcher knows about one kernel."""

from __future__ import annotations

import contextlib
import enum
import math
import os
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from kernel_spec.containment import Containment
from kernel_spec.limits import Limits
from kernel_spec.loop import Timer
from kernel_spec.messages import Cause, ExitReport, SeatInfo
from kernel_spec.seats import SeatUser

# After the soft limit a process gets SIGXCPU; one that ignores it is killed this much later (setrlimit(2)).
_CPU_GRACE_SECONDS = 2
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_MOST_EARLY_ENDS = 256


class Phase(enum.Enum):
    """Where a kernel is in its life; it only moves down this list."""

    RESERVED = "reserved"
    STARTING = "starting"
    RUNNING = "running"
    ENDING = "ending"
    ENDED = "ended"


@dataclass(slots=True)
class Kernel:
    """One kernel, from the reservation of its seat to the removal of its directory.

    Attributes
    ----------
    limit_hit
        Set by a watch just before it kills.
    base_cpu_seconds
        Processor time used when the limit of the job was set; what was used before is not the job's.
    """

    kernel_id: str
    user: SeatUser
    seat: SeatInfo
    containment: Containment
    phase: Phase = Phase.RESERVED
    limits: Limits = field(default_factory=Limits)
    pid: int = 0
    init_pid: int | None = None
    pidfd: int = -1
    started: float = 0.0
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
    watched: bool = False
    _last_oom_kills: int | None = None

    def prepare_again(self) -> None:
        """Forget the kernel that has ended, so that another can start in the same seat."""
        self.close()
        self.pid, self.init_pid, self.wait_status, self.report = 0, None, None, None
        self.asked_to_end, self.limit_hit, self.watched = False, None, False
        self.peak_memory_bytes, self.cpu_seconds, self.base_cpu_seconds = 0, 0.0, 0.0
        self._last_oom_kills = None

    def was_reaped(self, status: int, usage: resource.struct_rusage) -> None:
        """Take note of the end of the kernel process."""
        self.wait_status = status
        self.peak_memory_bytes = max(self.peak_memory_bytes, usage.ru_maxrss * 1024)
        self.cpu_seconds = max(self.cpu_seconds, usage.ru_utime + usage.ru_stime)

    def limit_cpu(self, seconds: int) -> None:
        """Bound the processor time of the kernel process from now on, hard and soft.

        Raises
        ------
        OSError
            The process is gone, or a limit in force is lower and may not be raised.
        """
        if self.pid == 0 or self.wait_status is not None:
            raise ProcessLookupError(f"kernel {self.kernel_id} does not run")
        self.base_cpu_seconds = process_cpu_seconds(self.pid)
        self.cpu_limit_seconds = seconds
        soft = math.ceil(self.base_cpu_seconds) + seconds
        # Another user's limits need CAP_SYS_RESOURCE (prlimit(2)), which ordinary containers do not have, root or not.
        # The watch over the whole seat holds the limit then; the process's own limit is only the faster second fence.
        with contextlib.suppress(PermissionError):
            resource.prlimit(self.pid, resource.RLIMIT_CPU, (soft, soft + _CPU_GRACE_SECONDS))

    def cancel_timers(self) -> None:
        """Stop everything that was to happen later to this kernel."""
        for timer in self.timers:
            timer.cancel()
        self.timers.clear()

    def close(self) -> None:
        """Give up the pidfd."""
        self.cancel_timers()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1

    def make_report(self, *, stands_still: bool = False) -> ExitReport:
        """Return how the kernel ended; call it when it was reaped, or never started.

        Parameters
        ----------
        stands_still
            Nothing of it runs any more and it is about to be killed: what its memory limit did it has done, and need
            not be looked up again, in nine files of its control group, when it is reaped.
        """
        oom_kills = self.containment.oom_kills() if self._last_oom_kills is None else self._last_oom_kills
        if stands_still:
            self._last_oom_kills = oom_kills
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
        if number == signal.SIGKILL and oom_kills:
            return "memory_limit", f"exceeded its memory limit of {self.limits.memory_bytes} bytes"
        if self._ran_out_of_cpu(number):
            return "cpu_limit", f"used up its {self.cpu_limit_seconds:g} s of processor time"
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
        # A job that ignores SIGXCPU gets SIGKILL at the hard limit, with nothing said about why.
        return number == signal.SIGKILL and 0 < self.cpu_limit_seconds <= self.cpu_seconds - self.base_cpu_seconds

    @property
    def age_seconds(self) -> float:
        """Seconds since the start was asked for."""
        return time.monotonic() - self.started


class EarlyEnds:
    """Ends of children that nobody knew when they were reaped: orphans of jobs, and kernels not yet told of."""

    def __init__(self) -> None:
        self._ends: dict[int, tuple[int, resource.struct_rusage]] = {}

    def note(self, pid: int, status: int, usage: resource.struct_rusage) -> None:
        """Keep an end, and forget the oldest."""
        self._ends[pid] = (status, usage)
        while len(self._ends) > _MOST_EARLY_ENDS:
            del self._ends[next(iter(self._ends))]

    def take(self, pid: int) -> tuple[int, resource.struct_rusage] | None:
        """Return the end of a process that is known only now, None if it has not been reaped.

        Then there is a process of that number, and an end that was noted is that of an earlier one.
        """
        end = self._ends.pop(pid, None)
        return None if os.path.exists(f"/proc/{pid}") else end  # noqa: PTH110


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def process_cpu_seconds(pid: int) -> float:
    """Return the processor time of one process and of its children that it has waited for, proc_pid_stat(5).

    Raises
    ------
    OSError
        There is no such process.
    """
    return sum(map(int, _stat_fields(pid)[11:15])) / _TICKS_PER_SECOND


def process_start_ticks(pid: int) -> int:
    """Return when a process started, in clock ticks since boot; with the pid it names a process for good.

    Raises
    ------
    OSError
        There is no such process.
    """
    return int(_stat_fields(pid)[19])


def _stat_fields(pid: int) -> list[str]:
    """Return the fields of /proc/<pid>/stat from the third on; the second, a name, may contain anything."""
    with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123
        return stat.read().rsplit(")", 1)[1].split()
