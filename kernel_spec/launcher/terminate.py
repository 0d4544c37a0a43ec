"""Killing all processes of a kernel, and confirming that none lives.

A termination sends SIGKILL to the kernel and to its control group. Then it polls: it looks for processes of the
workspace and kills those that live. The end is confirmed when the kernel is reaped and no process is found; only then
may the workspace be recycled.

A *stop* does less and comes earlier: no process runs any more, so the files that the kernel left can be read. A control
group that can be frozen is frozen first and killed later: freezing takes half a millisecond, while giving back the
memory and namespaces of a kernel takes one core for ten, and the answer to its job would wait for that core. Elsewhere
a kernel has stopped when SIGKILL has made each of its threads begin to exit, so that none returns to its program; that
takes one to six milliseconds (all measured on two cores).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from kernel_spec.launcher.event_loop import Loop, Timer
from kernel_spec.launcher.kernel import Kernel, KernelPhase
from kernel_spec.launcher.kernel_processes import kill_process
from kernel_spec.protocol.values import ExitReport

OnReport = Callable[[ExitReport | None], None]

#: Pauses between polls that find a living process; the last one is used again and again.
_PAUSES_SECONDS = (0.03, 0.01, 0.02, 0.05)
#: A sleeping thread must be scheduled to see its signal, which takes some 0.3 ms, and one test takes 0.1 ms. So the
#: launcher tests without a sleep at first: after a sleep its core may be busy with the kernel's memory, for a whole
#: tick of 4 ms.
_TESTS_AT_ONCE = 12
_STOP_PAUSE_SECONDS = 0.001
#: A thread in uninterruptible sleep does not freeze; the launcher then kills instead.
_FREEZE_SECONDS = 0.05
#: SIGKILL ends everything but uninterruptible sleep, for instance on a broken disk; the workspace is then not reused.
CONFIRM_SECONDS = 8.0
_UNCONFIRMED_PAUSE_SECONDS = 2.0


class Termination:
    """The termination of one kernel; it begins at once.

    Parameters
    ----------
    loop : Loop
        The launcher's loop.
    kernel : Kernel
        The kernel to terminate.
    on_ended : callable
        Called once with the report, or with None if the end could not be confirmed within `CONFIRM_SECONDS`.
    """

    def __init__(self, loop: Loop, kernel: Kernel, on_ended: OnReport) -> None:
        self._loop = loop
        self._kernel = kernel
        self._on_ended = on_ended
        self._began = time.monotonic()
        self._polls = 0
        self._timer: Timer | None = None
        self._is_unconfirmed = False
        self._on_stopped: list[OnReport] = []
        kernel.phase = KernelPhase.ENDING
        self._kill()

    def on_reaped(self) -> None:
        """Poll if that was the last process; called whenever a child of the launcher was reaped."""
        if self._is_reaped():
            self.poll()

    def poll(self) -> None:
        """Look for living processes, and either confirm the end or kill them and poll again later."""
        if self._kernel.phase is not KernelPhase.ENDING:
            return
        if self._timer is not None:
            self._timer.cancel()
        # Usually the first SIGKILL ends all processes within milliseconds, and the reaper calls: for the kernel, then
        # for the init of its namespace. A poll between the two would find the init alive; killing it and polling again
        # took the launcher a millisecond for each job (measured).
        if (self._is_reaped() or self._polls) and self._kernel.processes.end() and self._is_reaped():
            self._confirm()
            return
        if time.monotonic() - self._began > CONFIRM_SECONDS and not self._is_unconfirmed:
            self._is_unconfirmed = True
            self._report_stopped(None)
            self._on_ended(None)
        pause_seconds = _PAUSES_SECONDS[min(self._polls, len(_PAUSES_SECONDS) - 1)]
        self._polls += 1
        self._timer = self._loop.call_later(
            _UNCONFIRMED_PAUSE_SECONDS if self._is_unconfirmed else pause_seconds, self.poll
        )

    def on_stopped(self, then: OnReport) -> None:
        """Call back as soon as no process of the kernel can run any more, at the latest when its end is confirmed."""
        self._on_stopped.append(then)
        for _ in range(_TESTS_AT_ONCE):
            if self._kernel.processes.is_stopped():
                self._report_stopped(self._report())
                return
            os.sched_yield()
        self._loop.call_later(_STOP_PAUSE_SECONDS, self._test_again)

    def _test_again(self) -> None:
        if not self._on_stopped:
            return
        if self._kernel.processes.is_stopped():
            self._report_stopped(self._report())
        else:
            self._loop.call_later(_STOP_PAUSE_SECONDS, self._test_again)

    def _report_stopped(self, report: ExitReport | None) -> None:
        callbacks, self._on_stopped = self._on_stopped, []
        for then in callbacks:
            then(report)

    def _report(self) -> ExitReport:
        return self._kernel.report or self._kernel.make_report()

    def _kill(self) -> None:
        kernel = self._kernel
        if kernel.pidfd >= 0 and kernel.wait_status is None:
            kill_process(kernel.pidfd)
        if kernel.init_pid is not None:
            # Not reaped, or the reaper would have cleared it; all processes of its namespace end with it.
            with suppress(ProcessLookupError):
                os.kill(kernel.init_pid, signal.SIGKILL)
        kernel.processes.kill_group()

    def _is_reaped(self) -> bool:
        """Return whether kernel and init are reaped; the init is the last of its namespace, but not of the group."""
        kernel = self._kernel
        return (kernel.pid == 0 or kernel.wait_status is not None) and kernel.init_pid is None

    def _confirm(self) -> None:
        kernel = self._kernel
        kernel.phase = KernelPhase.ENDED
        kernel.cancel_timers()
        kernel.report = self._report()
        self._report_stopped(kernel.report)
        if not self._is_unconfirmed:
            self._on_ended(kernel.report)


class Freezing:
    """The wait for a control group that is being frozen.

    Parameters
    ----------
    loop : Loop
        The launcher's loop.
    kernel : Kernel
        The kernel in that group.
    then : callable
        Called once with True when all processes are frozen, with False if they do not freeze in time or have ended.
    """

    def __init__(self, loop: Loop, kernel: Kernel, then: Callable[[bool], None]) -> None:
        self._loop = loop
        self._kernel = kernel
        self._then = then
        self._deadline = time.monotonic() + _FREEZE_SECONDS
        for _ in range(_TESTS_AT_ONCE):
            if kernel.processes.is_frozen():
                then(True)
                return
            os.sched_yield()
        loop.call_later(_STOP_PAUSE_SECONDS, self._test_again)

    def _test_again(self) -> None:
        is_running = self._kernel.phase is KernelPhase.RUNNING
        if is_running and self._kernel.processes.is_frozen():
            self._then(True)
        elif not is_running or time.monotonic() > self._deadline:
            self._then(False)
        else:
            self._loop.call_later(_STOP_PAUSE_SECONDS, self._test_again)


def send_signal(kernel: Kernel, number: int) -> bool:
    """Send a signal to the kernel's process group.

    The kernel is the launcher's child and not reaped, so no other process can have its pid, which is its group's id.

    Parameters
    ----------
    kernel : Kernel
        The kernel.
    number : int
        The signal.

    Returns
    -------
    bool
        Whether there was a process.
    """
    if kernel.pid == 0 or kernel.wait_status is not None:
        return False
    try:
        os.killpg(kernel.pid, number)
    except ProcessLookupError:
        # Between the fork and its setsid it leads no group.
        signal.pidfd_send_signal(kernel.pidfd, number)
    return True
