"""The job service: accepts jobs, runs them in order and keeps their outcome. The HTTP handlers call this object."""

from __future__ import annotations

import asyncio
import logging
import shutil
import sqlite3
import uuid
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from typing import Any

from msgspec import structs

from gateway.core.errors import (
    BrokerDown,
    Conflict,
    DiskFull,
    FailureCode,
    GatewayError,
    NotFound,
    Paused,
    ShuttingDown,
    StoreFailed,
)
from gateway.core.events import EventLog
from gateway.core.job import ALL_JOBS, HeldKernel, Job, RequestId, Scope
from gateway.core.settings import Settings
from gateway.core.tasks import retrieve_exception, started
from gateway.core.uploads import Uploads
from gateway.jobs.admission import check_admission, check_storage
from gateway.jobs.driver import JobDriver, log_step
from gateway.jobs.feed import JobFeed
from gateway.jobs.lookup import SAME_MOMENT, JobLookup
from gateway.jobs.peers import Peers
from gateway.jobs.queue import Submissions
from gateway.jobs.recovery import reason_against, verdict_against
from gateway.jobs.runner import JobRunner, PackageFacts, RequestIdClaims
from gateway.jobs.status import JobCounters, ServiceStatus
from gateway.jobs.store import IdempotencyKey, JobRecord, JobStore, StoredJob
from gateway.storage.embedded_s3.server import EmbeddedS3
from gateway.storage.state_directory import StateDirectory

log = logging.getLogger(__name__)

#: How long a drain waits for jobs that were asked to end; a kill takes milliseconds, an upload of events may not.
CANCEL_GRACE_SECONDS = 5.0

#: How long the answer to a cancel waits for a disk that stands still.
MARK_SECONDS = 5.0


