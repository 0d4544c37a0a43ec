"""Running jobs in kernels of this machine: fetch, claim, execute, kill, decide, deliver."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

from gateway.errors import FAILURES, FailureCode, JobFailed
from gateway.jobs.delivery import Deliverer, Results
from gateway.jobs.events import EventLog, Progress, StateChanged
from gateway.jobs.holding import HOLD_GRACE_SECONDS, RESULT_CAP_BYTES, Held, NotHeld, hold, read_small, told
from gateway.jobs.model import HeldKernel, Job, JobState, Verdict
from gateway.jobs.runner import RunnerStatus
from gateway.jobs.stop import StopSignal
from gateway.jobs.verdict import Ending, decide, parse_result
from gateway.kernels.held import HeldKernels
from gateway.kernels.kernel import JobKernel, KernelParts, start_kernel
from gateway.kernels.ready import ReadyKernels
from gateway.settings import Settings
from gateway.storage import Connections, FetchedTable, fetch_tables, open_output
from kernel_spec.launcher_client import LauncherClient
from kernel_spec.messages import ExitReport

log = logging.getLogger(__name__)

INTERRUPT_GRACE_SECONDS = 0.25
"""What a job gets between SIGINT and SIGKILL: pure Python, sleep and numpy need 0.1 to 0.26 s for their traceback
(measured).
"""

MANIFEST_CAP_BYTES = 64 << 20


class LocalRunner:
    """Runs jobs in ready kernels of one launcher.

    Parameters
    ----------
    settings : Settings
    parts : KernelParts
    deliverer : Deliverer
    connections : Connections, optional
        What storage is reached by.
    """

    def __init__(
        self, settings: Settings, parts: KernelParts, deliverer: Deliverer, connections: Connections | None = None
    ) -> None:
        self.settings = settings
        self.parts = parts
        self.deliverer = deliverer
        self.connections = connections
        self.jobs_dir = settings.state_dir / "jobs"
        self.held = HeldKernels(settings.state_dir / "run" / "held", settings.held_kernels)
        #: Jobs that have no kernel yet: they are fetched for, they queue, or they claim.
        self.waiting: set[LocalRun] = set()
        self.kernels = ReadyKernels(
            lambda: start_kernel(parts, lambda: len(self.waiting) > self.kernels.ready),
            settings.slots + settings.ready_kernels,
            settings.ready_kernel_max_age_seconds,
        )

    def start(self) -> None:
        """Begin to boot kernels; what jobs of a dead gateway left is removed first."""
        self._clear_directories()
        self.held.start()
        self.kernels.fill()

    def open(self, job: Job, log: EventLog, stop: StopSignal, execution_id: str) -> LocalRun:
        """Take on a job; its inputs are fetched from now on."""
        run = LocalRun(self, job, log, stop, execution_id)
        self.waiting.add(run)
        return run

    def status(self) -> RunnerStatus:
        """Return what is known without asking anybody."""
        counters = self.kernels.counters
        failure = self.kernels.last_failure
        launcher: LauncherClient = self.parts.launcher
        return RunnerStatus(
            healthy=launcher.alive and (self.kernels.ready > 0 or failure is None),
            ready_kernels={
                "ready": self.kernels.ready,
                "starting": self.kernels.starting,
                **dataclasses.asdict(counters),
            },
            # the code only: the text may name paths of this machine, and the status needs no token
            kernels={
                "last_start_failure": str(failure.code) if failure else None,
                "held": len(self.held.facts()),
                "held_limit": self.held.limit,
            },
            sandbox={**launcher.sandbox_status(), "gateway_has_root": os.geteuid() == 0},
            fork_server=launcher.fork_server_status(),
        )

    def held_kernels(self) -> list[HeldKernel]:
        """Return what is held for inspection or as a console, oldest first."""
        return self.held.facts()

    async def release(self, name: str) -> None:
        """End a held kernel; raises `NotFound`."""
        await self.held.release(name)

    async def open_console(self, seconds: float) -> HeldKernel:
        """Take a ready kernel out for a person; raises `Conflict` when no more may be held."""
        return await self.held.console(self.kernels.claim, seconds)

    async def aclose(self) -> None:
        """End every kernel."""
        await self.held.aclose()
        await self.kernels.aclose()
        self._clear_directories()

    def _clear_directories(self) -> None:
        for directory in (self.jobs_dir, self.settings.state_dir / "uploads"):
            directory.mkdir(mode=0o700, exist_ok=True)
            for leftover in directory.iterdir():
                shutil.rmtree(leftover, ignore_errors=True)


class LocalRun:
    """One job on its way through this machine; see `gateway.jobs.runner.JobRun`."""

    def __init__(self, runner: LocalRunner, job: Job, log: EventLog, stop: StopSignal, execution_id: str) -> None:
        self._runner = runner
        self._job = job
        self._log = log
        self._stop = stop
        self._execution_id = execution_id
        self._job_dir: Path = runner.jobs_dir / execution_id
        self._kernel: JobKernel | None = None
        self._results: Results | None = None
        self._verdict: Verdict | None = None
        self._stages: dict[str, float] = {}
        self._bytes_in = 0
        self._fetch_began = time.monotonic()
        self._fetch = asyncio.create_task(self._fetch_inputs(), name=f"fetch {execution_id}")

    async def execute(self) -> None:
        """Run the job until its verdict is known and nothing of it can run any more, but for a kernel that is held."""
        began = time.monotonic()
        try:
            self._log.emit(StateChanged(JobState.RUNNING, "fetch"))
            tables = await self._stop.guard(asyncio.shield(self._fetch))
            self._log.emit(StateChanged(JobState.RUNNING, "claim"))
            claimed = time.monotonic()
            try:
                self._kernel = await self._stop.guard(self._runner.kernels.claim())
            finally:
                self._runner.waiting.discard(self)
                self._stages["claim"] = time.monotonic() - claimed
            self._log.emit(StateChanged(JobState.RUNNING, "execute"))
            self._verdict = await self._run_in(self._kernel, tables)
        except JobFailed as failure:
            self._verdict = Verdict(failure.code, failure.message, failure.exit_code)
            if self._job.tables:  # a fetch that still goes on ends with the job, too late to be told
                self._stages.setdefault("fetch", time.monotonic() - self._fetch_began)
        self._verdict = dataclasses.replace(self._verdict, execution_seconds=time.monotonic() - began)

    async def settle(self) -> None:
        """Return when nothing of the job lives."""
        if self._kernel is not None:
            try:
                await self._kernel.kill()
            except JobFailed as failure:
                log.error("job %s: %s", self._execution_id, failure.message)

    def fail(self, verdict: Verdict) -> None:
        """Take the verdict of a job that never got a slot."""
        self._verdict = verdict

    async def deliver(self) -> Verdict:
        """Bring results and log to where the request asked."""
        self._runner.waiting.discard(self)
        verdict = self._verdict
        if verdict is None:
            kind = FAILURES[FailureCode.INTERNAL]
            verdict = Verdict(FailureCode.INTERNAL, kind.meaning, kind.exit_code)
        self._log.emit(StateChanged(JobState.RUNNING, "deliver"))
        began = time.monotonic()
        verdict = await self._runner.deliverer.deliver(
            self._job, verdict, self._results, self._log, self._stop, self._execution_id
        )
        self._stages["deliver"] = time.monotonic() - began
        stages = {**self._stages, **verdict.stages_seconds}
        return dataclasses.replace(verdict, stages_seconds=stages, bytes_in=self._bytes_in)

    async def close(self) -> None:
        """Free everything that the job held."""
        self._runner.waiting.discard(self)
        self._fetch.cancel()
        await asyncio.wait({self._fetch})
        if not self._fetch.cancelled():
            self._fetch.exception()  # looked at, so that asyncio does not report it as lost
        if self._results is not None:
            self._results.close()
        if self._kernel is not None:
            await self._kernel.end()
        for directory in (self._job_dir, self._job.upload_dir):
            if directory is not None:
                await asyncio.to_thread(shutil.rmtree, directory, True)
        # The job is answered and gone, so a kernel that boots is in nobody's way.
        self._runner.kernels.fill()

    async def _fetch_inputs(self) -> tuple[FetchedTable, ...]:
        if not self._job.tables:
            return ()
        self._job_dir.mkdir(mode=0o700)
        runner = self._runner
        try:
            tables = await fetch_tables(self._job.tables, self._job_dir, runner.settings, self._log, runner.connections)
        finally:
            self._stages.setdefault("fetch", time.monotonic() - self._fetch_began)
        self._bytes_in = sum(table.bytes for table in tables)
        return tables

    async def _run_in(self, kernel: JobKernel, tables: tuple[FetchedTable, ...]) -> Verdict:
        job, limits = self._job, self._runner.parts.limits
        cpu_seconds = max(limits.cpu_seconds, math.ceil(job.timeout_seconds))
        limits = dataclasses.replace(limits, cpu_seconds=cpu_seconds)
        await kernel.bind(cpu_seconds)
        request = self._shim_request(kernel, tables)
        kernel.pipes.attach(self._log)
        began = time.monotonic()
        held: Held | None = None
        not_held = ""
        try:
            stopped, answered = await self._watch(kernel, request)
            ended = time.monotonic()
            if job.hold_seconds:
                held, not_held = await self._hold(kernel, stopped, answered=answered)
        except BaseException:
            await kernel.kill()
            raise
        # What it wrote cannot change from here on; `settle` waits until its processes are taken apart as well.
        report = await kernel.halt() if held is None else held.report
        self._stages["execute"] = ended - began
        self._stages["kill" if held is None else "hold"] = time.monotonic() - ended
        if held is None:
            kernel.pipes.drain()
        ending = Ending(
            stopped=stopped,
            report=report,
            result=held.result if held else parse_result(read_small(kernel, "result.json", RESULT_CAP_BYTES)),
            limits=limits,
            timeout_seconds=job.timeout_seconds,
            execution_seconds=ended - began,
        )
        verdict = decide(ending, job.output_format)
        if held is not None:
            return dataclasses.replace(verdict, held=held.kernel)
        if verdict.ok:
            self._results = self._open_results(kernel, report)
        elif not_held:
            self._log.line("stderr", f"The kernel of this job is not held: {not_held}")
        return dataclasses.replace(verdict, not_held="" if verdict.ok else not_held)

    async def _hold(self, kernel: JobKernel, stopped: FailureCode | None, *, answered: bool) -> tuple[Held | None, str]:
        """Give a failed job's kernel away to be held, or return why that is not done."""
        try:
            held = await hold(self._runner.held, kernel, self._job, stopped, answered=answered)
        except NotHeld as reason:
            return None, str(reason)
        self._kernel = None
        self._log.line("stderr", told(held.kernel))
        return held, ""

    async def _watch(self, kernel: JobKernel, request: str) -> tuple[FailureCode | None, bool]:
        """Return when it is time to look: why the gateway ends it, if it does, and whether the job says it is done."""
        answered = asyncio.ensure_future(self._answered(kernel, request))
        stop = asyncio.ensure_future(self._stop.wait())
        try:
            watched: set[asyncio.Future[Any]] = {answered, stop, kernel.exited}
            done, _ = await asyncio.wait(
                watched, timeout=self._job.timeout_seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if answered in done or kernel.exited in done:
                return None, answered in done
            stopped = self._stop.cause or FailureCode.TIMEOUT
            await kernel.interrupt()
            watched.discard(stop)
            grace = INTERRUPT_GRACE_SECONDS + (HOLD_GRACE_SECONDS if self._job.hold_seconds else 0)
            await asyncio.wait(watched, timeout=grace, return_when=asyncio.FIRST_COMPLETED)
            return stopped, answered.done()
        finally:
            for task in (answered, stop):
                task.cancel()
            await asyncio.wait({answered, stop})

    async def _answered(self, kernel: JobKernel, request: str) -> None:
        """Execute the request; return at the shim's last word or the kernel's answer, whichever comes first."""
        done = asyncio.ensure_future(kernel.pipes.done())
        replied = asyncio.ensure_future(kernel.conversation.execute(request, kernel.pipes.feed_text, is_job=True))
        try:
            await asyncio.wait({done, replied}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (done, replied):
                task.cancel()
            await asyncio.wait({done, replied})

    def _shim_request(self, kernel: JobKernel, tables: tuple[FetchedTable, ...]) -> str:
        """Move the inputs into the seat, and return the code of the one execute_request."""
        seat, limits = kernel.seat, self._runner.parts.limits
        out_dir = Path(seat.out_dir)
        request: dict[str, Any] = {
            "version": 1,
            "code": self._job.code,
            "library": {module.name: module.source for module in self._job.library},
            "tables": [_moved(table, Path(seat.inputs_dir)) for table in tables],
            "output_format": self._job.output_format,
            "output_path": str(out_dir / "output"),
            "manifest_path": str(out_dir / "output-manifest.json"),
            "result_path": str(out_dir / "result.json"),
            "work_dir": seat.work_dir,
            "limits": dataclasses.asdict(limits),
            "hold": self._job.hold_seconds > 0,
        }
        return f'__import__("transform_shim.job", fromlist=["run"]).run({json.dumps(request)!r})'

    def _open_results(self, kernel: JobKernel, report: ExitReport) -> Results:
        """Open what the job wrote; only now, when nothing lives that could change it."""
        out_dir, uid = Path(kernel.seat.out_dir), kernel.seat.uid
        output = open_output(out_dir / "output", owner_uid=uid, max_bytes=self._runner.settings.file_size_bytes)
        try:
            manifest = read_small(kernel, "output-manifest.json", MANIFEST_CAP_BYTES)
            if manifest is None:
                raise JobFailed(
                    FailureCode.OUTPUT_MISSING, "The job's manifest is missing or is not a regular file of its own"
                )
        except BaseException:
            output.close()
            raise
        self._log.emit(Progress("write", None, None, output.size_bytes))
        return Results(output, manifest)


def _moved(table: FetchedTable, inputs_dir: Path) -> dict[str, Any]:
    data_path = table.data_path.rename(inputs_dir / table.data_path.name)
    manifest_path = table.manifest_path and table.manifest_path.rename(inputs_dir / table.manifest_path.name)
    return {
        "alias": table.alias,
        "data_path": str(data_path),
        "manifest_path": str(manifest_path) if manifest_path else None,
        "data_format": table.data_format,
        "compression": table.compression,
    }
