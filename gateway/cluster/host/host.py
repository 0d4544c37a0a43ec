"""Fetch jobs from the queue while a slot is free, and run each as an `Attempt`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import msgspec

from gateway.cluster.broker import Broker, NoReply, Refused, Taking, subjects
from gateway.cluster.host.attempt import Attempt
from gateway.cluster.host.relay import Relay
from gateway.cluster.keeper import LeaseKeeper, record_of
from gateway.cluster.lease import Lease
from gateway.cluster.member import Member
from gateway.cluster.wire import (
    Assignment,
    Cancel,
    EventsWanted,
    LeaseRecord,
    Phase,
    Release,
    Taken,
    decode,
    encode,
    is_a,
)
from gateway.core.cancellation import StopSignal
from gateway.core.errors import FAILURES, FailureCode, JobFailed, NotFound
from gateway.core.events import EventLog, LogLine
from gateway.core.job import Job, Verdict
from gateway.core.log_json import decode_line
from gateway.core.settings import Settings
from gateway.core.tasks import set_within, started
from gateway.core.version import VERSION
from gateway.core.wire import WireError, decode_job
from gateway.jobs.runner import JobRunner
from gateway.storage import ObjectClient
from gateway.storage.objects.errors import StorageError
from gateway.storage.objects.parcel_client import read_parcel

log = logging.getLogger(__name__)

#: How long one request for a job waits at the broker.
FETCH_SECONDS = 5.0

#: Pause after the broker did not answer.
RETRY_SECONDS = 0.5

#: Time for the member that accepted a job to send its code.
CODE_SECONDS = 10.0

#: First and longest pause before a job whose code could not be fetched from the member that accepted it is taken again.
#: The host takes no other job while it tries, so the pause grows; a member that comes back queues its jobs again.
AGAIN_SECONDS, MOST_AGAIN_SECONDS = 5.0, 300.0

#: How long the events of an ended attempt are kept for a member that asks for them.
KEPT_SECONDS = 10.0

#: How long an attempt waits for the end of an earlier one of the same job; then the job returns to the queue.
EARLIER_SECONDS = 5.0

#: How long a host that failed a job leaves it to the others.
AVOIDED_SECONDS = 1.0


class _Head(msgspec.Struct):
    software: str = "unknown"


class ClusterHost:
    """Fetches jobs while a slot is free, and runs them.

    Parameters
    ----------
    me : Member
    broker : Broker
    runner : JobRunner
        Runs the jobs; stays the caller's.
    settings : Settings
    client : ObjectClient
        Fetches jobs that are too large for a message.
    on_confirmed : callable
        Called with the seconds of each confirmed write of a lease.

    Attributes
    ----------
    is_draining, is_able : callable
        Return whether no more jobs may be taken, and whether the machine can run one now.
    on_taken : callable
        Called when a job has taken a slot.
    attempts, fenced : int
        Jobs that were begun; jobs that were ended because their lease was lost.
    """

    def __init__(
        self,
        me: Member,
        broker: Broker,
        runner: JobRunner,
        settings: Settings,
        client: ObjectClient,
        on_confirmed: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self._client = client
        self._on_confirmed = on_confirmed
        self._me = me
        self._broker = broker
        self._runner = runner
        self._settings = settings
        self._free = asyncio.Event()
        self._attempts: dict[str, Attempt] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.is_draining: Callable[[], bool] = lambda: False
        self.is_able: Callable[[], bool] = lambda: True
        self.on_taken: Callable[[], None] = lambda: None
        self._drains_since: float | None = None
        self.attempts = 0
        self.fenced = 0

    def slot_free(self) -> None:
        """Look for a job; called when a slot has become free."""
        self._free.set()

    async def run(self) -> None:
        """Take jobs until cancelled."""
        await self._broker.serve(subjects.cancel(self._me.name), self._end)
        await self._broker.listen(subjects.log(self._me.name), self._events)
        while True:
            slots = self._runner.slots()
            if self.is_draining() and self._drains_since is None:
                self._drains_since = time.monotonic()
            if self.is_draining() or slots.busy >= slots.total or not self.is_able():
                self._free.clear()
                await set_within(self._free, 1.0)
                continue
            try:
                taking = await self._broker.next_job(FETCH_SECONDS)
            except NoReply:
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if taking is not None and self.is_draining():
                await self._broker.settle(taking, is_taken=False)
            elif taking is not None:
                began = asyncio.Event()
                task = asyncio.create_task(self._take(taking, began), name=f"host {taking.execution_id}")
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                await began.wait()  # one job more than there are slots would wait here while another host is free

    async def drain(self) -> None:
        """Return when the running jobs have ended, within the time that is left for the member's drain."""
        gone = 0.0 if self._drains_since is None else time.monotonic() - self._drains_since
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=max(0.0, self._settings.drain_seconds - gone))

    async def aclose(self) -> None:
        """End the running jobs; their leases expire, or end when the member reports that it leaves."""
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _take(self, taking: Taking, began: asyncio.Event) -> None:
        try:
            attempt = await self._claimed(taking, began)
            if attempt is not None:
                await self._run(attempt)
        except NoReply as error:
            log.warning("job %s: the broker did not answer (%s); it stays in the queue", taking.execution_id, error)
        except Exception:
            log.exception("job %s: this host failed", taking.execution_id)
        finally:
            began.set()

    async def _claimed(self, taking: Taking, began: asyncio.Event) -> Attempt | None:
        """Return the attempt if it is ours now. The message is then no longer needed: the record names the host."""
        try:
            assignment = decode(Assignment, taking.data)
        except WireError as error:
            await self._refuse(taking, str(error))
            return None
        queued = await self._queued(taking, assignment)
        if queued is None:
            await self._broker.settle(taking)
            return None
        record, revision = queued
        if record.avoided == self._me.name and taking.deliveries == 1:
            await self._broker.settle(taking, is_taken=False)
            await asyncio.sleep(AVOIDED_SECONDS)  # this host asks for no job meanwhile
            return None
        earlier = self._attempts.get(taking.execution_id)
        if earlier is not None and not await set_within(earlier.closed, EARLIER_SECONDS):
            await self._broker.settle(taking, is_taken=False)
            return None
        try:
            job = decode_job(await self._job_of(taking, assignment))
        except (WireError, StorageError) as error:
            if isinstance(error, StorageError) and error.is_transient:  # that member may be starting again
                again_after_seconds = min(AGAIN_SECONDS * taking.deliveries**2, MOST_AGAIN_SECONDS)
                await self._broker.settle(taking, is_taken=False, again_after_seconds=again_after_seconds)
            else:
                await self._refuse(taking, str(error), assignment)
            return None
        lease = Lease(record, revision, self._me.name, self._me.boot)
        keeper = LeaseKeeper(lease, self._broker.leases, taking.execution_id, self._on_confirmed)
        attempt = self._opened(assignment, job, keeper, record.owner)
        # before the lease: a job that only this member can run may have taken the slot since the request to the broker
        if not attempt.run.take_slot():
            await self._broker.settle(taking, is_taken=False)
            await attempt.close()
            return None
        began.set()
        self.on_taken()
        self._attempts[assignment.id] = attempt  # a cancel may be as fast as the answer to the claim
        is_ours = False
        try:
            is_ours = await keeper.claim()
            await self._broker.settle(taking)
        finally:
            if not is_ours:
                attempt.run.leave_slot()
                await attempt.close()
                self._forget(attempt)
        return attempt if is_ours else None

    async def _job_of(self, taking: Taking, assignment: Assignment) -> bytes:
        if not assignment.job_url:
            return bytes(assignment.job)
        try:
            async with asyncio.timeout(CODE_SECONDS), started(self._broker.keep(taking)):
                return await read_parcel(self._client.parcels, assignment.job_url, 2 * self._settings.max_body_bytes)
        except TimeoutError:
            raise StorageError(f"its code did not come within {CODE_SECONDS:g} s") from None

    async def _queued(self, taking: Taking, assignment: Assignment | None = None) -> tuple[LeaseRecord, int] | None:
        """Return the queued record of an attempt and its revision; None if the attempt is not queued any more."""
        is_first = assignment is not None and assignment.attempt == 1 and assignment.id not in self._attempts
        if assignment is not None and assignment.revision and is_first:
            # if the record has changed since, the claim is refused; the record of a later attempt may name a host to
            # avoid
            return LeaseRecord(Phase.QUEUED, assignment.attempt, assignment.owner), assignment.revision
        stored = await self._broker.leases.get(taking.execution_id)
        record = record_of(stored)
        if stored is None or record is None or record.phase is not Phase.QUEUED:
            return None
        if assignment is not None and assignment.attempt != record.attempt:
            return None
        return record, stored.revision

    def _opened(self, assignment: Assignment, job: Job, keeper: LeaseKeeper, owner: str) -> Attempt:
        events = EventLog(self._settings.log_cap_bytes, self._settings.log_line_cap_bytes)
        for line in assignment.lines:  # the log that is uploaded has the lines of earlier attempts too
            events.emit(LogLine(*decode_line(bytes(line))))
        relay, stop = Relay(self._broker, owner, assignment.id, assignment.attempt), StopSignal()
        events.follow(relay.take)
        run = self._runner.open(job, events, stop, assignment.id, None, keeper)
        return Attempt(assignment, keeper, relay, stop, run)

    async def _refuse(self, taking: Taking, reason: str, assignment: Assignment | None = None) -> None:
        """End a job that cannot be read here, and that another host of this version could not read either.

        A later attempt than that of the assignment goes on: the parcels of an earlier one are withdrawn.
        """
        queued = await self._queued(taking, assignment)
        if queued is None:
            await self._broker.settle(taking)
            return
        record, revision = queued
        try:
            software = msgspec.json.decode(taking.data, type=_Head).software
        except (ValueError, RecursionError):
            software = "unknown"
        text = (
            f"The host {self._me.name} (version {VERSION}) cannot read the job of {record.owner} "
            f"(version {software}): {reason}"
        )
        verdict = Verdict(FailureCode.INTERNAL, text, FAILURES[FailureCode.INTERNAL].exit_code)
        done = LeaseRecord(Phase.DONE, record.attempt, record.owner, self._me.name, self._me.boot, verdict=verdict)
        try:
            await self._broker.leases.update(taking.execution_id, encode(done), revision)
            await Relay(self._broker, record.owner, taking.execution_id, record.attempt).tell(done)
        except Refused:
            log.info("job %s: another host was faster", taking.execution_id)
        await self._broker.settle(taking)

    async def _run(self, attempt: Attempt) -> None:
        execution_id = attempt.assignment.id
        self.attempts += 1
        keeping = asyncio.create_task(attempt.keeper.keep(), name=f"lease {execution_id}")
        working = asyncio.create_task(attempt.work(), name=f"attempt {execution_id}")
        try:
            await asyncio.wait({keeping, working}, return_when=asyncio.FIRST_COMPLETED)
            # a verdict on delivered results is still recorded, if no other host has taken the job according to the
            # broker
            if not working.done() and not attempt.is_delivered:
                self.fenced += 1
                log.warning("job %s: this host lost its lease, and ends the job", execution_id)
                working.cancel()
            await asyncio.wait({working})
        finally:
            for task in (keeping, working):
                task.cancel()
            await asyncio.wait({keeping, working})
            error = None if working.cancelled() else working.exception()
            if isinstance(error, JobFailed):  # the lease was lost before the uploads
                self.fenced += 1
                log.warning("job %s: %s", execution_id, error)
            elif error is not None:
                log.error("job %s: this host failed", execution_id, exc_info=error)
            await attempt.close()
            asyncio.get_running_loop().call_later(KEPT_SECONDS, self._forget, attempt)

    def _forget(self, attempt: Attempt) -> None:
        if self._attempts.get(attempt.assignment.id) is attempt:
            del self._attempts[attempt.assignment.id]

    async def _end(self, data: bytes) -> bytes:
        """End an attempt or a held kernel, and return whether this host had it."""
        if is_a(Release, data):
            try:
                await self._runner.release(decode(Release, data).id)
            except NotFound:
                return encode(Taken(known=False))
            return encode(Taken(known=True))
        message = decode(Cancel, data)
        attempt = self._attempts.get(message.id)
        if attempt is not None:
            attempt.stop.request(FailureCode(message.cause), message.hold_seconds)
        return encode(Taken(attempt is not None))

    def _events(self, data: bytes) -> bytes | None:
        wanted = decode(EventsWanted, data)
        attempt = self._attempts.get(wanted.id)
        if attempt is None or attempt.assignment.attempt != wanted.attempt:
            return None
        if wanted.is_answered:
            attempt.answered.set()
            return None
        return encode(attempt.relay.batch_from(wanted.first))
