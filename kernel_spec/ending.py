"""Ending everything of a kernel and confirming it.

First a strike, SIGKILL to the kernel and to its control group; then rounds that look whether anything of the seat lives
and kill what does. The end is confirmed when the kernel is reaped and a look finds nothing; only then may its seat be
cleared.

Before that all of it can be *halted*, which is enough for whoever only wants to read what the kernel left. Where its
control group can be frozen, that comes first and the strike comes later: stopping a kernel takes half a millisecond,
while giving back its memory and namespaces takes a core for ten, and the answer to its job would wait for that core.
Elsewhere it has halted when the strike has made every thread begin to exit, so that none returns to its program, after
one to six milliseconds (all measured on two cores).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from kernel_spec.containment import kill_process
from kernel_spec.kernels import Kernel, Phase
from kernel_spec.loop import Loop, Timer
from kernel_spec.messages import ExitReport

# A round that leaves something alive is repeated after these pauses, the last of them again and again.
_PAUSES_SECONDS = (0.03, 0.01, 0.02, 0.05)
# A thread that sleeps has to be scheduled to see its signal, which takes some 0.3 ms, and a look takes 0.1 ms. No sleep
# between: whoever sleeps here may find its core taken by the kernel giving back memory, for a whole tick of 4 ms.
_LOOKS_AT_ONCE = 12
_HALT_PAUSE_SECONDS = 0.001
# A thread in uninterruptible sleep does not stop; then it is the strike after all that tells.
_FREEZE_SECONDS = 0.05
# Uninterruptible sleep on a broken disk is the one thing SIGKILL does not end; the seat is then lost, not reused.
CONFIRM_SECONDS = 8.0
_LOST_PAUSE_SECONDS = 2.0


class Ending:
    """The ending of one kernel; calls `on_ended` once with the report, or with None when it could not be confirmed."""

    def __init__(self, loop: Loop, kernel: Kernel, on_ended: Callable[[ExitReport | None], None]) -> None:
        self._loop = loop
        self._kernel = kernel
        self._on_ended = on_ended
        self._began = time.monotonic()
        self._rounds = 0
        self._timer: Timer | None = None
        self._told = False
        self._when_halted: list[Callable[[ExitReport | None], None]] = []
        kernel.phase = Phase.ENDING
        self._strike()

    @property
    def seconds(self) -> float:
        """Time since the ending began."""
        return time.monotonic() - self._began

    def on_reaped(self) -> None:
        """Look whether that was the last of it; called whenever a process of ours was reaped."""
        if self._is_reaped():
            self.round()

    def round(self) -> None:
        """Kill, look, and either confirm or come back."""
        if self._kernel.phase is not Phase.ENDING:
            return
        if self._timer is not None:
            self._timer.cancel()
        containment = self._kernel.containment
        # In the usual case the first strike ends everything within milliseconds, and the reaper calls: for the kernel,
        # then for the init of its namespace. A look between the two finds the init alive, and to stop it and to look
        # again took the launcher a millisecond for each job (measured).
        if self._is_reaped() or self._rounds:
            if not containment.living() and self._is_reaped():
                self._confirm()
                return
            containment.end()
        if self.seconds > CONFIRM_SECONDS and not self._told:
            self._told = True
            self._tell_halted(None)
            self._on_ended(None)
        pause = _LOST_PAUSE_SECONDS if self._told else _PAUSES_SECONDS[min(self._rounds, len(_PAUSES_SECONDS) - 1)]
        self._rounds += 1
        self._timer = self._loop.call_later(pause, self.round)

    def when_halted(self, then: Callable[[ExitReport | None], None]) -> None:
        """Call back as soon as nothing of the kernel can run any more, at the latest when its end is known."""
        self._when_halted.append(then)
        for _ in range(_LOOKS_AT_ONCE):
            if self._kernel.containment.is_halted():
                self._tell_halted(self._report())
                return
            os.sched_yield()
        self._loop.call_later(_HALT_PAUSE_SECONDS, self._look_again)

    def _look_again(self) -> None:
        if not self._when_halted:
            return
        if self._kernel.containment.is_halted():
            self._tell_halted(self._report())
        else:
            self._loop.call_later(_HALT_PAUSE_SECONDS, self._look_again)

    def _tell_halted(self, report: ExitReport | None) -> None:
        waiting, self._when_halted = self._when_halted, []
        for then in waiting:
            then(report)

    def _report(self) -> ExitReport:
        return self._kernel.report or self._kernel.make_report()

    def _strike(self) -> None:
        kernel = self._kernel
        if kernel.pidfd >= 0 and kernel.wait_status is None:
            kill_process(kernel.pidfd)
        if kernel.init_pid is not None:
            # Not reaped, or the reaper would have forgotten it; with it ends everything in its namespace.
            with suppress(ProcessLookupError):
                os.kill(kernel.init_pid, signal.SIGKILL)
        kernel.containment.strike()

    def _is_reaped(self) -> bool:
        """Return whether kernel and init are; the init is the last of its namespace, but not in the control group."""
        kernel = self._kernel
        return (kernel.pid == 0 or kernel.wait_status is not None) and kernel.init_pid is None

    def _confirm(self) -> None:
        kernel = self._kernel
        kernel.phase = Phase.ENDED
        kernel.cancel_timers()
        kernel.report = self._report()
        self._tell_halted(kernel.report)
        if not self._told:
            self._on_ended(kernel.report)


class Freezing:
    """The stopping of one kernel; calls back once, with whether all of it has stopped.

    Parameters
    ----------
    kernel
        Whose control group was told to freeze.
    then
        Called with False where it does not stop in time, or has ended by itself.
    """

    def __init__(self, loop: Loop, kernel: Kernel, then: Callable[[bool], None]) -> None:
        self._loop = loop
        self._kernel = kernel
        self._then = then
        self._deadline = time.monotonic() + _FREEZE_SECONDS
        for _ in range(_LOOKS_AT_ONCE):
            if kernel.containment.is_frozen():
                then(True)
                return
            os.sched_yield()
        loop.call_later(_HALT_PAUSE_SECONDS, self._look_again)

    def _look_again(self) -> None:
        if self._kernel.phase is Phase.RUNNING and self._kernel.containment.is_frozen():
            self._then(True)
        elif self._kernel.phase is not Phase.RUNNING or time.monotonic() > self._deadline:
            self._then(False)
        else:
            self._loop.call_later(_HALT_PAUSE_SECONDS, self._look_again)


def send_signal(kernel: Kernel, number: int) -> bool:
    """Send a signal to the kernel's process group; return whether there was one.

    The kernel is our child and not reaped, so its pid, which is its group's id, cannot belong to anyone else.
    """
    if kernel.pid == 0 or kernel.wait_status is not None:
        return False
    try:
        os.killpg(kernel.pid, number)
    except ProcessLookupError:
        # Between the fork and its setsid it leads no group.
        signal.pidfd_send_signal(kernel.pidfd, number)
    return True
