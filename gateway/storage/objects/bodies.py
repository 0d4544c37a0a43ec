"""The body of an upload, and the lowest speed that bodies may have."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import aiohttp
from aiohttp.abc import AbstractStreamWriter

from gateway.storage.objects.errors import StorageError

#: A transfer that is slower than this on average is aborted: a server that sends single bytes would delay a job
#: forever.
SLOWEST_BYTES_PER_SECOND = 50_000


class Pace:
    """The bound on one body's average speed."""

    def __init__(self, stall_seconds: float) -> None:
        self._stall_seconds = stall_seconds
        self._began = time.monotonic()

    def check(self, transferred_bytes: int) -> None:
        """Raise an error when the transfer took longer than `transferred_bytes` can justify.

        Parameters
        ----------
        transferred_bytes : int
            Size of what was sent or received so far.

        Raises
        ------
        StorageError
        """
        elapsed_seconds = time.monotonic() - self._began
        if elapsed_seconds > 2 * self._stall_seconds + transferred_bytes / SLOWEST_BYTES_PER_SECOND:
            raise StorageError(f"the storage is too slow: {transferred_bytes} bytes in {elapsed_seconds:.0f} s")


class UploadBody(aiohttp.Payload):
    """A request's body, read block by block while aiohttp sends it.

    Attributes
    ----------
    deadline : asyncio.Timeout or None
        Extended with each block that the server accepts.
    failure : Exception or None
        The error that ended the body, unless the connection broke: aiohttp would hide it behind an error of its own.
    """

    def __init__(
        self,
        blocks: AsyncGenerator[bytes],
        size_bytes: int,
        stall_seconds: float,
        on_progress: Callable[[int], None] | None,
    ) -> None:
        super().__init__(blocks)
        self._size = size_bytes
        self._blocks = blocks
        self._stall_seconds = stall_seconds
        self._on_progress = on_progress
        self.sent_bytes = 0
        self.deadline: asyncio.Timeout | None = None
        self.failure: Exception | None = None
        self._transport: asyncio.WriteTransport | None = None

    @property
    def is_complete(self) -> bool:
        """Whether all of it was handed to the connection."""
        return self.sent_bytes == self._size

    def abort(self) -> None:
        """Close the connection at once: aiohttp would first wait until the server accepts the buffered data."""
        if self._transport is not None:
            self._transport.abort()

    async def write(self, writer: AbstractStreamWriter) -> None:
        self._transport = writer.transport
        pace = Pace(self._stall_seconds)
        try:
            async with aclosing(self._blocks) as blocks:
                self._extend()
                async for block in blocks:
                    # counted first: the answer may arrive before the write of the last block returns
                    self.sent_bytes += len(block)
                    # Two turns of the loop read an answer that is there already. A write to a connection which the
                    # server has reset after its answer would discard that answer unread.
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
                    await writer.write(block)
                    self._extend()
                    pace.check(self.sent_bytes)
                    if self._on_progress is not None:
                        self._on_progress(self.sent_bytes)
        except aiohttp.ClientError:
            raise
        except Exception as error:
            self.failure = error
            raise

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        raise TypeError("the body of an upload is read once")

    def _extend(self) -> None:
        if self.deadline is not None and not self.deadline.expired():
            self.deadline.reschedule(asyncio.get_running_loop().time() + self._stall_seconds)
