"""Starting kernels: forked by the fork server, or plainly where it cannot."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable

import msgspec

from kernel_spec.kernel import confinement
from kernel_spec.kernel.confinement import Host
from kernel_spec.kernel.environment import kernel_environment
from kernel_spec.launcher.event_loop import Loop
from kernel_spec.launcher.fork_server_client import ForkServerSupervisor
from kernel_spec.launcher.kernel import Kernel
from kernel_spec.launcher.limit_monitor import LimitMonitor
from kernel_spec.launcher.registry import Registry
from kernel_spec.launcher.start_attempt import StartAttempt, StartContext
from kernel_spec.protocol.limits import Limits
from kernel_spec.protocol.messages import ForkServerChanged, Message, Refused, Start, Started
from kernel_spec.protocol.options import LauncherOptions
from kernel_spec.protocol.values import ExitReport, KernelPlan

#: How long a start waits for a fork server that still imports, before the kernel is started plainly.
FIRST_FORK_SERVER_SECONDS = 15.0
#: Processor time of a kernel that waits for its job.
_WAITING_CPU_SECONDS = 7 * 86_400

Send = Callable[[Message, tuple[int, ...]], None]


class KernelStarter:
    """Starts the kernels of one launcher; it owns the fork server.

    Parameters
    ----------
    loop : Loop
        The launcher's loop.
    options : LauncherOptions
        Settings of the launcher.
    registry : Registry
        The launcher's kernels.
    send : callable
        Sends a message and descriptors to the gateway.
    """

    def __init__(self, loop: Loop, options: LauncherOptions, registry: Registry, send: Send) -> None:
        self._loop = loop
        self._options = options
        self._registry = registry
        self._send = send
        self._waiting: list[StartAttempt] = []
        self._numbers = itertools.count(1)
        self.fork_server = ForkServerSupervisor(
            loop, options, self._on_forked, self._on_fork_refused, self._on_fork_server_change
        )
        self.plain_starts = 0

    def open(self, host: Host, limit_monitor: LimitMonitor) -> None:
        """Get ready for the first start.

        Parameters
        ----------
        host : Host
            The layers that this host allows.
        limit_monitor : LimitMonitor
            Monitors the kernels of notebooks from their start; those of jobs wait without a monitor.
        """
        self._host = host
        self._limit_monitor = limit_monitor
        # No other process ever has the write end, so it closes when this process ends.
        liveness_pipe, self._liveness_pipe_end = os.pipe2(os.O_CLOEXEC)
        self._context = StartContext(
            self._loop, self.fork_server, self, self._count_plain, host.groups, liveness_pipe, host.can_start_inits
        )

    def start(self, kernel: Kernel, request: Start, outputs: list[int]) -> None:
        """Start a kernel; the answer is sent when clients can connect or when the start has failed.

        Parameters
        ----------
        kernel : Kernel
            A kernel without processes.
        request : Start
            The gateway's request.
        outputs : list of int
            Descriptors for standard output, standard error and perhaps the log pipe; this closes them.
        """
        is_restart = kernel.pid != 0 or request.has_clients
        kernel.reset()
        kernel.limits = request.limits
        kernel.cpu_limit_seconds = request.limits.cpu_seconds
        plan = _make_plan(kernel, request, self._host, self._options, is_restart=is_restart)
        attempt = StartAttempt(self._context, request, next(self._numbers), kernel, plan, outputs)
        self._registry.add_attempt(attempt)
        if self.fork_server.is_soon_ready and not attempt.is_plain:
            self._waiting.append(attempt)
            kernel.timers.add(self._loop.call_later(FIRST_FORK_SERVER_SECONDS, lambda: self._begin(attempt)))
        else:
            attempt.begin()

    def _begin(self, attempt: StartAttempt) -> None:
        if attempt in self._waiting:
            self._waiting.remove(attempt)
            attempt.begin()

    # ------------------------------------------------------------------ reports of an attempt, see `StartListener`
    def start_succeeded(self, attempt: StartAttempt, answer: Started) -> None:
        if attempt.plan.style == "notebook":
            self._limit_monitor.watch(attempt.kernel)
        self._send(answer, (attempt.kernel.pidfd,))

    def start_failed(self, attempt: StartAttempt, code: str, message: str) -> None:
        def ended(report: ExitReport | None) -> None:
            self._registry.drop_attempt(attempt)
            if not attempt.answered:
                self._send(Refused(attempt.request_id, code, message, report), ())

        self._registry.terminate(attempt.kernel, ended)

    def pid_known(self, attempt: StartAttempt) -> None:
        self._registry.pid_known(attempt.kernel)

    def _count_plain(self) -> None:
        self.plain_starts += 1

    # ------------------------------------------------------------------ reports of the fork server
    def _on_forked(self, number: int, pid: int) -> None:
        attempt = self._registry.attempt(number)
        if attempt is not None:
            attempt.forked(pid)

    def _on_fork_refused(self, number: int, reason: str) -> None:
        attempt = self._registry.attempt(number)
        if attempt is not None:
            attempt.fork_refused(reason)

    def _on_fork_server_change(self, state: str, reason: str) -> None:
        self._send(ForkServerChanged(state, reason), ())
        if state != "starting":
            for attempt in tuple(self._waiting):
                self._loop.call_later(0.0, lambda attempt=attempt: self._begin(attempt))  # type: ignore[misc]


def _make_plan(kernel: Kernel, request: Start, host: Host, options: LauncherOptions, *, is_restart: bool) -> KernelPlan:
    workspace = kernel.workspace
    return KernelPlan(
        kernel_id=kernel.kernel_id,
        workspace=workspace,
        connection_path=f"{workspace.ipc_dir}/connection.json",
        uid=workspace.uid if host.own_uids else None,
        gid=workspace.gid if host.own_uids else None,
        limits=_first_limits(request),
        layers=host.layers,
        read_only_paths=(*confinement.read_only_paths(request.allow_network), *options.read_only_paths),
        allow_network=request.allow_network,
        style=request.style,
        has_log=request.has_log,
        launcher_pid=os.getpid(),
        environment=kernel_environment(workspace, style=request.style, has_log=request.has_log),
        allow_loopback=options.allow_loopback,
        debugger=request.debugger,
        is_restart=is_restart,
    )


def _first_limits(request: Start) -> Limits:
    """Return the limits that a kernel starts with.

    A job's processor time is counted from the job's own start (`LimitCpu`), and a hard limit can be lowered later but
    not raised without privilege. Until then the kernel runs only our own code.
    """
    if request.style == "job":
        return msgspec.structs.replace(request.limits, cpu_seconds=_WAITING_CPU_SECONDS)
    return request.limits
