"""The events of one job, as the member that accepted it gets them from its hosts: the other side of `Relay`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from gateway.cluster.broker import Broker, subjects
from gateway.cluster.wire import EventBatch, EventsWanted, decode, encode
from gateway.core.events import JobLog, Placed, StateChanged
from gateway.core.wire import WireError

log = logging.getLogger(__name__)

#: How long missing events are asked for once the verdict is known.
MISSING_SECONDS = 5.0


class ReceivedEvents:
    """Adds the events of the newest attempt to the log of the job, in their order, and asks for those that are missing.

    Parameters
    ----------
    broker : Broker
    execution_id : str
    job_log : JobLog
        Gets the events.
    attempt : int
        The present one.
    on_state : callable
        Called after each change of the job's state.

    Attributes
    ----------
    attempt : int
        The present one.
    host : str
        The host that has it, or had the one before; empty until there is one.
    state : StateChanged or None
        The newest.
    """

    def __init__(
        self,
        broker: Broker,
        execution_id: str,
        job_log: JobLog,
        attempt: int,
        on_state: Callable[[StateChanged], None],
    ) -> None:
        self._broker = broker
        self._id = execution_id
        self._log = job_log
        self._on_state = on_state
        self.attempt = attempt
        self.host = ""
        self.state: StateChanged | None = None
        self._next = 0
        self._repairing: asyncio.Task[None] | None = None

    @property
    def is_begun(self) -> bool:
        """Whether a host has the attempt, as its record or its events have shown."""
        return bool(self.host or self._next)

    def place(self, host: str) -> None:
        """Note the host of the attempt."""
        if host not in ("", self.host):
            self._log.emit(Placed(host))
        self.host = host

    def begin(self, attempt: int) -> None:
        """Expect the events of another attempt, which no host has yet."""
        self.attempt, self._next, self.host = attempt, 0, ""

    def take(self, batch: EventBatch) -> None:
        """Process events of the attempt; request those that are missing before them."""
        if batch.first > self._next:
            if self._repairing is None or self._repairing.done():
                self._repairing = asyncio.create_task(self._repair(batch.first + len(batch.events)))
            return
        self._emit(batch)

    async def fetch_missing(self, until: int) -> None:
        """Fetch the last events before a number: the host's verdict may arrive before them."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(MISSING_SECONDS):
                if self._next < until:
                    await asyncio.sleep(0.02)  # they arrive soon, unless one was lost
                    await self._repair(until)
        if (missing := until - self._next) > 0:
            self._log.line("stderr", f"... {missing} lines were lost with the host {self.host} ...")

    async def confirm(self) -> None:
        """Tell the host that the job is answered."""
        if self.host:
            answered = EventsWanted(self._id, self.attempt, self._next, is_answered=True)
            await self._broker.send(subjects.log(self.host), encode(answered))

    async def close(self) -> None:
        """Ask for no more events."""
        if self._repairing is not None:
            self._repairing.cancel()
            await asyncio.gather(self._repairing, return_exceptions=True)

    def _emit(self, batch: EventBatch) -> None:
        for event in batch.events[max(0, self._next - batch.first) :]:
            self._log.emit(event)
            if isinstance(event, StateChanged):
                self.state = event
                self._on_state(event)
        self._next = max(self._next, batch.first + len(batch.events))

    async def _repair(self, until: int) -> None:
        """Ask the host for the events that are missing before `until`; skip those that it no longer has."""
        while self._next < until and self.host:
            wanted = EventsWanted(self._id, self.attempt, self._next)
            answer = await self._broker.ask(subjects.log(self.host), encode(wanted))
            if answer is None:
                return
            try:
                batch = decode(EventBatch, answer)
            except WireError as error:  # the verdict stands without these lines
                log.warning("job %s: the events of %s cannot be read: %s", self._id, self.host, error)
                return
            if batch.attempt != self.attempt or not batch.events:  # the host may have been replaced meanwhile
                return
            if batch.first > self._next:
                missing = batch.first - self._next
                self._log.line("stderr", f"... {missing} lines were lost on the way from the host ...")
                self._next = batch.first
            self._emit(batch)
