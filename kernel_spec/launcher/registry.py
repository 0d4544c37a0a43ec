"""The kernels of one launcher: found by id or pid, reaped, stopped and terminated."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterable

from kernel_spec.launcher.event_loop import Loop
from kernel_spec.launcher.kernel import Kernel, KernelPhase, UnclaimedStatuses
from kernel_spec.launcher.start_attempt import StartAttempt
from kernel_spec.launcher.terminate import Freezing, OnReport, Termination
from kernel_spec.protocol.messages import Exited, Message, Refused
from kernel_spec.protocol.values import ExitReport


class Registry:
    """All kernels that have a workspace, and the attempts to start one that are not over.

    Parameters
    ----------
    loop : Loop
        The launcher's loop.
    send : callable
        Sends a message to the gateway.
    """

    def __init__(self, loop: Loop, send: Callable[[Message], None]) -> None:
        self._loop = loop
        self._send = send
        self._kernels: dict[str, Kernel] = {}
        self._attempts: dict[int, StartAttempt] = {}
        self._terminations: dict[str, Termination] = {}
        self._unclaimed = UnclaimedStatuses()

    # ------------------------------------------------------------------ kernels and attempts
    def get(self, kernel_id: str) -> Kernel | None:
        """Return a kernel by its id."""
        return self._kernels.get(kernel_id)

    def all(self) -> tuple[Kernel, ...]:
        """Return all kernels."""
        return tuple(self._kernels.values())

    def add(self, kernel: Kernel) -> None:
        """Add a kernel that has a workspace."""
        self._kernels[kernel.kernel_id] = kernel

    def forget(self, kernel: Kernel) -> None:
        """Drop a kernel that has ended, with the attempts to start it."""
        kernel.close()
        kernel.phase = KernelPhase.ENDED
        del self._kernels[kernel.kernel_id]
        self._attempts = {number: a for number, a in self._attempts.items() if a.kernel is not kernel}

    def add_attempt(self, attempt: StartAttempt) -> None:
        """Add an attempt to start a kernel."""
        self._attempts[attempt.number] = attempt

    def attempt(self, number: int) -> StartAttempt | None:
        """Return an attempt by its number."""
        return self._attempts.get(number)

    def drop_attempt(self, attempt: StartAttempt) -> None:
        """Forget an attempt that failed."""
        self._attempts.pop(attempt.number, None)

    # ------------------------------------------------------------------ reaping
    def pid_known(self, kernel: Kernel) -> None:
        """Claim the exit status of a kernel, or of its init, that was reaped before its pid was known."""
        early = self._unclaimed.take(kernel.pid)
        if early is not None:
            kernel.was_reaped(*early)
        if kernel.init_pid is not None and self._unclaimed.take(kernel.init_pid) is not None:
            kernel.init_pid = None

    def reap(self, is_taken: Callable[[int, int], bool]) -> None:
        """Reap all children that have ended.

        Parameters
        ----------
        is_taken : callable
            Called with pid and wait status; returns True for a child that belongs to no kernel.
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
        for termination in tuple(self._terminations.values()):
            termination.on_reaped()

    def _was_reaped(self, pid: int, status: int, usage: resource.struct_rusage) -> None:
        for attempt in tuple(self._attempts.values()):
            if pid == attempt.intermediate_pid:
                attempt.intermediate_reaped(status)
                return
        for kernel in self._kernels.values():
            if pid == kernel.pid and kernel.wait_status is None:
                kernel.was_reaped(status, usage)
                self._kernel_exited(kernel)
                return
            if pid == kernel.init_pid:
                kernel.init_pid = None
                return
        # An orphan of some job, or a kernel whose pid is not known yet.
        self._unclaimed.add(pid, status, usage)

    def _kernel_exited(self, kernel: Kernel) -> None:
        for attempt in self._attempts_of(kernel):
            attempt.kernel_reaped()
        kernel.report = kernel.make_report()
        self._send(Exited(kernel.kernel_id, kernel.report))
        # The processes of a kernel do not outlive it, with or without a request.
        self.terminate(kernel)

    # ------------------------------------------------------------------ stopping and terminating
    def stop(self, kernel: Kernel, then: OnReport) -> None:
        """Stop all processes of a kernel: freeze them where that is possible, else terminate the kernel.

        Parameters
        ----------
        kernel : Kernel
            A kernel in any phase.
        then : callable
            Called with what is known about the kernel's end when no process of it can run any more, or with None if
            that could not be confirmed.
        """

        def on_frozen(frozen: bool) -> None:
            if frozen:
                then(kernel.make_report())
            else:
                self._stop_by_termination(kernel, then)

        if kernel.phase is KernelPhase.RUNNING and kernel.processes.freeze():
            Freezing(self._loop, kernel, on_frozen)
        else:
            self._stop_by_termination(kernel, then)

    def _stop_by_termination(self, kernel: Kernel, then: OnReport) -> None:
        self.terminate(kernel)
        termination = self._terminations.get(kernel.kernel_id)
        if termination is None:
            then(kernel.report)
        else:
            termination.on_stopped(then)

    def terminate(self, kernel: Kernel, then: OnReport = lambda _: None) -> None:
        """Kill all processes of a kernel.

        Parameters
        ----------
        kernel : Kernel
            A kernel in any phase.
        then : callable
            Called with the report when no process of the kernel lives, or with None if that could not be confirmed.
        """
        if kernel.phase is KernelPhase.ENDED:
            then(kernel.report)
            return
        kernel.when_ended.append(then)
        if kernel.phase is KernelPhase.ENDING:
            return
        for attempt in self._attempts_of(kernel):
            attempt.abort()
            if not attempt.answered:
                kernel.when_ended.append(lambda report, attempt=attempt: self._refuse(attempt, report))  # type: ignore[misc]
        termination = Termination(self._loop, kernel, lambda report: self._terminated(kernel, report))
        self._terminations[kernel.kernel_id] = termination
        termination.poll()

    def _attempts_of(self, kernel: Kernel) -> Iterable[StartAttempt]:
        return [attempt for attempt in self._attempts.values() if attempt.kernel is kernel and not attempt.is_over]

    def _refuse(self, attempt: StartAttempt, report: ExitReport | None) -> None:
        self._send(Refused(attempt.request_id, "killed", "the kernel was ended while it started", report))

    def _terminated(self, kernel: Kernel, report: ExitReport | None) -> None:
        callbacks, kernel.when_ended = kernel.when_ended, []
        for callback in callbacks:
            callback(report)
        if report is not None:
            self._terminations.pop(kernel.kernel_id, None)
