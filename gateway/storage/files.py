"""File descriptors whose blocking work is done in threads, and that stay open until that work is over."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

BLOCK_BYTES = 1 << 20
"""One hand-over to a thread costs about 50 µs, one MiB into the page cache about 300 µs: the loop stays
free for both."""

COPY_STEP_BYTES = 16 << 20

SMALL_BYTES = 1 << 16
"""So little is written or read in 30 µs (page cache), less than the hand-over to a thread takes."""


class ThreadedFiles:
    """Owns descriptors and runs blocking calls on them, one at a time, in the loop's thread pool.

    A cancelled caller may leave while its call is still going on in the thread. Closing the descriptor under
    it could hand its number to another file, so `close` waits for the call by a callback.
    """

    def __init__(self, *fds: int) -> None:
        self._fds = fds
        self._pending: asyncio.Future[Any] | None = None

    async def run(self, work: Callable[[], T]) -> T:
        """Return what `work` returns."""
        future = asyncio.get_running_loop().run_in_executor(None, work)
        self._pending = future
        # shielded: cancelling would mark the future as done while the thread still works
        return await asyncio.shield(future)

    def close(self) -> None:
        """Close the descriptors, now or as soon as the call in the thread is over."""
        fds, self._fds = self._fds, ()
        if self._pending is None or self._pending.done():
            _close_all(fds)
        else:
            self._pending.add_done_callback(partial(_look_and_close, fds))


class FileWriter:
    """Writes a stream to a file in blocks, while the next block is being received.

    Parameters
    ----------
    fd : int
        Owned from now on.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._files = ThreadedFiles(fd)
        self._block = bytearray()
        self._writing: asyncio.Future[None] | None = None
        self.written_bytes = 0

    async def write(self, chunk: bytes | bytearray) -> None:
        """Take a chunk, which must not change any more; returns at once unless the disk is slower than the sender.

        Raises
        ------
        OSError
            An earlier block could not be written.
        """
        if not self._block and isinstance(chunk, bytearray):
            self._block = chunk
        else:
            self._block += chunk
        self.written_bytes += len(chunk)
        if len(self._block) >= BLOCK_BYTES:
            await self._flush()

    async def finish(self) -> None:
        """Return when everything is written."""
        if len(self._block) <= SMALL_BYTES:
            await self._settle()
            block, self._block = self._block, bytearray()
            _write_all(self._fd, block)
            return
        await self._flush()
        await self._settle()

    async def restart(self) -> None:
        """Empty the file, for another attempt."""
        with contextlib.suppress(OSError):
            await self._settle()
        self._block = bytearray()
        self.written_bytes = 0
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)

    def close(self) -> None:
        """Close the file; what was not flushed is dropped."""
        if self._writing is not None:
            # the thread goes on, and ThreadedFiles keeps the descriptor until it is through
            self._writing.cancel()
            self._writing.add_done_callback(_look)
        self._files.close()

    async def _flush(self) -> None:
        await self._settle()
        if self._block:
            block, self._block = self._block, bytearray()
            self._writing = asyncio.ensure_future(self._files.run(partial(_write_all, self._fd, block)))

    async def _settle(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            try:
                await asyncio.shield(writing)
            except asyncio.CancelledError:
                writing.add_done_callback(_look)
                raise


async def read_blocks(fd: int, size_bytes: int, block_bytes: int = BLOCK_BYTES // 2) -> AsyncGenerator[bytes]:
    """Yield exactly `size_bytes` of a file from its beginning, read in a thread.

    Raises
    ------
    OSError
        The file could not be read, or is shorter than said.
    """
    if size_bytes <= SMALL_BYTES:
        block = os.pread(fd, size_bytes, 0)
        if len(block) < size_bytes:
            raise OSError(f"the file ended after {len(block)} of {size_bytes} bytes")
        yield block
        return
    own = os.dup(fd)
    files = ThreadedFiles(own)
    try:
        offset = 0
        while offset < size_bytes:
            count, at = min(block_bytes, size_bytes - offset), offset
            block = await files.run(partial(os.pread, own, count, at))
            if not block:
                raise OSError(f"the file ended after {offset} of {size_bytes} bytes")
            offset += len(block)
            yield block
    finally:
        files.close()


async def copy_file(source_fd: int, target_fd: int, size_bytes: int) -> None:
    """Copy `size_bytes` from the beginning of one file to the current end of another, inside the kernel where
    it can.

    Both descriptors stay the caller's.

    Raises
    ------
    OSError
        Reading or writing failed, or the source is shorter than said.
    """
    source, target = os.dup(source_fd), os.dup(target_fd)
    files = ThreadedFiles(source, target)
    try:
        offset = 0
        while offset < size_bytes:
            count, at = min(COPY_STEP_BYTES, size_bytes - offset), offset
            done = await files.run(partial(os.sendfile, target, source, at, count))
            if done == 0:
                raise OSError(f"the file ended after {offset} of {size_bytes} bytes")
            offset += done
    finally:
        files.close()


def create_file(path: Path, mode: int = 0o644, *, dir_fd: int | None = None) -> int:
    """Create a file that was not there, with exactly this mode, and return its descriptor."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=dir_fd)
    os.fchmod(fd, mode)  # the umask must not keep others from reading what is meant for them
    return fd


def _write_all(fd: int, block: bytearray) -> None:
    with memoryview(block) as view:
        done = 0
        while done < len(view):
            done += os.write(fd, view[done:])


def _close_all(fds: tuple[int, ...]) -> None:
    for fd in fds:
        os.close(fd)


def _look_and_close(fds: tuple[int, ...], future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()  # its caller is gone; unseen, the loop would report it
    _close_all(fds)


def _look(future: asyncio.Future[None]) -> None:
    if not future.cancelled():
        future.exception()
