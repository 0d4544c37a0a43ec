"""One kernel from its start to its end, as the gateway sees it."""

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
from typing import TYPE_CHECKING, Any

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager

import kernel_spec
from gateway.errors import FailureCode, JobFailed
from gateway.kernels.conversation import KernelConversation
from gateway.kernels.output import OutputPipes
from kernel_spec.launcher_client import LauncherClient, LauncherError
from kernel_spec.limits import Limits
from kernel_spec.messages import ExitReport, SeatInfo, StartedBy
from kernel_spec.warmth import REHEARSAL_CODE

if TYPE_CHECKING:
    import zmq.asyncio

log = logging.getLogger(__name__)

START_SECONDS = 45.0
"""Deadline of a kernel's start, later than the launcher's own, which knows where a start stood when time was up. A
plain start takes 1.3 s on an idle machine, and a loaded one is not a reason to give up.
"""

KILL_SECONDS = 10.0
"""Deadline of a kill that must leave nothing alive; measured in milliseconds, so more than this is a fault."""

FIRST_CODE = "import transform_shim.job"
"""The first execute_request of a kernel that need not rehearse a job: it has the pages of one already, or a job is
waiting for it, which had better be done than rehearsed."""

SPEC_DIR = Path(kernel_spec.__file__).parent / "resources" / "transform"


@dataclass(frozen=True, slots=True)
class KernelParts:
    """What every kernel of one gateway shares."""

    launcher: LauncherClient
    context: zmq.asyncio.Context
    limits: Limits
    allow_network: bool
    line_cap_bytes: int


