"""The start of a kernel through the provisioner, until it can run a job."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
import uuid
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.session import Session

import kernel_spec
from gateway.core.errors import FailureCode, JobFailed
from gateway.core.tasks import first_of, started
from gateway.local.kernel import KILL_SECONDS, JobKernel, KernelParts, failure_of
from gateway.local.kernel_client import KernelClient
from gateway.local.output.pipes import OutputPipes
from kernel_spec.client.async_client import LauncherClient, LauncherError
from kernel_spec.fork_server.preload import REHEARSAL_CODE
from kernel_spec.protocol.values import ExitReport

log = logging.getLogger(__name__)

#: jupyter_client logs each failed start with its traceback, and raises it as well. The pool reports it in one line.
_manager_log = log.getChild("manager")
_manager_log.addFilter(lambda record: not record.exc_info)

#: Deadline of a kernel's start. It is later than the launcher's own, whose error names the step that was reached. A
#: plain start takes 1.3 s on an idle machine, and load is not a reason to give up.
START_SECONDS = 45.0

SPEC_DIR = Path(kernel_spec.__file__).parent / "resources" / "transform"


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


def _start_failure(error: Exception) -> JobFailed:
    """Return the failure of a job that waits for a kernel whose start failed."""
    if isinstance(error, TimeoutError):
        text = f"The kernel was not ready within {START_SECONDS:g} s"
        return JobFailed(FailureCode.KERNEL_START_FAILED, text)
    if isinstance(error, LauncherError):
        sandbox = error.code == "sandbox_failed"
        code = FailureCode.SANDBOX_FAILED if sandbox else FailureCode.KERNEL_START_FAILED
        return failure_of(code, "The kernel did not start", error)
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
