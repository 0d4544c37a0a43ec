"""Send the events of one attempt from its host to the member that accepted the job.

They are sent in batches, and may be lost. Each event has a number, so the other side detects a gap and asks for the
missing events.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

from gateway.cluster.broker import MESSAGE_CAP_BYTES, Broker, subjects
from gateway.cluster.wire import BATCH_BYTES, EventBatch, LeaseRecord, batches, encode
from gateway.core.events import Displayed, Event, LogLine
from gateway.core.wire import to_json

#: Number of events that are kept to be sent again, and the size of their lines; the oldest are dropped first.
KEPT_EVENTS, KEPT_BYTES = 100_000, 8_000_000

#: Least time between two batches. Around its start a job has six events within milliseconds, and each batch wakes host,
#: broker and member.
BETWEEN_SECONDS = 0.005

#: Largest size of a batch without its events.
ENVELOPE_BYTES = 1000

TOO_LARGE = "A line, image or table is not shown: it is too large for the cluster's broker"


class Relay:
    """Takes the events of an attempt and sends them.

    Parameters
    ----------
    broker : Broker
    owner : str
        Name of the member that accepted the job.
    execution_id : str
    attempt : int

    Attributes
    ----------
    count : int
        Number of events so far.
    """

    def __init__(self, broker: Broker, owner: str, execution_id: str, attempt: int) -> None:
        self._broker = broker
        self._subject = subjects.events(owner)
        self._id, self._attempt = execution_id, attempt
        self._kept: deque[Event] = deque()
        self._kept_bytes = 0
        self._sent, self._sent_at = 0, float("-inf")
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._has_begun = False
        self.count = 0

    async def begin(self, record: LeaseRecord) -> None:
        """Begin to send: the attempt is this host's, as the record says, and no other host sends its events."""
        self._has_begun = True
        await self.tell(record)

    def take(self, event: Event) -> None:
        """Take one event; never blocks."""
        # as JSON, escapes may make it several times as large as its text
        if _size(event) > BATCH_BYTES and len(to_json(event)) > MESSAGE_CAP_BYTES - ENVELOPE_BYTES:
            event = LogLine(time.time(), "stderr", TOO_LARGE)
        self._kept.append(event)
        self._kept_bytes += _size(event)
        self.count += 1
        while len(self._kept) > KEPT_EVENTS or self._kept_bytes > KEPT_BYTES:
            self._kept_bytes -= _size(self._kept.popleft())
        if self._has_begun and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._send_soon(), name=f"events {self._id}")

    async def tell(self, record: LeaseRecord) -> None:
        """Send the pending events and the record as it is now, so that the other side need not read it."""
        await self._flush()
        await self._broker.send(self._subject, encode(EventBatch(self._id, self._attempt, self.count, lease=record)))

    async def _send_soon(self) -> None:
        await asyncio.sleep(self._sent_at + BETWEEN_SECONDS - time.monotonic())
        await self._flush()

    async def _flush(self) -> None:
        async with self._lock:
            self._sent_at = time.monotonic()
            while self._sent < self.count:
                for batch in batches(self._id, self._attempt, *self._from(self._sent)):
                    await self._broker.send(self._subject, encode(batch))
                    self._sent = batch.first + len(batch.events)

    def batch_from(self, first: int) -> EventBatch:
        """Return one batch that begins with an event, or with the oldest that is kept."""
        return batches(self._id, self._attempt, *self._from(first))[0]

    def _from(self, first: int) -> tuple[int, list[Event]]:
        oldest = self.count - len(self._kept)
        first = min(max(first, oldest), self.count)
        return first, list(self._kept)[first - oldest :]


def _size(event: Event) -> int:
    match event:
        case LogLine(_, _, message):
            return len(message) + 50
        case Displayed(display):
            return display.size_bytes
        case _:
            return 100
