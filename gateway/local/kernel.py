"""The gateway's side of one kernel, from its start to its end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import signal
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.session import Session

import kernel_spec
from gateway.core.errors import FailureCode, JobFailed
from gateway.core.tasks import first_of, started
from gateway.local.job_request import OutputRules
from gateway.local.kernel_client import KernelClient
from gateway.local.output.pipes import OutputPipes
from kernel_spec.client.async_client import LauncherClient, LauncherError
from kernel_spec.fork_server.preload import REHEARSAL_CODE
from kernel_spec.protocol.limits import Limits
from kernel_spec.protocol.values import ExitReport, StartedBy, WorkspaceInfo

if TYPE_CHECKING:
    import zmq.asyncio

log = logging.getLogger(__name__)

#: jupyter_client logs each failed start with its traceback, and raises it as well. The pool reports it in one line.
_manager_log = log.getChild("manager")
_manager_log.addFilter(lambda record: not record.exc_info)

#: Deadline of a kernel's start. It is later than the launcher's own, whose error names the step that was reached. A
#: plain start takes 1.3 s on an idle machine, and load is not a reason to give up.
START_SECONDS = 45.0

#: Deadline of a kill that must leave nothing alive; it takes milliseconds, so more than this is a fault.
KILL_SECONDS = 10.0

#: How long the report of an end may come after the first request that the launcher refuses because of it.
END_SECONDS = 5.0

SPEC_DIR = Path(kernel_spec.__file__).parent / "resources" / "transform"


@dataclass(frozen=True, slots=True)
class KernelParts:
    """The parts that all kernels of one gateway share.

    Attributes
    ----------
    launcher : LauncherClient
        Parent of the kernels.
    context : zmq.asyncio.Context
        Of `shared_context`.
    limits : Limits
        Of one job.
    allow_network : bool
        Whether jobs may open connections.
    line_cap_bytes : int
        Longest log line that is kept whole.
    rules : OutputRules
        How outputs and failures are written.
    """

    launcher: LauncherClient
    context: zmq.asyncio.Context
    limits: Limits
    allow_network: bool
    line_cap_bytes: int
    rules: OutputRules = field(default_factory=OutputRules)


@dataclass(slots=True, eq=False)
class JobKernel:
    """A kernel that is ready: booted, subscribed to, and without a job.

    `release` must be called for every kernel, as `close` for a file that was opened.

    Attributes
    ----------
    kernel_id : str
        Its id at the launcher.
    workspace : WorkspaceInfo
        Its user and directory.
    pipes : OutputPipes
        Its output.
    client : KernelClient
        Its ZeroMQ sockets.
    exited : Future of ExitReport
        Resolves when its process has ended; never fails.
    parts : KernelParts
        The parts that it shares with the other kernels.
    started_at : float
        `time.monotonic` seconds.
    stages_seconds : dict
        Seconds of its start by stage: ``start``, ``boot``, ``warm_up``.
    started_by : StartedBy
        How its process was made.
    """

    kernel_id: str
    workspace: WorkspaceInfo
    pipes: OutputPipes
    client: KernelClient
    exited: asyncio.Future[ExitReport]
    parts: KernelParts
    started_at: float
    stages_seconds: dict[str, float] = field(default_factory=dict)
    started_by: StartedBy = "fork"
    _killing: asyncio.Task[ExitReport] | None = None

    @property
    def alive(self) -> bool:
        """Whether the process is alive, by the last report of its parent."""
        return not self.exited.done()

    @property
    def is_lost(self) -> bool:
        """Whether it has ended with its launcher, and lost its workspace."""
        return self.exited.done() and self.exited.result().cause == "launcher_lost"

    @property
    def age_seconds(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self.started_at

    async def set_cpu_limit(self, cpu_seconds: int) -> None:
        """Set the only limit that depends on the job; does nothing if the kernel has ended.

        Parameters
        ----------
        cpu_seconds : int
            Processor seconds, counted from now.

        Raises
        ------
        JobFailed
            The limit could not be set, and no job runs without its limits.
        """
        try:
            await self.parts.launcher.limit_cpu(self.kernel_id, cpu_seconds)
        except (LauncherError, TimeoutError) as error:
            # something may end a ready kernel at any time; the job's verdict is then how it ended
            await asyncio.wait({self.exited}, timeout=END_SECONDS)
            if self.alive or self.is_lost:
                raise self._failure(FailureCode.SANDBOX_FAILED, "The CPU limit could not be set", error) from error

    async def interrupt(self) -> None:
        """Send SIGINT, so that `transform()` raises `KeyboardInterrupt` and the traceback shows the line."""
        with contextlib.suppress(LauncherError):
            await self.parts.launcher.signal(self.kernel_id, signal.SIGINT)

    async def stop(self) -> ExitReport:
        """Return when no process of this kernel can ever run again; `kill` must follow.

        Returns
        -------
        ExitReport
            How the kernel ended.

        Raises
        ------
        JobFailed
            That could not be confirmed; the workspace is then not used again.
        """
        return await self._confirmed(self.parts.launcher.stop(self.kernel_id))

    async def kill(self) -> ExitReport:
        """End all processes of this kernel and return when none lives. A repeated call gets the same answer.

        Returns
        -------
        ExitReport
            How the kernel ended.

        Raises
        ------
        JobFailed
            That could not be confirmed; the workspace is then not used again.
        """
        if self._killing is None or (self._killing.done() and not _succeeded(self._killing)):
            self._killing = asyncio.create_task(self._confirmed(self.parts.launcher.kill(self.kernel_id)))
        return await asyncio.shield(self._killing)

    async def _confirmed(self, report: Awaitable[ExitReport]) -> ExitReport:
        try:
            async with asyncio.timeout(KILL_SECONDS):
                return await report
        except (LauncherError, TimeoutError) as error:
            text = "The end of the job's processes could not be confirmed"
            raise self._failure(FailureCode.INTERNAL, text, error) from error

    def _failure(self, code: FailureCode, text: str, error: Exception) -> JobFailed:
        # the next launcher, which may have answered, does not know this kernel
        return _launcher_lost() if self.is_lost else _failure(code, text, error)

    async def release(self) -> None:
        """Kill the kernel, close its descriptors and release its workspace. Never raises."""
        self.client.close()
        if self.is_lost:
            self.pipes.close()
            return
        try:
            await self.kill()
            async with asyncio.timeout(KILL_SECONDS):
                await self.parts.launcher.remove(self.kernel_id)
        except (JobFailed, LauncherError, TimeoutError) as error:
            log.error("kernel %s could not be removed, which is tried again: %s", self.kernel_id, error)
            self.parts.launcher.remove_later(self.kernel_id)
        finally:
            self.pipes.close()


async def start_kernel(parts: KernelParts, in_demand: Callable[[], bool] = lambda: False) -> JobKernel:
    """Start a kernel through the provisioner.

    Parameters
    ----------
    parts : KernelParts
        The parts that it shares with the other kernels.
    in_demand : callable
        Called when the kernel has booted; returns whether a job waits for it.

    Returns
    -------
    JobKernel
        Ready for a job.

    Raises
    ------
    JobFailed
        ``kernel_start_failed`` or ``sandbox_failed``, with the reason; nothing is left of the attempt.
    """
    kernel_id = uuid.uuid4().hex
    try:
        pipes = OutputPipes(parts.line_cap_bytes)
    except OSError as error:  # no descriptors left
        raise _start_failure(error) from error
    try:
        async with asyncio.timeout(START_SECONDS), AsyncExitStack() as undo:
            await parts.launcher.available()
            return await _boot(parts, kernel_id, pipes, in_demand, undo)
    except BaseException as error:
        pipes.close()
        await _clear_failed_start(parts.launcher, kernel_id)
        if isinstance(error, Exception) and not isinstance(error, JobFailed):
            raise _start_failure(error) from error
        raise


async def _boot(
    parts: KernelParts,
    kernel_id: str,
    pipes: OutputPipes,
    in_demand: Callable[[], bool],
    undo: AsyncExitStack,
) -> JobKernel:
    """Start, subscribe to and warm up a kernel; `undo` is emptied only if all of that succeeded."""
    began = time.monotonic()
    # Step by step, because the manager's start_kernel sleeps for 10 ms and opens a socket that only its shutdown_kernel
    # uses. With one session for both, this takes a twelfth less of the gateway's processor time for a small job.
    session = Session()
    manager = AsyncKernelManager(kernel_name="transform", transport="ipc", log=_manager_log, session=session)
    manager._kernel_spec = _spec()
    command, options = await manager.pre_start_kernel(kernel_id=kernel_id, launcher=parts.launcher)
    connection = await manager.provisioner.launch_kernel(  # type: ignore[union-attr]
        command, limits=parts.limits, allow_network=parts.allow_network, output_fds=pipes.write_fds, **options
    )
    pipes.close_write_ends()
    process = manager.provisioner.process  # type: ignore[union-attr]
    spawned = time.monotonic()
    client = KernelClient(parts.context, connection, session)
    undo.callback(client.close)
    await _or_death(client.wait_subscribed(), process.exited)
    welcomed = time.monotonic()
    # a kernel that has the pages of a job already need not rehearse one; and a waiting job is better run than rehearsed
    needs_rehearsal = not (process.is_prefaulted or in_demand())
    await _or_death(client.execute(REHEARSAL_CODE) if needs_rehearsal else client.wait_serving(), process.exited)
    _forget_connection_file(manager)
    undo.pop_all()
    stages = {"start": spawned - began, "boot": welcomed - spawned, "warm_up": time.monotonic() - welcomed}
    return JobKernel(
        kernel_id, process.workspace, pipes, client, process.exited, parts, began, stages, process.started_by
    )


@functools.cache
def _spec() -> KernelSpec:
    """Return the spec of the provisioner's own package: another one of this name may be installed for this user."""
    return KernelSpec.from_resource_dir(str(SPEC_DIR))


