"""Records with compare-and-set, in buckets of the broker, and how a write to one can fail."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from nats.errors import Error as NatsError
from nats.js.errors import (
    APIError,
    KeyNotFoundError,
    KeyWrongLastSequenceError,
    NoStreamResponseError,
    NotFoundError,
    ServiceUnavailableError,
)
from nats.js.kv import KeyValue

#: Longest wait for an answer of the broker.
REPLY_SECONDS = 2.0

#: Code of the server's answer when its disk, or the part of it that it may use, is full.
FULL_CODE = 10023

Failures = (NatsError, TimeoutError, OSError)


class Refused(Exception):
    """The record is not at the expected revision; nothing was written."""


class NoReply(Exception):
    """The broker did not answer in time; a write may have taken effect, or may still do."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A record and its revision."""

    data: bytes
    revision: int


class Bucket:
    """Records with compare-and-set."""

    def __init__(self, values: KeyValue, on_failure: Callable[[Exception], None]) -> None:
        self._values = values
        self._on_failure = on_failure

    async def get(self, key: str) -> Stored | None:
        """Return a record, or None if there is none.

        Raises
        ------
        NoReply
        """
        try:
            async with asyncio.timeout(REPLY_SECONDS):
                entry = await self._values.get(key)
        except (KeyNotFoundError, NotFoundError):
            return None
        except Failures as error:
            raise NoReply(said_by(error)) from None
        return Stored(entry.value or b"", entry.revision or 0)

    async def create(self, key: str, data: bytes) -> int:
        """Write a record that does not exist, and return its revision.

        Raises
        ------
        Refused, NoReply
        """
        return await self._write(self._values.create(key, data))

    async def put(self, key: str, data: bytes) -> int:
        """Write a record, replacing any other, and return its revision.

        Raises
        ------
        NoReply
        """
        return await self._write(self._values.put(key, data))

    async def update(self, key: str, data: bytes, revision: int) -> int:
        """Write a record that is at a revision, and return its new one.

        Raises
        ------
        Refused, NoReply
        """
        return await self._write(self._values.update(key, data, revision))

    async def remove(self, key: str, revision: int | None = None) -> bool:
        """Remove a record, and return whether that was confirmed; else the broker may keep it until it expires."""
        try:
            async with asyncio.timeout(REPLY_SECONDS):
                return await self._values.delete(key, revision)
        except Failures as error:
            self._on_failure(error)
            return False

    async def _write(self, write: Awaitable[int]) -> int:
        try:
            async with asyncio.timeout(REPLY_SECONDS):
                return await write
        except KeyWrongLastSequenceError as error:
            raise Refused(str(error)) from None
        except Failures as error:
            self._on_failure(error)
            raise NoReply(said_by(error)) from None


def said_by(error: Exception) -> str:
    """Return the text of an error, or its class if it has none."""
    if isinstance(error, APIError) and error.err_code == FULL_CODE:
        return f"its storage is full ({error.description})"
    if isinstance(error, TimeoutError):
        return "it does not answer in time"
    if isinstance(error, ServiceUnavailableError | NoStreamResponseError):
        return "it has no JetStream now"
    return str(error) or type(error).__name__
