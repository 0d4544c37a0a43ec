"""The gateway's side of the launcher, for asyncio.

`LauncherClient.spawn` blocks and needs no loop: the gateway calls it while it still has its privileges. `attach` then
reads the socket in the running loop. Every request has a deadline. After a missed deadline the connection stays open: a
late answer is dropped.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar

from kernel_spec.client.fork_server_state import ForkServerState
from kernel_spec.client.kernel_process import KernelProcess
from kernel_spec.client.link import LauncherLink
from kernel_spec.client.live_kernels import LiveKernels
from kernel_spec.client.process import LauncherError, LauncherProcess
from kernel_spec.protocol.channel import close_all
from kernel_spec.protocol.limits import Limits
from kernel_spec.protocol.messages import (
    Answer,
    Exited,
    ForkServerChanged,
    Hello,
    Kill,
    Killed,
    LimitCpu,
    Limited,
    Message,
    Remove,
    Removed,
    Renew,
    Renewed,
    Request,
    Reserve,
    Reserved,
    Signal,
    Signalled,
    Start,
    Started,
    Status,
    StatusReport,
    Stop,
    Stopped,
    Usage,
    UsageReport,
)
from kernel_spec.protocol.options import LauncherOptions
from kernel_spec.protocol.values import ExitReport, Style, WorkspaceInfo

__all__ = ["KernelProcess", "LauncherClient", "LauncherError", "LauncherOptions"]

A = TypeVar("A", bound=Answer)

ANSWER_SECONDS = 10.0
#: A directory with a hundred thousand files takes seconds.
REMOVE_SECONDS = 60.0
#: Pause before a removal that failed is tried again.
REMOVE_AGAIN_SECONDS = 5.0
#: Longer than the launcher's own deadline for a start, so that its reason arrives.
START_SECONDS = 40.0

#: Longer than the launcher waits for a fork server, 60 s.
RENEW_SECONDS = 70.0


class LauncherClient:
    """The gateway's side of one launcher.

    Parameters
    ----------
    process : LauncherProcess
        A launcher that is ready; this owns it.

    Examples
    --------
    >>> async with LauncherClient.spawn(LauncherOptions(state_dir="/var/lib/transform")) as launcher:
    ...     workspace = await launcher.reserve("k1")
    ...     write_connection_file(workspace)
    ...     process = await launcher.start_kernel("k1", output_fds=(out, err, log))
    ...     report = await launcher.kill("k1")
    ...     await launcher.remove("k1")
    """

    def __init__(self, process: LauncherProcess) -> None:
        self._process = process
        self._kernels = LiveKernels()
        self._link = LauncherLink(process, self._on_event, self._kernels.end_all)
        self._ids = itertools.count(1)
        self._fork_server = ForkServerState()
        self._removals: set[asyncio.Task[None]] = set()
        self._closed = False

    @classmethod
    def spawn(cls, options: LauncherOptions, *, is_supervised: bool = False) -> Self:
        """Start a launcher with the caller's present privileges, and wait until it is ready.

        Parameters
        ----------
        options : LauncherOptions
            Settings of the launcher.
        is_supervised : bool
            Whether a launcher that ends is restarted with the same privileges and settings. Its kernels and workspaces
            are gone then.

        Returns
        -------
        LauncherClient

        Raises
        ------
        LauncherError
            It did not start; the text says why.
        """
        return cls(LauncherProcess(options, is_supervised=is_supervised))

    @property
    def hello(self) -> Hello:
        """The launcher's message about itself and the host when it was ready."""
        return self._link.hello

    @property
    def pid(self) -> int:
        """Process id of the launcher."""
        return self._link.hello.pid

    @property
    def alive(self) -> bool:
        """Whether the launcher runs and is ready, as far as its socket shows."""
        return not self._closed and self._link.is_up

    @property
    def restarts(self) -> int:
        """Number of launchers that followed the first one."""
        return self._link.restarts

    async def __aenter__(self) -> Self:
        await self.attach()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def attach(self) -> None:
        """Read the launcher's answers in the running loop from now on."""
        self._link.attach()
        fork_server = (await self.status()).get("fork_server")
        if isinstance(fork_server, dict):
            self._fork_server.set_initial(str(fork_server["state"]), str(fork_server["reason"]))

    async def lost(self) -> None:
        """Return when the launcher is gone and no other follows; its kernels are then gone too.

        Raises
        ------
        RuntimeError
            `attach` was not called.
        """
        await self._link.lost()

    async def available(self) -> None:
        """Return when the launcher accepts requests.

        Raises
        ------
        LauncherError
            ``launcher_lost``: it is gone, and no other follows.
        """
        await self._link.available()

    def on_restart(self, callback: Callable[[], None]) -> None:
        """Set the function that is called, in the loop, when a restarted launcher accepts requests."""
        self._link.on_restart(callback)

    async def aclose(self) -> None:
        """Kill every kernel and end the launcher; its workspaces are removed when this returns."""
        self._detach()
        if not self._closed:
            self._closed = True
            await asyncio.to_thread(self._process.close)

    def close(self) -> None:
        """Do the same as `aclose`, for callers without a loop; safe to call twice."""
        self._detach()
        if not self._closed:
            self._closed = True
            self._process.close()

    # ------------------------------------------------------------------ requests
    async def reserve(self, kernel_id: str, style: Style = "job") -> WorkspaceInfo:
        """Reserve a free workspace for a kernel; `remove` frees it.

        Parameters
        ----------
        kernel_id : str
            A new id for the kernel.
        style : Style
            Whether the kernel will serve one job, or a notebook.

        Returns
        -------
        WorkspaceInfo

        Raises
        ------
        LauncherError
            ``no_workspace``: all are taken.
        """
        answer = await self._ask(Reserve(next(self._ids), kernel_id, style), Reserved)
        self._kernels.reserved(kernel_id, answer.workspace)
        return answer.workspace

    async def start_kernel(
        self,
        kernel_id: str,
        *,
        output_fds: tuple[int, ...],
        limits: Limits | None = None,
        style: Style = "job",
        allow_network: bool = False,
        plain: bool = False,
        has_clients: bool = False,
    ) -> KernelProcess:
        """Start the kernel of a reserved workspace over ``<workspace>/ipc/connection.json``.

        Parameters
        ----------
        kernel_id : str
            Of a reserved workspace, or of one whose kernel was killed.
        output_fds : tuple of int
            Standard output, standard error and, if there are three, the log pipe. The caller's copies stay open.
        limits : Limits or None
            Limits of all processes of the kernel; the processor time of a job counts from `limit_cpu`.
        style : Style
            Whether the kernel serves one job, or a notebook.
        allow_network : bool
            Allow the network.
        plain : bool
            Do not use the fork server.
        has_clients : bool
            Clients may have begun to connect.

        Returns
        -------
        KernelProcess
            Clients can connect to it.

        Raises
        ------
        LauncherError
            ``kernel_start_failed`` or ``sandbox_failed`` with the reason; the workspace must still be removed.
        """
        request = Start(
            id=next(self._ids),
            kernel_id=kernel_id,
            limits=limits or Limits(),
            style=style,
            allow_network=allow_network,
            plain=plain,
            has_log=len(output_fds) > 2,
            has_clients=has_clients,
        )
        self._kernels.starting(kernel_id)
        answer, (pidfd,) = await self._link.exchange(request, Started, START_SECONDS, output_fds)
        return self._kernels.started(kernel_id, answer, pidfd)

    async def signal(self, kernel_id: str, number: int) -> None:
        """Send a signal to the kernel's process group; does nothing if it has ended.

        Raises
        ------
        LauncherError
            There is no such kernel.
        """
        await self._ask(Signal(next(self._ids), kernel_id, int(number)), Signalled)

    async def limit_cpu(self, kernel_id: str, cpu_seconds: int) -> None:
        """Limit the processor time of all processes of the kernel, counted from now.

        Raises
        ------
        LauncherError
            The kernel has ended.
        """
        await self._ask(LimitCpu(next(self._ids), kernel_id, cpu_seconds), Limited)

    async def stop(self, kernel_id: str) -> ExitReport:
        """Return when no process of a kernel can run any more; `kill` must follow and ends frozen ones.

        Returns
        -------
        ExitReport
            The facts about its end that are known so far.

        Raises
        ------
        LauncherError
            ``not_confirmed``: a process does not end. ``no_kernel``: it was removed or never existed.
        """
        return (await self._ask(Stop(next(self._ids), kernel_id), Stopped)).report

    async def kill(self, kernel_id: str) -> ExitReport:
        """Kill all processes of a kernel, and return when none lives; safe to repeat.

        Raises
        ------
        LauncherError
            ``not_confirmed``: a process does not end. ``no_kernel``: it was removed or never existed.
        """
        return (await self._ask(Kill(next(self._ids), kernel_id), Killed)).report

    async def remove(self, kernel_id: str) -> None:
        """Remove the workspace's directory and free the workspace, after `kill`.

        Raises
        ------
        LauncherError
            The kernel was not killed, or its directory cannot be removed.
        """
        await self._ask(Remove(next(self._ids), kernel_id), Removed, seconds=REMOVE_SECONDS)
        self._kernels.removed(kernel_id)

    def remove_later(self, kernel_id: str) -> None:
        """Kill a kernel and remove its workspace as soon as the launcher answers and confirms the end.

        A launcher that was stopped or waited for a disk would otherwise have a workspace less for good.
        """
        if not self._closed:
            task = asyncio.get_running_loop().create_task(self._remove_until_done(kernel_id))
            self._removals.add(task)
            task.add_done_callback(self._removals.discard)

    async def _remove_until_done(self, kernel_id: str) -> None:
        while True:
            await asyncio.sleep(REMOVE_AGAIN_SECONDS)
            try:
                await self.kill(kernel_id)
                await self.remove(kernel_id)
            except LauncherError as error:
                if error.code not in ("no_kernel", "launcher_lost"):
                    continue
            return

    async def usage(self, kernel_id: str) -> UsageReport:
        """Return what all processes of the kernel use now."""
        return await self._ask(Usage(next(self._ids), kernel_id), UsageReport)

    async def status(self) -> dict[str, object]:
        """Return layers, workspaces, kernels, fork server and counters."""
        return (await self._ask(Status(next(self._ids)), StatusReport)).status

    async def renew(self) -> None:
        """Replace the fork server by one with the current added packages; return when it is ready or has failed.

        Raises
        ------
        LauncherError
            The launcher is gone.
        TimeoutError
            Neither happened within `RENEW_SECONDS`.
        """
        await self._ask(Renew(next(self._ids)), Renewed)
        async with asyncio.timeout(RENEW_SECONDS):
            while self._fork_server.status()["state"] == "starting":
                await self._fork_server.changed()

    async def _ask(self, request: Request, expected: type[A], seconds: float = ANSWER_SECONDS) -> A:
        answer, descriptors = await self._link.exchange(request, expected, seconds)
        close_all(descriptors)
        return answer

    # ------------------------------------------------------------------ known without a request
    def sandbox_status(self) -> dict[str, object]:
        """Return the sandbox report of the launcher's start, and the layers in use."""
        hello = self.hello
        return {
            **hello.report,
            "used_layers": list(hello.layers),
            "own_uids": hello.own_uids,
            "notes": list(hello.notes),
        }

    def fork_server_status(self) -> dict[str, object]:
        """Return the last reported state of the fork server, its reason, and the number of restarts."""
        return self._fork_server.status()

    async def fork_server_changed(self) -> None:
        """Return at the next change of the fork server's state."""
        await self._fork_server.changed()

    # ------------------------------------------------------------------ events
    def _on_event(self, message: Message) -> None:
        if isinstance(message, Exited):
            self._kernels.exited(message.kernel_id, message.report)
        elif isinstance(message, ForkServerChanged):
            self._fork_server.on_changed(message)

    def _detach(self) -> None:
        for task in self._removals:
            task.cancel()
        self._link.detach()
        self._kernels.end_all()
