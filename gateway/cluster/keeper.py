"""Keeps the lease of one attempt at the broker: claims it, renews it, and records the verdict."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Literal

from gateway.cluster.broker import Bucket, NoReply, Refused, Stored
from gateway.cluster.lease import Hold, Lease
from gateway.cluster.wire import LeaseRecord, Phase, decode, encode
from gateway.core.errors import FailureCode, JobFailed
from gateway.core.job import Verdict
from gateway.core.tasks import set_within

#: Interval between two looks at the clock of the lease: the loop's timers stop while the machine is suspended.
TICK_SECONDS = 0.1

#: Pause before the next request to the broker.
RETRY_SECONDS = 0.2

#: How long a host tries to take a job, or to record a verdict. If another one was faster, the record shows it.
ANSWER_SECONDS = 60.0


def record_of(stored: Stored | None) -> LeaseRecord | None:
    """Return the record that was read.

    Raises
    ------
    WireError
        It cannot be read.
    """
    return None if stored is None else decode(LeaseRecord, stored.data)


class LeaseKeeper:
    """The writes of one holder, one at a time; the `gateway.core.uploads.UploadPermit` of its job.

    Parameters
    ----------
    lease : Lease
    bucket : Bucket
        Holds the records.
    execution_id : str
        Key of the record.
    on_confirmed : callable
        Called with the seconds of each write that was confirmed.
    """

    def __init__(
        self,
        lease: Lease,
        bucket: Bucket,
        execution_id: str,
        on_confirmed: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self.lease = lease
        self._bucket = bucket
        self._key = execution_id
        self._on_confirmed = on_confirmed
        self._lock = asyncio.Lock()
        self._job_ended = asyncio.Event()

    async def claim(self) -> bool:
        """Take the queued attempt; return whether it is the caller's.

        A write that was lost on its way is repeated, and one whose reply was lost for long is renewed: the job has not
        begun, so the fence does not hold yet.

        Raises
        ------
        NoReply
            The outcome is unknown. The lease, if it was taken, expires.
        """
        lease = self.lease
        try:
            async with asyncio.timeout(ANSWER_SECONDS), self._lock:
                while lease.hold is Hold.HELD and lease.clock() >= lease.renew_at:
                    is_written = False
                    with contextlib.suppress(NoReply):
                        is_written = await self._write(Phase.RUNNING)
                    if not is_written and lease.hold is Hold.HELD:
                        await asyncio.sleep(RETRY_SECONDS)
        except TimeoutError:
            raise NoReply(f"not within {ANSWER_SECONDS:g} s") from None
        return lease.may_run()

    async def keep(self) -> None:
        """Renew the lease; return when it is lost, or over because the verdict is recorded."""
        lease = self.lease
        while lease.may_run():
            if lease.clock() >= lease.renew_at:
                await self._within_lease("renew")
            if await set_within(self._job_ended, TICK_SECONDS):
                self._job_ended.clear()
                await self._within_lease("deliver")

    def prepare(self) -> None:
        """Let `keep` record that uploads begin, while the job's processes are ended and its result is read."""
        self._job_ended.set()

    async def begin_delivery(self) -> None:
        """Return when it is recorded that uploads begin.

        Raises
        ------
        JobFailed
            ``host_lost``: another host may have the job; nothing may be sent.
        """
        # again, if a renewal that was confirmed meanwhile has moved the fence
        while self.lease.may_run() and self.lease.record.phase is not Phase.DELIVERING:
            await self._within_lease("deliver")
        if not self.lease.may_run():
            raise self._lost()

    async def __call__(self) -> None:
        """Return when the last block of an upload may be sent.

        Raises
        ------
        JobFailed
            ``host_lost``: another host may have the job.
        """
        while self.lease.hold is not Hold.DONE and not self.lease.may_upload():
            await self._within_lease("renew")
            if not self.lease.may_run() or self.lease.record.phase is not Phase.DELIVERING:
                raise self._lost()

    async def finish(self, verdict: Verdict, events: int, *, is_lost: bool = False) -> bool:
        """Record the verdict; return whether it is the valid one.

        It may be written after the fence too: the record is changed only if it is still the holder's own.

        Parameters
        ----------
        verdict : Verdict
            How the job ended.
        events : int
            Number of events of the attempt.
        is_lost : bool
            The machine failed and not the job, and nothing was uploaded.
        """
        lease = self.lease
        try:
            async with asyncio.timeout(ANSWER_SECONDS), self._lock:
                while lease.hold is not Hold.DONE:
                    try:
                        if not await self._write(Phase.DONE, verdict, events, is_lost=is_lost):
                            return False
                    except NoReply:
                        await asyncio.sleep(RETRY_SECONDS)
        except TimeoutError:
            return False
        return True

    async def _within_lease(self, what: Literal["renew", "deliver"]) -> None:
        """Write until it is confirmed, the lease is lost, or the fence is reached."""
        lease = self.lease
        try:
            async with asyncio.timeout(max(0.0, lease.fence_at - lease.clock())), self._lock:
                while lease.may_run() and not (what == "deliver" and lease.record.phase is Phase.DELIVERING):
                    is_written = False
                    with contextlib.suppress(NoReply):
                        is_written = await self._write(Phase.DELIVERING if what == "deliver" else lease.record.phase)
                    if is_written and what == "renew":
                        return
                    # also if the broker has lost the record: it has an older revision, or none, and answers at once
                    if not is_written and lease.may_run():
                        await asyncio.sleep(RETRY_SECONDS)
        except TimeoutError:
            return

    async def _write(
        self, phase: Phase, verdict: Verdict | None = None, events: int = 0, *, is_lost: bool = False
    ) -> bool:
        """Write once, read if the outcome is unknown, and return whether the record is still the holder's.

        Raises
        ------
        NoReply
            Neither the write nor the read was answered.
        """
        lease = self.lease
        began = time.monotonic()
        write = lease.write(phase, verdict, events, is_lost=is_lost)
        try:
            revision = await self._bucket.update(self._key, encode(write.record), write.revision)
        except (Refused, NoReply):
            stored = await self._bucket.get(self._key)
            record = record_of(stored)
            lease.found(record, stored.revision if stored is not None else 0)
            return record is not None and lease.is_mine(record)
        lease.found(write.record, revision)
        self._on_confirmed(time.monotonic() - began)
        return True

    def _lost(self) -> JobFailed:
        return JobFailed(FailureCode.HOST_LOST, "This host lost its lease, so another one may run the job")