@dataclass(slots=True, eq=False)
class JobKernel:
    """A kernel that is up, subscribed to and warm, and knows of no job.

    `end` must be called for every kernel, exactly as for a file that was opened.
    """

    kernel_id: str
    seat: SeatInfo
    pipes: OutputPipes
    conversation: KernelConversation
    exited: asyncio.Future[ExitReport]
    parts: KernelParts
    started_at: float
    stages_seconds: dict[str, float] = field(default_factory=dict)
    started_by: StartedBy = "fork"
    _killing: asyncio.Task[ExitReport] | None = None

    @property
    def alive(self) -> bool:
        """Whether the process lives, as far as its parent has told."""
        return not self.exited.done()

    @property
    def age_seconds(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self.started_at

    async def bind(self, cpu_seconds: int) -> None:
        """Set the one limit that depends on the job: processor seconds, counted from now.

        Raises
        ------
        JobFailed
            When it could not be set: no job runs with less than was promised.
        """
        try:
            await self.parts.launcher.limit_cpu(self.kernel_id, cpu_seconds)
        except (LauncherError, TimeoutError) as error:
            raise JobFailed(FailureCode.SANDBOX_FAILED, f"The CPU limit could not be set: {error}") from error

    async def interrupt(self) -> None:
        """Send SIGINT: a courtesy that yields a traceback of where the job stood."""
        with contextlib.suppress(LauncherError):
            await self.parts.launcher.signal(self.kernel_id, signal.SIGINT)

    async def halt(self) -> ExitReport:
        """Return when nothing of this kernel can run any more, ever; `kill` must follow and ends the rest.

        Raises
        ------
        JobFailed
            When that could not be confirmed; the seat is then not used again.
        """
        return await self._ended(self.parts.launcher.halt(self.kernel_id))

    async def kill(self) -> ExitReport:
        """End everything of this kernel, and return when nothing of it lives; whoever asks again gets the same answer.

        Raises
        ------
        JobFailed
            When that could not be confirmed; the seat is then not used again.
        """
        if self._killing is None or (self._killing.done() and not _succeeded(self._killing)):
            self._killing = asyncio.create_task(self._ended(self.parts.launcher.kill(self.kernel_id)))
        return await asyncio.shield(self._killing)

    async def _ended(self, ending: Awaitable[ExitReport]) -> ExitReport:
        try:
            async with asyncio.timeout(KILL_SECONDS):
                return await ending
        except (LauncherError, TimeoutError) as error:
            raise JobFailed(
                FailureCode.INTERNAL, f"The end of the job's processes could not be confirmed: {error}"
            ) from error

    async def end(self) -> None:
        """Kill, close and remove: nothing of this kernel is left. Never raises."""
        self.conversation.close()
        try:
            await self.kill()
            async with asyncio.timeout(KILL_SECONDS):
                await self.parts.launcher.remove(self.kernel_id)
        except (JobFailed, LauncherError, TimeoutError) as error:
            log.error("kernel %s could not be cleared away: %s", self.kernel_id, error)
        finally:
            self.pipes.close()


async def start_kernel(parts: KernelParts, in_demand: Callable[[], bool] = lambda: False) -> JobKernel:
    """Start a kernel through the provisioner and return it ready for a job.

    Parameters
    ----------
    parts : KernelParts
        What it shares with the others.
    in_demand : callable
        Asked, once the kernel has booted, whether a job is waiting for it.

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
            return await _boot(parts, kernel_id, pipes, in_demand, undo)
    except BaseException as error:
        pipes.close()
        await _abandon(parts.launcher, kernel_id)
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
    """Start, greet and warm up a kernel; what is in `undo` is kept only when all of that succeeded."""
    began = time.monotonic()
    manager = AsyncKernelManager(kernel_name="transform", context=parts.context, transport="ipc")
    manager._kernel_spec = _spec()
    await manager.start_kernel(
        kernel_id=kernel_id,
        launcher=parts.launcher,
        limits=parts.limits,
        allow_network=parts.allow_network,
        output_fds=pipes.write_fds,
    )
    pipes.kernel_has_them()
    # the manager's own control socket, which only its shutdown_kernel would use and close: left open, its
    # descriptors stay until the garbage collector comes by (measured: 15 after 60 kernels)
    manager._close_control_socket()
    process = manager.provisioner.process  # type: ignore[union-attr]
    spawned = time.monotonic()
    conversation = KernelConversation(parts.context, manager.get_connection_info())
    undo.callback(conversation.close)
    await _unless_dead(conversation.welcome(), process.exited)
    welcomed = time.monotonic()
    code = FIRST_CODE if process.is_warm or in_demand() else REHEARSAL_CODE
    await _unless_dead(conversation.execute(code), process.exited)
    _forget_connection_file(manager)
    undo.pop_all()
    stages = {"start": spawned - began, "boot": welcomed - spawned, "warm_up": time.monotonic() - welcomed}
    return JobKernel(
        kernel_id, process.seat, pipes, conversation, process.exited, parts, began, stages, process.started_by
    )


@functools.cache
def _spec() -> KernelSpec:
    """Return the spec beside the provisioner's own code, not whichever of that name is installed for this user."""
    return KernelSpec.from_resource_dir(str(SPEC_DIR))


def _succeeded(task: asyncio.Task[ExitReport]) -> bool:
    return not task.cancelled() and task.exception() is None


def _start_failure(error: Exception) -> JobFailed:
    """Return what a job that waits for a kernel is told of a start that failed."""
    if isinstance(error, TimeoutError):
        text = f"The kernel was not ready within {START_SECONDS:g} s"
        return JobFailed(FailureCode.KERNEL_START_FAILED, text)
    if isinstance(error, LauncherError):
        sandbox = error.code == "sandbox_failed"
        code = FailureCode.SANDBOX_FAILED if sandbox else FailureCode.KERNEL_START_FAILED
        return JobFailed(code, f"The kernel did not start: {error}")
    # from inside jupyter_client or zmq: whoever waits for a kernel must hear of it, whatever it was
    log.error("a kernel could not be started", exc_info=error)
    return JobFailed(FailureCode.KERNEL_START_FAILED, f"The kernel did not start: {error}")


def _forget_connection_file(manager: AsyncKernelManager) -> None:
    """Remove the file: both sides have read it, and the key in it is nothing for a job's eyes."""
    Path(manager.connection_file).unlink(missing_ok=True)


async def _unless_dead(step: Coroutine[None, None, None], exited: asyncio.Future[ExitReport]) -> None:
    """Await a step of the start, but no longer than the process lives."""
    task = asyncio.ensure_future(step)
    watched: set[asyncio.Future[Any]] = {task, exited}
    try:
        await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            return
        report = exited.result()
        raise JobFailed(FailureCode.KERNEL_START_FAILED, f"The kernel died while it started: {report.detail}")
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


async def _abandon(launcher: LauncherClient, kernel_id: str) -> None:
    with contextlib.suppress(LauncherError, TimeoutError):
        async with asyncio.timeout(KILL_SECONDS):
            await launcher.kill(kernel_id)
            await launcher.remove(kernel_id)
