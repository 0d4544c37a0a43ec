"""One attempt of a job on this host, from its lease to its verdict."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

from msgspec.structs import replace

from gateway.cluster.broker import MESSAGE_CAP_BYTES
from gateway.cluster.host.relay import Relay
from gateway.cluster.keeper import LeaseKeeper
from gateway.cluster.member import on_host
from gateway.cluster.wire import Assignment, Phase
from gateway.core.cancellation import StopSignal
from gateway.core.job import Verdict
from gateway.core.tasks import set_within, started
from gateway.core.wire import to_json
from gateway.jobs.runner import JobRun

log = logging.getLogger(__name__)

#: How long a host leaves an ended job as it is, so that the job's answer goes first: taking apart a kernel takes a core
#: for 10 ms. On two cores with the member that answers, the answer came more than 1 ms later (measured).
ANSWER_FIRST_SECONDS = 0.025


@dataclass(slots=True, eq=False)
class Attempt:
    """The attempt, while its lease is kept.

    Attributes
    ----------
    assignment : Assignment
    keeper : LeaseKeeper
    relay : Relay
    stop : StopSignal
    run : JobRun
    is_delivered : bool
        Whether its results are uploaded, so that only the verdict is left to record.
    answered, closed : asyncio.Event
        Set when the member that accepted the job needs nothing more, and when the files of the attempt are removed.
    """

    assignment: Assignment
    keeper: LeaseKeeper
    relay: Relay
    stop: StopSignal
    run: JobRun
    is_delivered: bool = False
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    async def work(self) -> None:
        """Run the job, upload its results and record its verdict."""
        run = self.run
        try:
            await self.relay.begin(self.keeper.lease.record)
            await run.execute()
        finally:
            run.leave_slot()
        verdict = run.lost_verdict if self.stop.cause is None else None
        is_lost = verdict is not None
        if verdict is None:
            await self.keeper.begin_delivery()
            verdict = await run.deliver()
        self.is_delivered = True
        if await self._conclude(self._named(verdict), is_lost=is_lost) or self.answered.is_set():
            await set_within(self.answered, ANSWER_FIRST_SECONDS)
        else:
            log.warning("job %s: its verdict could not be recorded", self.assignment.id)

    async def _conclude(self, verdict: Verdict, *, is_lost: bool) -> bool:
        """Send the verdict to the member that waits for it, and record it; return whether it is recorded.

        While the lease holds, that member has given the job to no other host, so it gets the verdict at once: the
        record is for the next process of that member. It may remove the record before this write arrives.
        """
        keeper, relay, events = self.keeper, self.relay, self.relay.count
        is_sent = not is_lost and keeper.lease.may_run()
        async with started(keeper.finish(verdict, events, is_lost=is_lost)) as (finishing,):
            if is_sent:
                await relay.tell(replace(keeper.lease.record, phase=Phase.DONE, verdict=verdict, events=events))
            is_recorded: bool = await finishing
        if is_recorded and not is_sent:
            await relay.tell(keeper.lease.record)
        return is_recorded

    def _named(self, verdict: Verdict) -> Verdict:
        """Return a verdict for the record: its held kernel names this host, and its size fits into a message."""
        if verdict.held is not None:
            verdict = replace(verdict, held=on_host(verdict.held, self.keeper.lease.host))
        if len(to_json(verdict)) > MESSAGE_CAP_BYTES // 2:
            verdict = replace(verdict, tables=(), message=verdict.message[:10_000])
        return verdict

    async def close(self) -> None:
        """Remove the files of the attempt; another attempt of the job has the same directory."""
        try:
            await self.run.close()
        finally:
            self.closed.set()
