"""The launcher's answers to requests and its reaction to events: kernels end, the gateway goes away."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from kernel_spec.kernel.confinement import Host
from kernel_spec.launcher.event_loop import Loop, Timer
from kernel_spec.launcher.kernel import Kernel, KernelPhase
from kernel_spec.launcher.kernel_processes import KernelProcesses
from kernel_spec.launcher.limit_monitor import LimitMonitor
from kernel_spec.launcher.registry import Registry
from kernel_spec.launcher.starter import KernelStarter
from kernel_spec.launcher.terminate import send_signal
from kernel_spec.launcher.user_leases import WorkspaceError, WorkspaceUser
from kernel_spec.launcher.workspace_recycling import WorkspaceRecycler
from kernel_spec.launcher.workspaces import WorkspacePool
from kernel_spec.protocol import messages as m
from kernel_spec.protocol.channel import Channel, ChannelClosed, ChannelError, close_all
from kernel_spec.protocol.options import LauncherOptions
from kernel_spec.protocol.values import Cause, ExitReport, WorkspaceInfo
from kernel_spec.sandbox import SandboxError
from kernel_spec.sandbox.policy.plan import NETWORK_NAMESPACE

#: How long everything may take to end when the gateway is gone.
SHUTDOWN_SECONDS = 10.0
_NOT_CONFIRMED = "processes of the kernel do not end"


class RequestError(Exception):
    """A request cannot be carried out; `code` is for programs, the text for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class LauncherServer:
    """Carries out the requests of one gateway.

    Parameters
    ----------
    options : LauncherOptions
        Settings of the launcher.
    channel : Channel
        The control socket.
    """

    def __init__(self, options: LauncherOptions, channel: Channel) -> None:
        self._channel = channel
        self._loop = Loop()
        self._registry = Registry(self._loop, self._send)
        self._starter = KernelStarter(self._loop, options, self._registry, self._send)
        self._fork_server = self._starter.fork_server
        self._when_shut_down: list[Callable[[], None]] | None = None
        self._handlers: dict[type, Callable[[Any, list[int]], None]] = {
            m.Reserve: self._reserve,
            m.Start: self._start,
            m.Signal: self._signal,
            m.LimitCpu: self._limit_cpu,
            m.Stop: self._stop,
            m.Kill: self._kill,
            m.Remove: self._remove,
            m.Usage: self._usage,
            m.Status: self._status,
            m.Renew: self._renew,
            m.Shutdown: self._shutdown,
        }

    def start_fork_server(self) -> int:
        """Start the fork server, which imports while the caller examines the host, and return its pid."""
        self._fork_server.start()
        return self._fork_server.pid

    def stop_fork_server(self) -> None:
        """End the fork server of a launcher that never got to `run`."""
        self._fork_server.stop()

    def run(self, workspaces: WorkspacePool, host: Host) -> None:
        """Serve until the gateway is gone or asks for a shutdown; afterwards no process of any kernel lives.

        Parameters
        ----------
        workspaces : WorkspacePool
            The opened workspaces.
        host : Host
            The layers that this host allows.
        """
        self._workspaces = workspaces
        self._recycler = WorkspaceRecycler(self._loop, workspaces)
        self._host = host
        self._limit_monitor = LimitMonitor(
            self._loop,
            memory=host.watches_memory,
            disk=host.watches_disk,
            template_bytes=self._fork_server.anonymous_bytes,
            on_limit=self._on_limit,
        )
        self._starter.open(host, self._limit_monitor)
        self._send(host.hello(tuple(dict.fromkeys(user.gid for user in workspaces.users))))
        self._channel.set_blocking(False)
        self._loop.watch(self._channel.fileno(), self._on_request)
        self._loop.on_child_ended(self._reap)
        # Children that ended before the signals were handled.
        self._reap()
        self._loop.run()

    # ------------------------------------------------------------------ requests
    def _on_request(self) -> None:
        try:
            message, descriptors = self._channel.receive()
        except BlockingIOError:
            return
        except ChannelClosed:
            self._loop.unwatch(self._channel.fileno())
            self._shut_down()
            return
        except ChannelError as error:
            self._refuse(error.request_id, "bad_message", str(error))
            return
        try:
            self._handlers[type(message)](message, descriptors)
        except RequestError as error:
            self._refuse(message.id, error.code, str(error))
        except (OSError, WorkspaceError, SandboxError) as error:
            self._refuse(message.id, "launcher_failed", f"{type(error).__name__}: {error}")
        finally:
            close_all(descriptors)

    def _reserve(self, message: m.Reserve, _: list[int]) -> None:
        if self._registry.get(message.kernel_id) is not None:
            raise RequestError("kernel_exists", f"kernel {message.kernel_id} exists already")
        if self._when_shut_down is not None:
            raise RequestError("stopping", "the launcher is stopping")

        def reserved(user: WorkspaceUser, workspace: WorkspaceInfo) -> None:
            processes = KernelProcesses(
                workspace, own_uid=self._host.own_uids, unlinked_shm_bytes=self._host.unlinked_shm_bytes
            )
            self._registry.add(Kernel(message.kernel_id, user, workspace, processes))
            self._send(m.Reserved(message.id, workspace))

        may_become_free = any(
            kernel.phase in (KernelPhase.ENDING, KernelPhase.ENDED) for kernel in self._registry.all()
        )
        self._recycler.reserve(
            reserved,
            lambda reason: self._refuse(message.id, "no_workspace", reason),
            style=message.style,
            may_become_free=may_become_free,
        )

    def _start(self, message: m.Start, descriptors: list[int]) -> None:
        kernel = self._kernel(message.kernel_id)
        if kernel.phase not in (KernelPhase.RESERVED, KernelPhase.ENDED):
            raise RequestError("wrong_phase", f"kernel {message.kernel_id} is {kernel.phase.value}")
        if len(descriptors) != (3 if message.has_log else 2):
            raise RequestError("bad_message", f"{len(descriptors)} descriptors came with the start")
        if message.debugger and (NETWORK_NAMESPACE not in self._host.layers or message.allow_network):
            # The debugger's port accepts commands from everyone who reaches it.
            why = "a kernel with the network has none" if message.allow_network else "this host allows none"
            raise RequestError("no_debugger", f"the debugger needs a network namespace for the kernel, and {why}")
        outputs, descriptors[:] = list(descriptors), []
        self._starter.start(kernel, message, outputs)

    def _signal(self, message: m.Signal, _: list[int]) -> None:
        send_signal(self._kernel(message.kernel_id), message.number)
        self._send(m.Signalled(message.id))

    def _limit_cpu(self, message: m.LimitCpu, _: list[int]) -> None:
        kernel = self._kernel(message.kernel_id)
        kernel.limit_cpu(message.cpu_seconds)
        self._limit_monitor.watch(kernel)
        self._send(m.Limited(message.id))

    def _stop(self, message: m.Stop, _: list[int]) -> None:
        def stopped(report: ExitReport | None) -> None:
            if report is None:
                self._refuse(message.id, "not_confirmed", _NOT_CONFIRMED)
            else:
                self._send(m.Stopped(message.id, report))

        kernel = self._kernel(message.kernel_id)
        kernel.asked_to_end = kernel.asked_to_end or kernel.wait_status is None
        self._registry.stop(kernel, stopped)

    def _kill(self, message: m.Kill, _: list[int]) -> None:
        def killed(report: ExitReport | None) -> None:
            if report is None:
                self._refuse(message.id, "not_confirmed", _NOT_CONFIRMED)
            else:
                self._send(m.Killed(message.id, report))

        kernel = self._kernel(message.kernel_id)
        kernel.asked_to_end = kernel.asked_to_end or kernel.wait_status is None
        self._registry.terminate(kernel, killed)

    def _remove(self, message: m.Remove, _: list[int]) -> None:
        kernel = self._kernel(message.kernel_id)
        if kernel.phase not in (KernelPhase.ENDED, KernelPhase.RESERVED):
            raise RequestError("wrong_phase", f"kernel {message.kernel_id} is {kernel.phase.value}; kill it first")

        def recycled(problem: str | None) -> None:
            if problem is None:
                self._send(m.Removed(message.id))
            else:
                self._refuse(message.id, "not_removed", problem)

        self._recycle(kernel, recycled)

    def _usage(self, message: m.Usage, _: list[int]) -> None:
        kernel = self._kernel(message.kernel_id)
        usage = kernel.processes.usage(kernel.limits, self._fork_server.anonymous_bytes())
        kernel.peak_memory_bytes = max(kernel.peak_memory_bytes, usage.memory_bytes)
        kernel.cpu_seconds = max(kernel.cpu_seconds, usage.cpu_seconds)
        self._send(
            m.UsageReport(
                id=message.id,
                processes=usage.processes,
                memory_bytes=usage.memory_bytes,
                peak_memory_bytes=kernel.peak_memory_bytes,
                cpu_seconds=kernel.cpu_seconds,
                disk_bytes=kernel.processes.disk_bytes(kernel.limits.disk_bytes),
            )
        )

    def _status(self, message: m.Status, _: list[int]) -> None:
        status = {
            "layers": list(self._host.layers),
            "own_uids": self._host.own_uids,
            "workspaces": {"all": len(self._workspaces.users), "free": self._workspaces.free},
            "kernels": {kernel.kernel_id: kernel.phase.value for kernel in self._registry.all()},
            "plain_starts": self._starter.plain_starts,
            "fork_server": self._fork_server.status(),
        }
        self._send(m.StatusReport(message.id, status))

    def _renew(self, message: m.Renew, _: list[int]) -> None:
        self._fork_server.renew()
        self._send(m.Renewed(message.id))

    def _shutdown(self, message: m.Shutdown, _: list[int]) -> None:
        self._shut_down(lambda: self._send(m.ShutdownComplete(message.id)))

    def _kernel(self, kernel_id: str) -> Kernel:
        kernel = self._registry.get(kernel_id)
        if kernel is None:
            raise RequestError("no_kernel", f"there is no kernel {kernel_id}")
        return kernel

    # ------------------------------------------------------------------ ends
    def _on_limit(self, kernel: Kernel, cause: Cause, reason: str) -> None:
        kernel.limit_hit = (cause, reason)
        self._registry.terminate(kernel)

    def _reap(self) -> None:
        self._registry.reap(self._is_fork_server)

    def _is_fork_server(self, pid: int, status: int) -> bool:
        if pid != self._fork_server.pid:
            return False
        self._fork_server.on_ended(status)
        return True

    def _recycle(self, kernel: Kernel, then: Callable[[str | None], None]) -> None:
        try:
            kernel.processes.release()
        except SandboxError as error:
            then(str(error))
            return
        self._registry.forget(kernel)
        self._recycler.recycle(kernel.user, kernel.workspace.workspace_dir, then)

    # ------------------------------------------------------------------ shutdown
    def _shut_down(self, then: Callable[[], None] = lambda: None) -> None:
        if self._when_shut_down is not None:
            self._when_shut_down.append(then)
            return
        self._when_shut_down = [then]
        self._recycler.refuse_all("the launcher is stopping")
        self._fork_server.stop()
        deadline = self._loop.call_later(SHUTDOWN_SECONDS, self._loop.stop)
        for kernel in self._registry.all():
            kernel.asked_to_end = True
            self._registry.terminate(
                kernel,
                lambda report, kernel=kernel: self._recycle_at_shutdown(kernel, report, deadline),  # type: ignore[misc]
            )
        self._stop_when_empty(deadline)

    def _recycle_at_shutdown(self, kernel: Kernel, report: ExitReport | None, deadline: Timer) -> None:
        if report is not None and self._registry.get(kernel.kernel_id) is kernel:
            self._recycle(kernel, lambda _: self._stop_when_empty(deadline))

    def _stop_when_empty(self, deadline: Timer) -> None:
        if self._workspaces.free == len(self._workspaces.users) and self._when_shut_down is not None:
            deadline.cancel()
            for then in self._when_shut_down:
                then()
            self._when_shut_down = []
            self._loop.stop()

    # ------------------------------------------------------------------ answers
    def _refuse(self, request_id: int, code: str, message: str) -> None:
        self._send(m.Refused(request_id, code, message))

    def _send(self, message: m.Message, descriptors: Sequence[int] = ()) -> None:
        try:
            self._channel.send(message, descriptors)
        except ChannelClosed:
            # The loop will receive the end of file.
            return
        except BlockingIOError:
            # A gateway that leaves hundreds of answers unread hangs for good.
            print("launcher: the gateway does not read; giving up", file=sys.stderr, flush=True)  # noqa: T201
            self._shut_down()