def _succeeded(task: asyncio.Task[ExitReport]) -> bool:
    return not task.cancelled() and task.exception() is None


def _failure(code: FailureCode, text: str, error: Exception) -> JobFailed:
    """Return the failure for an error of the launcher."""
    if isinstance(error, LauncherError) and error.code == "launcher_lost":
        return _launcher_lost()
    return JobFailed(code, f"{text}: {str(error) or 'the launcher of kernels does not answer'}")


def _launcher_lost() -> JobFailed:
    return JobFailed(FailureCode.LAUNCHER_LOST, "The launcher of kernels ended, and the job's kernel with it")


def _start_failure(error: Exception) -> JobFailed:
    """Return the failure of a job that waits for a kernel whose start failed."""
    if isinstance(error, TimeoutError):
        text = f"The kernel was not ready within {START_SECONDS:g} s"
        return JobFailed(FailureCode.KERNEL_START_FAILED, text)
    if isinstance(error, LauncherError):
        sandbox = error.code == "sandbox_failed"
        code = FailureCode.SANDBOX_FAILED if sandbox else FailureCode.KERNEL_START_FAILED
        return _failure(code, "The kernel did not start", error)
    # from inside jupyter_client or zmq: a job that waits for a kernel must get an answer after any error
    log.error("a kernel could not be started", exc_info=error)
    return JobFailed(FailureCode.KERNEL_START_FAILED, f"The kernel did not start: {error}")


def _forget_connection_file(manager: AsyncKernelManager) -> None:
    """Remove the file: both sides have read it, and no job may see the key in it."""
    Path(manager.connection_file).unlink(missing_ok=True)


async def _or_death(step: Coroutine[None, None, None], exited: asyncio.Future[ExitReport]) -> None:
    """Await a step of the start, or fail when the process dies."""
    async with started(step) as (task,):
        await first_of(task, exited)
        if not task.done():
            text = f"The kernel died while it started: {exited.result().detail}"
            raise JobFailed(FailureCode.KERNEL_START_FAILED, text)
        task.result()


async def _clear_failed_start(launcher: LauncherClient, kernel_id: str) -> None:
    try:
        async with asyncio.timeout(KILL_SECONDS):
            await launcher.kill(kernel_id)
            await launcher.remove(kernel_id)
    except (LauncherError, TimeoutError) as error:
        if not isinstance(error, LauncherError) or error.code not in ("no_kernel", "launcher_lost"):
            launcher.remove_later(kernel_id)