class JobService(JobLookup):
    """Accepts validated jobs, runs them in the order in which they came, and keeps their records.

    Parameters
    ----------
    settings : Settings
    runner : JobRunner
        Where jobs run; owned from now on and closed by `aclose`.
    store : JobStore, optional
        Keeps the jobs; in memory by default. Owned from now on and closed by `aclose`.
    on_finished : callable, optional
        Called with each record when its verdict is known; for metrics and the job log.
    internal_s3 : EmbeddedS3, optional
        The S3 server of this gateway, whose health is part of ours; the caller starts and stops it.
    state_directory : StateDirectory, optional
        Its state decides whether jobs are accepted.
    claims : RequestIdClaims, optional
        Keeps others from accepting the same request id; by default no other gateway accepts jobs.
    peers : Peers, optional
        These other gateways, for requests about the jobs that they keep.
    """

    def __init__(
        self,
        settings: Settings,
        runner: JobRunner,
        store: JobStore | None = None,
        on_finished: Callable[[JobRecord], None] | None = None,
        internal_s3: EmbeddedS3 | None = None,
        state_directory: StateDirectory | None = None,
        claims: RequestIdClaims | None = None,
        peers: Peers | None = None,
    ) -> None:
        super().__init__(store or JobStore(settings), runner)
        self.settings = settings
        self.counters = JobCounters()
        self.draining = False
        self.feed = JobFeed(lambda: [*self.running(), *self.queued()])
        self.paused = self._store.is_paused()
        self._internal_s3 = internal_s3
        self._state_directory = state_directory
        self._claims = claims
        self.peers = peers
        self._tasks: set[asyncio.Task[None]] = set()
        self._submissions = Submissions()
        self._driver = JobDriver(
            settings,
            runner,
            self._store,
            self.counters,
            claims,
            on_finished,
            is_draining=lambda: self.draining,
            disk_takes_jobs=self._disk_takes_jobs,
        )

    def recover(self) -> list[JobRecord]:
        """Take on the jobs that an earlier process left, before any other job; called once.

        Jobs without a waiting caller run again, unless a rule forbids it. All others end as ``gateway_restarted``. Each
        is as if it were accepted now; its verdict follows.
        """
        recovered = []
        found = [(stored, self._runner.has_output(stored.record.execution_id)) for stored in self._store.unfinished()]
        # an output that is computed needs its slot for a moment, and must not wait until others have run
        for stored, is_computed in sorted(found, key=lambda each: not each[1]):
            reason = reason_against(stored, self.settings.max_attempts, datetime.now(UTC), is_computed=is_computed)
            end = FailureCode.CANCELLED if stored.was_cancelled else FailureCode.GATEWAY_RESTARTED
            self.counters.recovered["run_again" if reason is None else end] += 1
            record, job = stored.record, stored.record.job
            log.info(
                "job %a (%s) was left by an earlier process: %s",
                record.request_id,
                record.execution_id,
                "it runs again" if reason is None else reason,
                extra={"request_id": record.request_id, "job_id": record.execution_id, "reason": reason},
            )
            self._store.resume(record)
            if not is_computed:  # its log came with the output
                stored.restore_log()
            record.is_accepted = True
            self.feed.accepted(record)
            self.counters.total_requests += 1
            recovered.append(record)
            if job is None:
                verdict = verdict_against(stored, reason or "")
                record.log.line("stderr", f"ERROR: {verdict.message}")
                self._spawn(self._driver.finish(record, verdict), f"end {record.execution_id}")
            else:
                self._resume(stored, job, reason, is_computed=is_computed)
        in_use = {record.uploads.directory for record in recovered if record.uploads is not None}
        for directory in (self.settings.state_dir / "uploads").glob("*"):
            if directory not in in_use:
                shutil.rmtree(directory, ignore_errors=True)
        return recovered

    async def submit(
        self,
        job: Job,
        uploads: Uploads | None = None,
        *,
        is_awaited: bool = True,
        key: IdempotencyKey | None = None,
        call_id: str | None = None,
        token_name: str | None = None,
    ) -> JobRecord:
        """Accept a job: it is on the disk when this returns. Its fetch, queue and run follow.

        Parameters
        ----------
        job : Job
            A validated job.
        uploads : Uploads, optional
            Files that came with the request; removed with the job.
        is_awaited : bool
            Whether the caller waits for the end on its connection; otherwise the job survives a restart.
        key : IdempotencyKey, optional
            `find_by_key` finds the job by it.
        call_id : str, optional
            ``X-Request-Id`` of the HTTP request.
        token_name : str, optional
            Name of the caller's token.

        Raises
        ------
        ShuttingDown, Paused, Conflict, QueueFull, DiskFull, StorageDown, StoreFailed, BrokerDown
            Nothing was kept, and `uploads` still belongs to the caller.
        """
        self.counters.total_requests += 1
        self._admit(job, token_name)
        record = JobRecord(
            request_id=job.request_id,
            execution_id=uuid.uuid4().hex if self._claims is None else self._claims.new_id(),
            job_form=job.form,
            job=job,
            log=EventLog(self.settings.log_cap_bytes, self.settings.log_line_cap_bytes),
            is_awaited=is_awaited,
            token_name=token_name,
            label=job.label,
            tables=tuple(table.alias for table in job.tables),
            key=key,
            uploads=uploads,
            trace_parent=job.trace_parent,
            call_id=call_id,
        )
        with self._submissions:
            if self._claims is None:
                await self._accept(record, job)
                return record
            with self._arriving(key):
                try:
                    await self._claims.claim(
                        job.request_id, token_name, record.execution_id, key.key if key is not None else None
                    )
                    self._admit(job, token_name)  # again: others were admitted meanwhile
                    # while the disk writes
                    async with started(self._claims.announce(job.request_id, token_name)) as (announced,):
                        await self._accept(record, job, announced)
                except BaseException as error:
                    self.counters.rejected += isinstance(error, BrokerDown)
                    await self._claims.withdraw(record.execution_id)
                    raise
        return record

    async def _accept(self, record: JobRecord, job: Job, announced: asyncio.Future[None] | None = None) -> None:
        accepted = self._store.accept(record)
        # the inputs are fetched while the disk writes
        run = self._runner.open(job, record.log, record.stop, record.execution_id, record.uploads)
        try:
            if record.uploads is not None and not record.is_awaited:
                await asyncio.to_thread(record.uploads.sync)
            await accepted
            if announced is not None:
                await announced
        except BaseException as error:
            if announced is not None:
                announced.add_done_callback(retrieve_exception)
            self._store.discard(record, is_stored=not isinstance(error, sqlite3.Error))
            await run.close()
            self.counters.rejected += not isinstance(error, BrokerDown)  # `submit` counts that
            if isinstance(error, sqlite3.IntegrityError):
                raise Conflict(SAME_MOMENT) from None
            if isinstance(error, sqlite3.Error | OSError):
                raise StoreFailed(f"the job could not be stored: {error}") from None
            raise
        record.is_accepted = True
        self.feed.accepted(record)
        log_step("accepted", record)
        self._spawn(self._driver.drive(record, run), f"job {record.execution_id}")

    def check_disk(self, incoming_bytes: int = 0) -> None:
        """Check that the state directory has room for a job and for files that are about to come with it.

        Raises
        ------
        DiskFull, StoreFailed
            It has none, or it cannot be written.
        """
        if self._state_directory is not None:
            self._state_directory.check(incoming_bytes)

    def _disk_takes_jobs(self) -> bool:
        try:
            self.check_disk()
        except (DiskFull, StoreFailed):
            return False
        return True

    async def cancel(self, request_id: RequestId, scope: Scope = ALL_JOBS) -> JobRecord:
        """Ask the job with this id, of those in `scope`, to end in whichever stage it is; see `end`.

        Raises
        ------
        NotFound
            The id is unknown or its job is over; nothing changes then.
        """
        record = self._store.find_live(request_id, scope)
        if record is None:
            raise NotFound(f"no job with request_id {request_id!r} is queued or running")
        await self.end(record)
        return record

    async def end(self, record: JobRecord, hold_seconds: float = 0.0) -> None:
        """Ask a job to end, as `JobRecord.cancel`, and return when no later process of this gateway can run it."""
        record.cancel(hold_seconds)
        if not record.is_awaited:  # the others never run again
            await asyncio.wait({self._store.mark_cancelled(record)}, timeout=MARK_SECONDS)

    async def packages(self, *, renew: bool = False) -> Sequence[PackageFacts]:
        """Return the packages that jobs can import, by name; see `JobRunner.packages`."""
        return await self._runner.packages(renew=renew)

    def held_kernels(self) -> list[HeldKernel]:
        """Return the kernels that are held for inspection; see `JobRunner.held_kernels`."""
        return self._runner.held_kernels()

    async def release(self, name: str) -> None:
        """End a held kernel; see `JobRunner.release`."""
        await self._runner.release(name)

    async def open_console(self, seconds: float) -> HeldKernel:
        """Hold a kernel that never had a job; see `JobRunner.open_console`."""
        return await self._runner.open_console(seconds)

    def status(self) -> ServiceStatus:
        """Return the state of this moment; never blocks."""
        runner = self._runner.status()
        s3 = self._internal_s3.status() if self._internal_s3 is not None else None
        disk = self._state_directory.status() if self._state_directory is not None else {}
        bounds = ("default_timeout_seconds", "max_timeout_seconds", "queue_timeout_seconds", "max_body_bytes")
        return ServiceStatus(
            healthy=runner.healthy
            and not self.draining
            and not self.paused
            and (s3 is None or bool(s3["healthy"]))
            and not disk.get("problem"),
            draining=self.draining,
            paused=self.paused,
            queue_size=len(self._driver.queue),
            max_queue_size=self.settings.queue_length,
            slots=runner.slots.total,
            busy_slots=runner.slots.busy,
            counters=self.counters,
            details={**runner.details, "disk": disk},
            limits=structs.asdict(self.settings.limits) | {name: getattr(self.settings, name) for name in bounds},
            internal_s3=s3,
        )

    async def set_paused(self, paused: bool) -> None:
        """Refuse new jobs from now on, also after a restart, or accept them again; accepted jobs go on.

        Raises
        ------
        StoreFailed
            It is in effect, but could not be written to disk, so it would not survive a restart.
        """
        self.paused = paused
        log.info("paused by an operator: no new jobs" if paused else "resumed by an operator: new jobs are accepted")
        try:
            await self._store.set_paused(paused)
        except sqlite3.Error as error:
            text = "paused, but a restart would resume it" if paused else "resumed, but a restart would pause it"
            raise StoreFailed(f"the gateway is {text}: the job store cannot be written: {error}") from None

    async def drain(self) -> None:
        """Accept no new jobs, give running ones time to end, then end them; every caller that waits gets an answer.

        Jobs without a waiting caller stay in the store, for the next process.
        """
        self.draining = True
        await self._submissions.over(CANCEL_GRACE_SECONDS)
        for record in self.queued():
            if record.job is None or not (record.is_awaited and self._runner.runs_elsewhere(record.job)):
                record.stop.request(FailureCode.SHUTTING_DOWN)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self.settings.drain_seconds)
        for record in self._store.live():
            record.stop.request(FailureCode.SHUTTING_DOWN)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CANCEL_GRACE_SECONDS)

    async def aclose(self) -> None:
        """End everything; jobs that still run are abandoned, or left to the next process if no caller waits."""
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CANCEL_GRACE_SECONDS)
        await self._runner.aclose()
        await asyncio.to_thread(self._store.close)

    def _admit(self, job: Job, token_name: str | None) -> None:
        try:
            if self.draining:
                raise ShuttingDown("the gateway is shutting down and accepts no new jobs")
            if self.paused:
                raise Paused("the gateway is paused by an operator and accepts no new jobs; accepted jobs go on")
            if self._claims is not None:
                self._claims.check(job)
            check_admission(job, token_name, self._store, self._runner.slots(), self.settings.queue_length)
            self.check_disk()
            check_storage(job, self._internal_s3, self._store, self.settings)
        except GatewayError:
            self.counters.rejected += 1
            raise

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _resume(self, stored: StoredJob, job: Job, reason: str | None, *, is_computed: bool) -> None:
        record = stored.record
        run = self._runner.open(job, record.log, record.stop, record.execution_id, record.uploads)
        if reason is not None:
            run.fail(verdict_against(stored, reason))
            self._spawn(self._driver.drive(record, run, has_verdict=True), f"end {record.execution_id}")
            return
        if not is_computed:
            again = f"runs again (attempt {record.attempts + 1} of {self.settings.max_attempts})"
            text = f"The gateway was restarted: this job {again if stored.had_begun else 'is queued again'}"
            record.log.line("stderr", text)
        self._spawn(self._driver.drive(record, run), f"job {record.execution_id}")
