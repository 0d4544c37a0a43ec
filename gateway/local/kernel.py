"""The gateway's side of a kernel that has started, until its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gateway.core.errors import FailureCode, JobFailed
from gateway.local.job_request import OutputRules
from gateway.local.kernel_client import KernelClient
from gateway.local.output.pipes import OutputPipes
from kernel_spec.client.async_client import LauncherClient, LauncherError
from kernel_spec.protocol.limits import Limits
from kernel_spec.protocol.values import ExitReport, StartedBy, WorkspaceInfo

if TYPE_CHECKING:
    import zmq.asyncio

log = logging.getLogger(__name__)

#: Deadline of a kill that must leave nothing alive; it takes milliseconds, so more than this is a fault.
KILL_SECONDS = 10.0

#: How long the report of an end may come after the first request that the launcher refuses because of it.
END_SECONDS = 5.0


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
        return _launcher_lost() if self.is_lost else failure_of(code, text, error)

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


def failure_of(code: FailureCode, text: str, error: Exception) -> JobFailed:
    """Return the failure for an error of the launcher."""
    if isinstance(error, LauncherError) and error.code == "launcher_lost":
        return _launcher_lost()
    return JobFailed(code, f"{text}: {str(error) or 'the launcher of kernels does not answer'}")


def _launcher_lost() -> JobFailed:
    return JobFailed(FailureCode.LAUNCHER_LOST, "The launcher of kernels ended, and the job's kernel with it")


def _succeeded(task: asyncio.Task[ExitReport]) -> bool:
    return not task.cancelled() and task.exception() is None
