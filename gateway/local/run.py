"""One job on this machine: fetch, acquire, execute, stop, deliver."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from msgspec.structs import replace

from gateway.core.cancellation import StopSignal
from gateway.core.directories import remove
from gateway.core.errors import FailureCode, JobFailed
from gateway.core.events import JobLog, StateChanged
from gateway.core.job import Job, JobState, Verdict
from gateway.core.settings import Settings
from gateway.core.uploads import UploadPermit, Uploads
from gateway.jobs.delivery import Deliverer, JobOutputs
from gateway.jobs.table_use import used_tables
from gateway.local.execution import Execution
from gateway.local.held_kernels import HeldKernels
from gateway.local.kernel import JobKernel
from gateway.local.kernel_pool import KernelPool
from gateway.local.slots import Slots
from gateway.local.verdict import timeout_message
from gateway.storage import FetchedTable, ObjectClient, OpenOutput, Outbox, OutboxNote, fetch_tables
from gateway.storage.inputs.fetched_table import shown_alias, table_paths
from gateway.storage.inputs.linked import linked_tables

log = logging.getLogger(__name__)

#: Failures of this machine that may be over when the job runs again.
FAULTS_OF_MACHINE = frozenset(
    {
        FailureCode.LAUNCHER_LOST,
        FailureCode.KERNEL_START_FAILED,
        FailureCode.SANDBOX_FAILED,
        FailureCode.GATEWAY_DISK_FAILED,
    }
)

#: Suffix of the directory for second names of a job's tables.
KEPT_INPUTS = ".inputs"


@dataclass(slots=True, eq=False)
class Machine:
    """The parts that all jobs of this machine share.

    Attributes
    ----------
    settings : Settings
    jobs_dir : Path
        Holds the fetched inputs of all jobs that no kernel has taken yet.
    slots : Slots
    kernels : KernelPool
    held : HeldKernels
    deliverer : Deliverer
    client : ObjectClient
        Sends requests to the storage.
    outbox : Outbox
        Outputs that are not delivered yet.
    waiting : set of LocalRun
        Jobs that have no kernel yet: their tables are fetched, they are queued, or they acquire one.
    """

    settings: Settings
    jobs_dir: Path
    slots: Slots
    kernels: KernelPool
    held: HeldKernels
    deliverer: Deliverer
    client: ObjectClient
    outbox: Outbox
    waiting: set[LocalRun] = field(default_factory=set)


class LocalRun:
    """A `gateway.jobs.runner.JobRun` in a kernel of this machine; made by `LocalRunner.open`."""

    def __init__(
        self,
        machine: Machine,
        job: Job,
        job_log: JobLog,
        stop: StopSignal,
        execution_id: str,
        uploads: Uploads | None,
        permit: UploadPermit | None = None,
    ) -> None:
        self._machine = machine
        self._job = job
        self._log = job_log
        self._stop = stop
        self._execution_id = execution_id
        self._uploads = uploads
        self._permit = permit
        self._inputs_stem = machine.jobs_dir / execution_id
        self.has_slot = False
        self._kernel: JobKernel | None = None
        self._releasing: asyncio.Task[None] | None = None
        self._left_seconds = job.timeout_seconds
        self._outputs: JobOutputs | None = None
        self._verdict: Verdict | None = None
        self._stages: dict[str, float] = {}
        self._bytes_in = 0
        self.inputs: tuple[FetchedTable, ...] = ()
        self._answered = asyncio.Event()
        self._reclaimed = machine.outbox.reclaim(execution_id)
        self._is_delivered = False
        self._tables = used_tables(job)
        self._unfetched = {table.alias: None for table in self._tables}
        self._fetch_began = time.monotonic()
        self._fetch = asyncio.create_task(self._fetch_inputs(), name=f"fetch {execution_id}")

    @property
    def lost_verdict(self) -> Verdict | None:
        return self._verdict if self._verdict is not None and self._verdict.code in FAULTS_OF_MACHINE else None

    def take_slot(self) -> bool:
        self.has_slot = self._machine.slots.take()
        return self.has_slot

    async def execute(self) -> None:
        if self._reclaimed is not None:
            self._take_over(*self._reclaimed)
            return
        began = time.monotonic()
        try:
            self._log.emit(StateChanged(JobState.RUNNING, "fetch"))
            tables = await self._fetched()
            self._left_seconds -= time.monotonic() - began
            self._kernel = await self._acquire()
            self._log.emit(StateChanged(JobState.RUNNING, "execute"))
            verdict = await self._execute_in(self._kernel, tables)
        except JobFailed as failure:
            verdict = Verdict.of(failure)
            if self._tables:  # a fetch that still runs ends with the job, too late for its time to be reported
                self._stages.setdefault("fetch", time.monotonic() - self._fetch_began)
        self._verdict = replace(verdict, execution_seconds=time.monotonic() - began)

    def leave_slot(self) -> None:
        self._machine.slots.leave(self._answered, self._terminate)

    def fail(self, verdict: Verdict) -> None:
        self._verdict = verdict

    async def deliver(self) -> Verdict:
        self._machine.waiting.discard(self)
        self._log.emit(StateChanged(JobState.RUNNING, "deliver"))
        began = time.monotonic()
        verdict = await self._machine.deliverer.deliver(
            self._job,
            self._verdict or Verdict.internal(),
            self._outputs,
            self._log,
            self._stop,
            self._execution_id,
            self._permit,
        )
        self._is_delivered = verdict.code is not FailureCode.SHUTTING_DOWN
        self._stages["deliver"] = time.monotonic() - began
        stages = {**self._stages, **verdict.stages_seconds}
        return replace(verdict, stages_seconds=stages, bytes_in=self._bytes_in)

    async def close(self) -> None:
        self._answered.set()
        self._machine.waiting.discard(self)
        self._fetch.cancel()
        await asyncio.wait({self._fetch})
        if not self._fetch.cancelled():
            self._fetch.exception()  # looked at, so that asyncio does not report it as lost
        if self._outputs is not None:
            self._outputs.close()
        elif self._reclaimed is not None:  # it never got a slot
            self._reclaimed[1].close()
        if self._stop.cause is FailureCode.SHUTTING_DOWN and not self._is_delivered:
            self._machine.outbox.leave(self._execution_id)
        else:
            await self._machine.outbox.remove(self._execution_id)
        releasing = self._release_kernel()
        if releasing is not None:
            await asyncio.wait({releasing})
        await self._remove_inputs()
        # The job is answered and gone, so a kernel that boots delays nothing of it.
        self._machine.kernels.refill()

    async def _remove_inputs(self) -> None:
        """Remove the inputs that no kernel has taken, in a thread: Linux takes long for a large file."""
        for path in self._left_inputs():
            await asyncio.to_thread(remove, path)

    def _left_inputs(self) -> list[Path]:
        stem = self._inputs_stem
        paths = [p for n in range(len(self._tables)) for p in table_paths(stem.with_name(f"{stem.name}.{n}"))]
        # unlike Path.exists, this raises nothing, and nothing may keep a run from being closed
        return [path for path in (*paths, stem.with_suffix(KEPT_INPUTS)) if os.path.lexists(path)]

    def _take_over(self, note: OutboxNote, output: OpenOutput) -> None:
        """Take over the output that an earlier process computed for this job."""
        self._log.resume(note.log)
        self._log.line("stderr", "Its output was computed before the restart and is delivered now")
        self._verdict = note.verdict
        self._outputs = JobOutputs(output, note.manifest)

    async def _fetched(self) -> tuple[FetchedTable, ...]:
        """Return the inputs, or fail when the job's time is over or it is asked to end."""
        try:
            async with asyncio.timeout(self._left_seconds):
                return await self._stop.guard(asyncio.shield(self._fetch))
        except TimeoutError:
            self._fetch.cancel()
            tables = [*self._unfetched, *(table.alias for table in self._tables)]
            # a job without tables gets here too, if its timeout is shorter than the way to its kernel
            text = f"table {shown_alias(tables[0])} was still being fetched" if tables else "it had not begun"
            raise JobFailed(FailureCode.TIMEOUT, timeout_message(self._job.timeout_seconds, text)) from None

    async def _fetch_inputs(self) -> tuple[FetchedTable, ...]:
        if not self._tables or self._reclaimed is not None:
            return ()
        machine = self._machine
        try:
            machine.jobs_dir.mkdir(mode=0o700, parents=True, exist_ok=True)  # it may have been removed
        except OSError as error:
            text = f"The gateway could not make a directory for the job's tables: {error.strerror or error}"
            raise JobFailed(FailureCode.GATEWAY_DISK_FAILED, text) from None
        try:
            tables = await fetch_tables(
                machine.client,
                self._tables,
                machine.jobs_dir,
                machine.settings,
                self._log,
                self._uploads,
                self._unfetched,
                f"{self._execution_id}.",
            )
        finally:
            self._stages.setdefault("fetch", time.monotonic() - self._fetch_began)
        self._bytes_in = sum(table.bytes for table in tables)
        if machine.settings.keep_failed_jobs:
            self.inputs = linked_tables(tables, self._inputs_stem.with_suffix(KEPT_INPUTS))
        return tables

    async def _acquire(self) -> JobKernel:
        self._log.emit(StateChanged(JobState.RUNNING, "claim"))
        began = time.monotonic()
        try:
            return await self._stop.guard(self._machine.kernels.acquire())
        finally:
            self._machine.waiting.discard(self)
            self._stages["claim"] = time.monotonic() - began

    async def _execute_in(self, kernel: JobKernel, tables: tuple[FetchedTable, ...]) -> Verdict:
        machine = self._machine
        execution = Execution(
            kernel,
            self._job,
            self._log,
            self._stop,
            machine.held,
            machine.outbox,
            self._execution_id,
            max(0.0, self._left_seconds),
            self._permit,
        )
        try:
            return await execution.run(tables)
        finally:
            self._stages |= execution.stages_seconds
            self._outputs = execution.outputs
            if execution.is_held:
                self._kernel = None

    async def _terminate(self) -> None:
        """Return when no process of the job is left; its workspace is released afterwards, during the delivery."""
        if self._kernel is None:
            return
        try:
            await self._kernel.kill()
        except JobFailed as failure:
            if failure.code is not FailureCode.LAUNCHER_LOST:
                log.error("job %s: %s", self._execution_id, failure.message)
        self._release_kernel()

    def _release_kernel(self) -> asyncio.Task[None] | None:
        """Begin to release kernel and workspace, once; they are not needed during a long delivery."""
        if self._releasing is None and self._kernel is not None:
            self._releasing = asyncio.create_task(self._release(self._kernel), name=f"release {self._execution_id}")
        return self._releasing

    async def _release(self, kernel: JobKernel) -> None:
        await kernel.release()
        self._machine.kernels.refill()
