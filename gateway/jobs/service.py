"""Accepting jobs, letting them wait their turn, and answering for them: the one object that the HTTP handlers talk
to.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
import uuid
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from gateway.errors import FAILURES, Conflict, FailureCode, JobFailed, NotFound, QueueFull, ShuttingDown
from gateway.jobs.events import EventLog, Finished, StateChanged
from gateway.jobs.model import HeldKernel, Job, JobState, KeptDelivery, RequestId, Verdict
from gateway.jobs.runner import JobRun, JobRunner
from gateway.jobs.stop import StopSignal
from gateway.jobs.store import JobRecord, JobStore, MemoryStore
from gateway.settings import Settings
from gateway.storage.embedded_s3 import EmbeddedS3
from gateway.storage.results import ResultStore

log = logging.getLogger(__name__)

CANCEL_GRACE_SECONDS = 5.0
"""How long a drain waits for jobs that were told to end; a kill takes milliseconds, an upload of events may not."""


ANSWER_FIRST_SECONDS = 0.025
"""How long the end of a job's processes lets the job's answer go first while nobody waits for the slot. Taking apart a
kernel takes a core for 10 ms, and a small answer some 5 (measured on two cores, of which the store needs one).
"""


@dataclass(slots=True)
class Counters:
    """What the first public runner counted, and the failures by code."""

    total_requests: int = 0
    completed: int = 0
    succeeded: int = 0
    failed: int = 0
    timeouts: int = 0
    rejected: int = 0
    cancelled: int = 0
    total_execution_seconds: float = 0.0
    failures_by_code: dict[str, int] = field(default_factory=dict)

    def count(self, verdict: Verdict) -> None:
        """Count one finished job."""
        self.completed += 1
        self.total_execution_seconds += verdict.execution_seconds
        if verdict.code is None:
            self.succeeded += 1
            return
        self.failed += 1
        self.timeouts += verdict.timed_out
        self.cancelled += verdict.cancelled
        self.failures_by_code[verdict.code] = self.failures_by_code.get(verdict.code, 0) + 1


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """A look at the whole gateway; nothing in it is secret."""

    healthy: bool
    draining: bool
    queue_size: int
    max_queue_size: int
    slots: int
    busy_slots: int
    counters: Counters
    ready_kernels: dict[str, Any]
    kernels: dict[str, Any]
    sandbox: dict[str, Any]
    fork_server: dict[str, Any]
    limits: dict[str, Any]
    internal_s3: dict[str, Any] | None


class JobService:
    """Takes validated jobs, runs at most `slots` at once, first come first served, and keeps their records.

    Parameters
    ----------
    settings : Settings
    runner : JobRunner
        Where jobs run; owned from now on and closed by `aclose`.
    results : ResultStore
        Where results stay that nobody gave a URL for.
    store : JobStore, optional
    on_finished : callable, optional
        Called with each record when its verdict is known; metrics and the job log hang here.
    internal_s3 : EmbeddedS3, optional
        The S3 server beside the gateway, whose health is part of ours; somebody else starts and stops it.
    """

    def __init__(
        self,
        settings: Settings,
        runner: JobRunner,
        results: ResultStore,
        store: JobStore | None = None,
        on_finished: Callable[[JobRecord], None] | None = None,
        internal_s3: EmbeddedS3 | None = None,
    ) -> None:
        self.settings = settings
        self.results = results
        self.counters = Counters()
        self.draining = False
        self._runner = runner
        self._store = store or MemoryStore(settings.log_keep_seconds)
        self._on_finished = on_finished
        self._internal_s3 = internal_s3
        self._waiting: deque[tuple[JobRecord, asyncio.Future[None]]] = deque()
        self._busy_slots = 0
        self._settling_slots = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def submit(self, job: Job) -> JobRecord:
        """Accept a job; it is fetched, queued and run from now on.

        Raises
        ------
        ShuttingDown, Conflict, QueueFull
            Nothing was kept, and `job.upload_dir` still belongs to the caller.
        """
        self.counters.total_requests += 1
        self._forget_old()
        self._check_admission(job)
        record = JobRecord(
            request_id=job.request_id,
            execution_id=uuid.uuid4().hex,
            job_form=job.form,
            job=job,
            log=EventLog(self.settings.log_cap_bytes, self.settings.log_line_cap_bytes),
            stop=StopSignal(),
            trace_parent=job.trace_parent,
        )
        self._store.add(record)
        run = self._runner.open(job, record.log, record.stop, record.execution_id)
        self._spawn(self._drive(record, run), f"job {record.execution_id}")
        return record

    def cancel(self, request_id: RequestId) -> JobRecord:
        """Ask the job with this id to end, wherever it stands.

        Raises
        ------
        NotFound
            The id is unknown or its job is over; nothing changes then.
        """
        record = self._store.find(request_id)
        if record is None or record.state is JobState.FINISHED:
            raise NotFound(f"no job with request_id {request_id!r} is queued or running")
        record.stop.request(FailureCode.CANCELLED)
        return record

    def find(self, request_id: RequestId) -> JobRecord | None:
        """Return the newest record with this id (7 and "7" differ), for a while after its end too."""
        return self._store.find(request_id)

    def current(self) -> JobRecord | None:
        """Return the job one means without naming it: the newest that runs, else waits, else ended last."""
        live = self.running() or self.queued()
        return live[-1] if live else self._store.newest_finished()

    def running(self) -> list[JobRecord]:
        """Return the jobs that run, oldest first."""
        return [r for r in self._store.live() if r.state is JobState.RUNNING]

    def queued(self) -> list[JobRecord]:
        """Return the jobs that wait, oldest first."""
        return [r for r in self._store.live() if r.state is JobState.QUEUED]

    def status(self) -> ServiceStatus:
        """Return a look at everything; never blocks."""
        runner = self._runner.status()
        s3 = self._internal_s3.status() if self._internal_s3 is not None else None
        limits = ("memory_bytes", "cpu_seconds", "processes", "descriptors", "file_size_bytes", "disk_bytes")
        more = ("default_timeout_seconds", "max_timeout_seconds", "queue_timeout_seconds", "max_body_bytes")
        return ServiceStatus(
            healthy=runner.healthy and not self.draining and (s3 is None or bool(s3["healthy"])),
            draining=self.draining,
            queue_size=len(self._waiting),
            max_queue_size=self.settings.queue_length,
            slots=self.settings.slots,
            busy_slots=self._busy_slots,
            counters=self.counters,
            ready_kernels=runner.ready_kernels,
            kernels=runner.kernels,
            sandbox=runner.sandbox,
            fork_server=runner.fork_server,
            limits={name: getattr(self.settings, name) for name in limits + more},
            internal_s3=s3,
        )

    def held_kernels(self) -> list[HeldKernel]:
        """Return the kernels of failed jobs, and consoles, that are held for a person; oldest first."""
        return self._runner.held_kernels()

    async def release(self, name: str) -> None:
        """End a held kernel.

        Raises
        ------
        NotFound
        """
        await self._runner.release(name)

    async def open_console(self, seconds: float) -> HeldKernel:
        """Hold a ready kernel for a person.

        Raises
        ------
        Conflict, ShuttingDown
        """
        return await self._runner.open_console(seconds)

    async def drain(self) -> None:
        """Take nothing new, let what runs end within the grace, then end it; every caller gets an answer."""
        self.draining = True
        for record in self.queued():
            record.stop.request(FailureCode.SHUTTING_DOWN)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self.settings.drain_seconds)
        for record in self._store.live():
            record.stop.request(FailureCode.SHUTTING_DOWN)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CANCEL_GRACE_SECONDS)

    async def aclose(self) -> None:
        """End everything; a job that is still on its way is abandoned."""
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CANCEL_GRACE_SECONDS)
        await self._runner.aclose()
        self.results.close()

    def _check_admission(self, job: Job) -> None:
        try:
            if self.draining:
                raise ShuttingDown("the gateway is shutting down and takes no new jobs")
            known = self._store.find(job.request_id)
            if known is not None and known.state is not JobState.FINISHED:
                raise Conflict(
                    f"a job with request_id {job.request_id!r} is {known.state} now; cancel it or wait for its end"
                )
            # counted by records and not by who waits already: a burst of requests is admitted before any task has begun
            unstarted = sum(record.started_at is None for record in self._store.live())
            places = self.settings.queue_length
            # a slot whose job is answered is free in a moment, and a caller that heard of it may count on that
            running = self._busy_slots - self._settling_slots
            if unstarted >= self.settings.slots - running + places:
                text = f"the queue is full: {running} jobs run and all {places} places are taken"
                raise QueueFull(text, queue_size=unstarted, max_queue_size=places)
        except Exception:
            self.counters.rejected += 1
            raise

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _leave_slot(self, run: JobRun, record: JobRecord) -> None:
        self._settling_slots += 1
        try:
            if not self._waiting:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ANSWER_FIRST_SECONDS):
                        await record.wait()
            await run.settle()
        finally:
            self._settling_slots -= 1
            self._free_slot()

    async def _drive(self, record: JobRecord, run: JobRun) -> None:
        verdict: Verdict | None = None
        try:
            queued_since = time.monotonic()
            try:
                await record.stop.guard(self._take_slot(record))
                try:
                    record.log.emit(StateChanged(JobState.RUNNING))
                    await run.execute()
                finally:
                    # The answer does not wait for the job's processes to be taken apart, but the next job does.
                    self._spawn(self._leave_slot(run, record), f"settle {record.execution_id}")
            except JobFailed as failure:
                waited = time.monotonic() - queued_since
                run.fail(Verdict(failure.code, failure.message, failure.exit_code, stages_seconds={"queue": waited}))
            verdict = await run.deliver()
            waited = (record.started_at or time.time()) - record.created_at
            verdict = dataclasses.replace(verdict, stages_seconds={"queue": waited, **verdict.stages_seconds})
            if verdict.ok and isinstance(record.job and record.job.delivery, KeptDelivery):
                record.result = self.results.get(record.execution_id)
        except Exception:
            # the last boundary: a fault of ours must still answer the caller, and must not show them our stack
            log.exception("job %s: the gateway failed", record.execution_id)
        finally:
            if verdict is None:
                kind = FAILURES[FailureCode.INTERNAL]
                verdict = Verdict(FailureCode.INTERNAL, kind.meaning, kind.exit_code)
            self._finish(record, verdict)
            await run.close()

    def _finish(self, record: JobRecord, verdict: Verdict) -> None:
        record.finished_at = time.time()
        record.job = None  # the code and the presigned URLs are not needed any more
        self.counters.count(verdict)
        record.log.emit(Finished(verdict))
        if self._on_finished is not None:
            self._on_finished(record)

    async def _take_slot(self, record: JobRecord) -> None:
        if self._busy_slots < self.settings.slots:
            self._grant_slot(record)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place = (record, turn)
        self._waiting.append(place)
        limit = self.settings.queue_timeout_seconds
        granted = False
        try:
            await asyncio.wait({turn}, timeout=limit)
            granted = turn.done()
        finally:
            if not granted and turn.done():  # the turn came together with a cancel: pass it on, or the slot is lost
                record.started_at = None
                self._free_slot()
            elif not granted:
                self._waiting.remove(place)
        if not granted:
            text = f"The job waited longer than {limit:g} s (queue timeout) for a free slot"
            raise JobFailed(FailureCode.QUEUE_TIMEOUT, text)

    def _grant_slot(self, record: JobRecord) -> None:
        """Count the job as running from here: until its task goes on it would be counted as waiting as well."""
        self._busy_slots += 1
        record.started_at = time.time()

    def _free_slot(self) -> None:
        self._busy_slots -= 1
        while self._waiting:
            record, turn = self._waiting.popleft()
            if not turn.done():
                self._grant_slot(record)
                turn.set_result(None)
                return

    def _forget_old(self) -> None:
        for record in self._store.expire():
            if record.result is not None:
                self.results.drop(record.execution_id)
