"""The kernels of one launcher and what becomes of them: found by name, reaped, and ended as a whole."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from kernel_spec.ending import Ending
from kernel_spec.kernels import EarlyEnds, Kernel, Phase
from kernel_spec.loop import Loop
from kernel_spec.messages import Exited, ExitReport, Refused
from kernel_spec.starting import StartAttempt

Then = Callable[[ExitReport | None], None]


class Roster:
    """All kernels that have a seat, and the attempts to start one that are not over.

    Parameters
    ----------
    loop : Loop
    tell : callable
        Sends a message to the gateway.
    """

    def __init__(self, loop: Loop, tell: Callable[[object], None]) -> None:
        self._loop = loop
        self._tell = tell
        self._kernels: dict[str, Kernel] = {}
        self._attempts: dict[int, StartAttempt] = {}
        self._endings: dict[str, Ending] = {}
        self._early_ends = EarlyEnds()

    # ------------------------------------------------------------------ who there is
    def get(self, kernel_id: str) -> Kernel | None:
        """Return a kernel by its name."""
        return self._kernels.get(kernel_id)

    def all(self) -> tuple[Kernel, ...]:
        """Return all kernels as of now."""
        return tuple(self._kernels.values())

    def add(self, kernel: Kernel) -> None:
        """Take up a kernel that has got a seat."""
        self._kernels[kernel.kernel_id] = kernel

    def forget(self, kernel: Kernel) -> None:
        """Drop a kernel that has ended, with the attempts to start it."""
        kernel.close()
        kernel.phase = Phase.ENDED
        del self._kernels[kernel.kernel_id]
        self._attempts = {number: a for number, a in self._attempts.items() if a.kernel is not kernel}

    def add_attempt(self, attempt: StartAttempt) -> None:
        """Take up an attempt to start a kernel."""
        self._attempts[attempt.number] = attempt

    def attempt(self, number: int) -> StartAttempt | None:
        """Return an attempt by its number."""
        return self._attempts.get(number)

    def drop_attempt(self, attempt: StartAttempt) -> None:
        """Forget an attempt that failed."""
        self._attempts.pop(attempt.number, None)

    # ------------------------------------------------------------------ reaping
    def pid_known(self, kernel: Kernel) -> None:
        """Take up the end of a kernel, or of its init, that was reaped before its name was known."""
        early = self._early_ends.take(kernel.pid)
        if early is not None:
            kernel.was_reaped(*early)
        if kernel.init_pid is not None and self._early_ends.take(kernel.init_pid) is not None:
            kernel.init_pid = None

    def reap(self, is_taken: Callable[[int, int], bool]) -> None:
        """Reap all children that have ended.

        Parameters
        ----------
        is_taken
            Asked with pid and wait status; True if that child was none of a kernel's.
        """
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if not is_taken(pid, status):
                self._was_reaped(pid, status, usage)
        for ending in tuple(self._endings.values()):
            ending.on_reaped()

    def _was_reaped(self, pid: int, status: int, usage: Any) -> None:
        for attempt in tuple(self._attempts.values()):
            if pid == attempt.middle_pid:
                attempt.middle_reaped(status)
                return
        for kernel in self._kernels.values():
            if pid == kernel.pid and kernel.wait_status is None:
                kernel.was_reaped(status, usage)
                self._kernel_ended(kernel)
                return
            if pid == kernel.init_pid:
                kernel.init_pid = None
                return
        # An orphan of some job, or a kernel whose pid is not known yet.
        self._early_ends.note(pid, status, usage)

    def _kernel_ended(self, kernel: Kernel) -> None:
        for attempt in self._attempts_of(kernel):
            attempt.kernel_reaped()
        kernel.report = kernel.make_report()
        self._tell(Exited(kernel.kernel_id, kernel.report))
        # A kernel's processes do not outlive it, whether or not anybody asks.
        self.end(kernel)

    # ------------------------------------------------------------------ ending
    def end(self, kernel: Kernel, then: Then = lambda _: None) -> None:
        """End everything of a kernel, and call `then` when nothing of it lives: with None if that was not achieved."""
        if kernel.phase is Phase.ENDED:
            then(kernel.report)
            return
        kernel.when_ended.append(then)
        if kernel.phase is Phase.ENDING:
            return
        for attempt in self._attempts_of(kernel):
            attempt.abort()
            if not attempt.answered:
                kernel.when_ended.append(lambda report, attempt=attempt: self._refuse(attempt, report))  # type: ignore[misc]
        ending = Ending(self._loop, kernel, lambda report: self._ended(kernel, report))
        self._endings[kernel.kernel_id] = ending
        ending.round()

    def ending(self, kernel: Kernel) -> Ending | None:
        """Return the ending that a kernel is in; None before, and after one that succeeded."""
        return self._endings.get(kernel.kernel_id)

    def _attempts_of(self, kernel: Kernel) -> Iterable[StartAttempt]:
        return [attempt for attempt in self._attempts.values() if attempt.kernel is kernel and not attempt.is_over]

    def _refuse(self, attempt: StartAttempt, report: ExitReport | None) -> None:
        self._tell(Refused(attempt.request_id, "killed", "the kernel was ended while it started", report))

    def _ended(self, kernel: Kernel, report: ExitReport | None) -> None:
        callbacks, kernel.when_ended = kernel.when_ended, []
        for callback in callbacks:
            callback(report)
        if report is not None:
            self._endings.pop(kernel.kernel_id, None)
