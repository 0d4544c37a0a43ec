"""One job in the cluster, from the side of the member that accepted it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime

from msgspec.structs import replace

from gateway.cluster.broker import NoReply, Refused, subjects
from gateway.cluster.keeper import record_of
from gateway.cluster.lease import Observation, queued_again
from gateway.cluster.runner.parcels import JobParcels
from gateway.cluster.runner.publication import Publication
from gateway.cluster.runner.received import ReceivedEvents
from gateway.cluster.runner.shared import Cluster
from gateway.cluster.wire import Cancel, EventBatch, LeaseRecord, Phase, encode
from gateway.core.cancellation import StopSignal
from gateway.core.errors import FailureCode, JobFailed
from gateway.core.events import JobLog, StateChanged
from gateway.core.job import Job, JobState, Verdict
from gateway.core.tasks import first_of, set_within, started
from gateway.core.wire import WireError
from gateway.jobs.recovery import expired_url
from gateway.storage import FetchedTable

log = logging.getLogger(__name__)

#: Interval at which the record is read without a message that it changed.
LOOK_SECONDS = 1.0

RETRY_SECONDS = 0.3

#: In place of the revision of a record that is gone; the broker counts from 1.
NO_RECORD = 0

#: How often a job may begin when its host is lost.
MOST_ATTEMPTS = 2

#: Time for a job that was asked to end to confirm it.
END_SECONDS = 30.0


class ClusterRun:
    """A `gateway.jobs.runner.JobRun` on any host of the cluster."""

    lost_verdict: Verdict | None = None
    #: Called before it is closed.
    on_close: Callable[[], object] = staticmethod(lambda: None)
    #: The host fetches the tables and removes them, so a bundle of a failed job has none.
    inputs: Sequence[FetchedTable] = ()

    def __init__(
        self,
        cluster: Cluster,
        job: Job,
        job_log: JobLog,
        stop: StopSignal,
        execution_id: str,
        parcels: JobParcels | None = None,
        *,
        known_attempt: int = 0,
    ) -> None:
        self._is_known = known_attempt > 0
        self._creating: asyncio.Task[int] | None = None
        self._cluster = cluster
        self._job = job
        self._log = job_log
        self._stop = stop
        self.execution_id = execution_id
        self._observation = Observation()
        self._following: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._ended = asyncio.Event()
        self.has_begun = False
        self._parcels = parcels
        if parcels is not None and self._is_known:  # its host may bring the results at any time
            parcels.assigned(known_attempt)
        self._events = ReceivedEvents(cluster.broker, execution_id, job_log, known_attempt or 1, self._changed)
        self._event_count = 0
        self._queued_at = time.monotonic()
        self._publication = Publication(cluster, execution_id, job, job_log, parcels)
        self._verdict: Verdict | None = None
        self._is_delivered = self._is_answered = False
        self._refusal: Verdict | None = None
        if not self._is_known:  # while the disk writes; no host takes the job before it is published
            self._creating = asyncio.create_task(self._create(self._events.attempt), name=f"record {execution_id}")

    @property
    def busy_host(self) -> str:
        """Name of the host that runs the job now, or an empty text."""
        return self._events.host if self.has_begun and not self._ended.is_set() else ""

    def take_slot(self) -> bool:
        self._start()
        return self.has_begun or self._ended.is_set()

    async def execute(self) -> None:
        if self._events.state is not None:  # the host's events came before the turn of the job in the queue
            self._log.emit(self._events.state)
        async with started(self._stop.wait(), self._ended.wait()) as (stopped, ended):
            await first_of(stopped, ended)
        if self._stop.cause is FailureCode.CANCELLED:
            await self._end()

    def _start(self) -> None:
        if self._following is None:
            self._queued_at = time.monotonic()
            self._following = asyncio.create_task(self._follow(), name=f"follow {self.execution_id}")

    def leave_slot(self) -> None:
        """Do nothing: the slot is the host's."""

    def fail(self, verdict: Verdict) -> None:
        self._refusal = verdict

    async def deliver(self) -> Verdict:
        if not self._ended.is_set():
            await self._end()
        verdict = self._verdict or self._refusal or Verdict.internal()
        if self._is_delivered:
            await self._events.fetch_missing(self._event_count)
            # a host took the job as its time in the queue was over, and ended it because it was asked to
            verdict = self._refusal if self._refusal is not None and verdict.cancelled else verdict
            answer = verdict
            if self._parcels is not None and self._parcels.expects_results:
                answer = await self._parcels.deliver(self._cluster.deliverer, verdict, self._log, self._stop)
            self._is_answered = answer.code is verdict.code or answer.code is not FailureCode.SHUTTING_DOWN
            return answer
        return await self._cluster.deliverer.deliver(self._job, verdict, None, self._log, self._stop, self.execution_id)

    async def close(self) -> None:
        self.on_close()
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        await self._events.close()
        creating, self._creating = self._creating, None
        if creating is not None:  # never published
            with contextlib.suppress(NoReply, Refused):
                await creating
        # the next process of this member delivers the results that a host uploaded
        is_left = self._is_delivered and not self._is_answered and self._stop.cause is FailureCode.SHUTTING_DOWN
        is_over = self._ended.is_set() and not is_left  # the store of this member has the verdict
        if is_over:
            await self._events.confirm()
        if is_over and self._parcels is not None:
            self._parcels.withdraw()
            await asyncio.to_thread(self._parcels.remove)
        if is_over or creating is not None:
            await self._cluster.remove(self.execution_id)

    def wake(self) -> None:
        """Read the record now."""
        self._news.set()

    def take(self, batch: EventBatch) -> None:
        """Process events of the host."""
        if batch.attempt != self._events.attempt:
            self._news.set()
            return
        if batch.lease is not None:
            self._take_record(batch.lease)
        elif not batch.events or not self._events.host:
            self._news.set()
        self._events.take(batch)

    def _changed(self, state: StateChanged) -> None:
        if self._parcels is not None and state.stage == "claim":
            self._parcels.are_fetched()

    def _take_record(self, record: LeaseRecord) -> None:
        """Accept the record that the host has written or is about to write, unless its machine was lost."""
        if record.phase is Phase.RUNNING:
            self._events.place(record.host)
            self._begin()
        elif record.phase is Phase.DONE and not record.is_lost:
            self._events.place(record.host)
            self._event_count, self._is_delivered = record.events, True
            self._conclude(record.verdict or Verdict.internal())
        else:
            self._news.set()

    async def _follow(self) -> None:
        """Follow the record until it has the verdict. A fault of ours ends the job with a verdict as well."""
        try:
            while not self._ended.is_set():
                try:
                    await self._look()
                except NoReply:
                    await asyncio.sleep(RETRY_SECONDS)
                    continue
                except Refused:
                    continue  # another process has changed the record: read it again
                except JobFailed as failure:
                    self._conclude(Verdict.of(failure))
                if not self._ended.is_set():
                    await set_within(self._news, LOOK_SECONDS)
                    self._news.clear()
        except Exception:
            log.exception("job %s cannot be followed", self.execution_id)
            self._conclude(Verdict.internal())

    async def _look(self) -> None:
        stored = None if self._creating is not None else await self._cluster.broker.leases.get(self.execution_id)
        record = record_of(stored)
        if stored is None or record is None:
            await (self._replace_record() if self._events.is_begun else self._queue())
            return
        if record.attempt != self._events.attempt:  # of an earlier process of this member, or the reply was lost
            self._next_attempt(record.attempt, f"The host {self._events.host} was lost")
        self._events.place(record.host)
        match record.phase:
            case Phase.QUEUED:
                await self._wait_for_host(record, stored.revision)
            case Phase.RUNNING | Phase.DELIVERING:
                self._begin()
                self._observation.saw(stored.revision)
                if self._observation.is_over() or self._cluster.roster.is_gone(record.host, record.boot):
                    await self._replace_host(record, stored.revision)
            case Phase.DONE:
                self._event_count = record.events
                if record.is_lost:
                    await self._replace_machine(record, stored.revision)
                    return
                self._is_delivered = record.host != ""
                self._conclude(record.verdict or Verdict.internal())

    async def _queue(self) -> None:
        """Queue a job that was never queued, or that the broker has lost."""
        if self._refusal is not None:
            self._conclude(self._refusal)
            return
        if self._parcels is not None:
            self._parcels.check_files()
        creating, self._creating = self._creating, None
        revision = await (creating if creating is not None else self._create(self._events.attempt))
        self._publication.reset()
        await self._publication.publish(self._events.attempt, revision)

    async def _replace_record(self) -> None:
        """Queue a job again that had begun when the broker lost its record, or end it, once its host must have ended.

        The host finds no record either and ends the job, unless it is about to send the verdict.
        """
        self._observation.saw(NO_RECORD)
        if not self._observation.is_over():
            return
        self._begin()
        text = "The broker lost its record of this job while the job ran"
        reason = self._reason_against(self._events.attempt)
        if reason is not None:
            code = self._stop.cause or FailureCode.HOST_LOST
            self._conclude(Verdict.of(JobFailed(code, f"{text}, and the job does not run again: {reason}")))
            return
        attempt = self._events.attempt + 1
        await self._queue_again(attempt, self._create(attempt), text)

    async def _create(self, attempt: int) -> int:
        queued = LeaseRecord(Phase.QUEUED, attempt, self._cluster.me.name)
        return await self._cluster.broker.leases.create(self.execution_id, encode(queued))

    async def _wait_for_host(self, record: LeaseRecord, revision: int) -> None:
        timeout = self._cluster.settings.queue_timeout_seconds
        if self.has_begun and time.monotonic() - self._queued_at > timeout:
            text = f"The host of the job was lost, and no other took the job within {timeout:g} s"
            await self._write_verdict(record, revision, Verdict.of(JobFailed(FailureCode.HOST_LOST, text)))
            return
        await self._publication.publish(record.attempt, revision)

    def _begin(self) -> None:
        if not self.has_begun:
            self.has_begun = True
            self._cluster.on_start()

    async def _replace_host(self, record: LeaseRecord, revision: int) -> None:
        """Give the job of a lost host to another one, or end it."""
        reason = self._reason_against(record.attempt)
        if reason is not None:
            code = self._stop.cause or FailureCode.HOST_LOST
            text = f"The host {record.host} was lost while it ran the job, and the job does not run again: {reason}"
            await self._write_verdict(record, revision, Verdict.of(JobFailed(code, text)))
            return
        text = f"The host {record.host} was lost"
        await self._queue_again(record.attempt + 1, self._replace(record, revision), text)

    async def _replace_machine(self, record: LeaseRecord, revision: int) -> None:
        """Run a job again whose machine failed, or end it; the host has uploaded nothing."""
        self._begin()
        await self._events.fetch_missing(self._event_count)  # the host is still there
        verdict, reason = record.verdict or Verdict.internal(), self._reason_against(record.attempt)
        if reason is None:
            text = f"The host {record.host} failed: {verdict.message}"
            await self._queue_again(record.attempt + 1, self._replace(record, revision), text)
        else:
            self._conclude(replace(verdict, message=f"{verdict.message}; the job does not run again: {reason}"))

    async def _queue_again(self, attempt: int, written: Awaitable[int], why: str) -> None:
        """Publish the next attempt once its queued record is written."""
        try:
            revision = await written
        except NoReply:
            return  # the next look finds the outcome
        if self._ended.is_set():  # the host that seemed lost has sent its verdict meanwhile
            return
        self._next_attempt(attempt, why)
        await self._publication.publish(attempt, revision)

    async def _replace(self, record: LeaseRecord, revision: int) -> int:
        return await self._cluster.broker.leases.update(self.execution_id, encode(queued_again(record)), revision)

    def _next_attempt(self, attempt: int, why: str) -> None:
        is_later = attempt > self._events.attempt
        self._events.begin(attempt)
        self._queued_at = time.monotonic()
        self._publication.reset()
        if is_later and self.has_begun:
            self._cluster.lost += 1
            self._log.emit(StateChanged(JobState.RUNNING, "queue"))
            self._log.line("stderr", f"{why}: this job runs again (attempt {attempt})")

    def _reason_against(self, attempt: int) -> str | None:
        settings = self._cluster.settings
        most = min(MOST_ATTEMPTS, settings.max_attempts)
        if self._stop.cause is not None:
            return "it was asked to end"
        if settings.allow_network:
            return "it had access to the network, where a second run could repeat its effects"
        if attempt >= most:
            return f"it has begun {attempt} times, and at most {most} are allowed"
        return expired_url(self._job, datetime.now(UTC))

    async def _write_verdict(self, record: LeaseRecord, revision: int, verdict: Verdict) -> None:
        """Record a verdict of this member, which also uploads the log."""
        done = LeaseRecord(Phase.DONE, record.attempt, record.owner, verdict=verdict)
        await self._cluster.broker.leases.update(self.execution_id, encode(done), revision)
        self._conclude(verdict)

    async def _end(self) -> None:
        """Ask the job to end, wherever it is, and return when its verdict is known."""
        if self._following is None and not self._is_known:  # no other process has it
            self._conclude(self._refusal or Verdict.of(self._stop.failure()))
            return
        self._start()
        own = self._refusal or Verdict.of(self._stop.failure())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                while not self._ended.is_set():
                    with contextlib.suppress(NoReply, Refused, WireError):
                        await self._ask_to_end(own)
                    self._news.set()
                    await set_within(self._ended, LOOK_SECONDS)
        if not self._ended.is_set():
            self._conclude(own)

    async def _ask_to_end(self, own: Verdict) -> None:
        stored = await self._cluster.broker.leases.get(self.execution_id)
        record = record_of(stored)
        if stored is None or record is None:
            self._conclude(own)
        elif record.phase is Phase.QUEUED:
            await self._write_verdict(record, stored.revision, own)
        elif record.phase is not Phase.DONE:
            cause = self._stop.cause or FailureCode.CANCELLED
            message = Cancel(self.execution_id, cause.value, self._stop.hold_seconds)
            await self._cluster.broker.ask(subjects.cancel(record.host), encode(message))

    def _conclude(self, verdict: Verdict) -> None:
        if not self._ended.is_set():
            self._verdict = verdict
            self._ended.set()
            self._cluster.on_start()
