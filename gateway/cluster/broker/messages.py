"""Messages from one member to another, which the broker does not keep."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator

from nats.aio.client import Client
from nats.aio.msg import Msg

from gateway.cluster.broker.records import REPLY_SECONDS, Failures

log = logging.getLogger(__name__)


class Messages:
    """Sends messages and answers those of others, over a connection of its owner."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._answering: set[asyncio.Task[None]] = set()

    async def send(self, subject: str, data: bytes) -> None:
        """Send a message that may be lost."""
        with contextlib.suppress(*Failures):
            async with asyncio.timeout(REPLY_SECONDS):
                await self._client.publish(subject, data)

    async def ask(self, subject: str, data: bytes, seconds: float = REPLY_SECONDS) -> bytes | None:
        """Return the answer to a message, or None if there is none in time."""
        try:
            async with asyncio.timeout(seconds):
                return (await self._client.request(subject, data, timeout=seconds)).data
        except Failures:
            return None

    async def listen(self, subject: str, take: Callable[[bytes], bytes | None]) -> None:
        """Call `take` with each message on a subject, and send back what it returns."""

        async def taken(message: Msg) -> None:
            with _dropped_at_fault(subject):
                await self._reply(message, take(message.data))

        await self._client.subscribe(subject, cb=taken)

    async def serve(self, subject: str, answer: Callable[[bytes], Awaitable[bytes | None]]) -> None:
        """Call `answer` with each message on a subject, several at a time, and send back what it returns."""

        async def answered(message: Msg) -> None:
            with _dropped_at_fault(subject):
                await self._reply(message, await answer(message.data))

        async def taken(message: Msg) -> None:
            task = asyncio.create_task(answered(message), name=f"answer on {subject}")
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)

        await self._client.subscribe(subject, cb=taken)

    async def _reply(self, message: Msg, data: bytes | None) -> None:
        if data is not None and message.reply:
            async with asyncio.timeout(REPLY_SECONDS):
                await self._client.publish(message.reply, data)


@contextlib.contextmanager
def _dropped_at_fault(subject: str) -> Iterator[None]:
    """Log an error that a message on a subject raises: the next message must be taken."""
    try:
        yield
    except Failures:
        log.warning("the broker took no answer on %s", subject)
    except Exception:
        log.exception("a message on %s was dropped", subject)
