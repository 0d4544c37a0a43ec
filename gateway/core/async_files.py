"""File descriptors whose blocking work runs in threads, and that stay open until that work has ended."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncGenerator, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from gateway.core.tasks import retrieve_exception

T = TypeVar("T")

#: One call in a thread costs about 50 µs, one MiB into the page cache about 300 µs: the loop stays free for both.
BLOCK_BYTES = 1 << 20

#: writev(2) accepts 1024.
CHUNKS_AT_ONCE = 1000

COPY_STEP_BYTES = 16 << 20

#: This much is written or read in 30 µs (page cache), which is less than a call in a thread takes.
SMALL_BYTES = 1 << 16

#: Errors of a write when no space is left.
DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class ThreadedFiles:
    """Owns descriptors and runs blocking calls on them, one at a time, in the loop's thread pool.

    A caller may be cancelled while its call still runs in the thread. If the descriptor was closed then, its number
    could be given to another file, so `close` waits for the call by a callback.

    Parameters
    ----------
    *fds : int
        Owned from now on.
    """

    def __init__(self, *fds: int) -> None:
        self._fds = fds
        self._pending: asyncio.Future[Any] | None = None

    async def run(self, work: Callable[[], T]) -> T:
        """Run `work` in a thread and return its result.

        Parameters
        ----------
        work : callable
            May block.
        """
        future = asyncio.get_running_loop().run_in_executor(None, work)
        self._pending = future
        # shielded: cancelling would mark the future as done while the thread still works
        return await asyncio.shield(future)

    def close(self) -> None:
        """Close the descriptors, now or as soon as the call in the thread has ended."""
        fds, self._fds = self._fds, ()
        if self._pending is None or self._pending.done():
            _close_all(fds)
        else:
            self._pending.add_done_callback(partial(_retrieve_and_close, fds))


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
        self._chunks: list[bytes] = []
        self._waiting_bytes = 0
        self._writing: asyncio.Future[None] | None = None
        self.written_bytes = 0

    async def write(self, chunk: bytes) -> None:
        """Accept a chunk; return at once unless the disk is slower than the sender.

        Parameters
        ----------
        chunk : bytes
            Any size.

        Raises
        ------
        OSError
            An earlier block could not be written.
        """
        self._chunks.append(chunk)
        self._waiting_bytes += len(chunk)
        self.written_bytes += len(chunk)
        if self._waiting_bytes >= BLOCK_BYTES or len(self._chunks) >= CHUNKS_AT_ONCE:
            await self._flush()

    async def finish(self) -> None:
        """Return when everything is written."""
        if self._waiting_bytes <= SMALL_BYTES:
            await self._wait_written()
            _write_all(self._fd, self._take())
            return
        await self._flush()
        await self._wait_written()

    async def restart(self) -> None:
        """Empty the file, for another attempt."""
        with contextlib.suppress(OSError):
            await self._wait_written()
        self._take()
        self.written_bytes = 0
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)

    def close(self) -> None:
        """Close the file and drop what was not flushed."""
        if self._writing is not None:
            # the thread continues, and ThreadedFiles keeps the descriptor open until it has ended
            self._writing.cancel()
            self._writing.add_done_callback(retrieve_exception)
        self._files.close()

    async def _flush(self) -> None:
        await self._wait_written()
        if self._chunks:
            self._writing = asyncio.ensure_future(self._files.run(partial(_write_all, self._fd, self._take())))

    def _take(self) -> list[bytes]:
        chunks, self._chunks, self._waiting_bytes = self._chunks, [], 0
        return chunks

    async def _wait_written(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            try:
                await asyncio.shield(writing)
            except asyncio.CancelledError:
                writing.add_done_callback(retrieve_exception)
                raise


async def read_blocks(fd: int, size_bytes: int, block_bytes: int) -> AsyncGenerator[bytes]:
    """Yield exactly `size_bytes` of a file from its beginning, read in a thread.

    Parameters
    ----------
    fd : int
        Stays the caller's.
    size_bytes : int
        Size of the file.
    block_bytes : int
        Size of a block.

    Yields
    ------
    bytes

    Raises
    ------
    OSError
        The file could not be read, or is shorter than `size_bytes`.
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
    """Copy the beginning of one file to the current end of another, inside Linux where possible.

    Parameters
    ----------
    source_fd, target_fd : int
        Stay the caller's.
    size_bytes : int
        How much to copy.

    Raises
    ------
    OSError
        Reading or writing failed, or the source is shorter than `size_bytes`.
    """
    source, target = os.dup(source_fd), os.dup(target_fd)
    files = ThreadedFiles(source, target)
    try:
        offset = 0
        while offset < size_bytes:
            count, at = min(COPY_STEP_BYTES, size_bytes - offset), offset
            copy = partial(os.sendfile, target, source, at, count)
            done = copy() if size_bytes <= SMALL_BYTES else await files.run(copy)
            if done == 0:
                raise OSError(f"the file ended after {offset} of {size_bytes} bytes")
            offset += done
    finally:
        files.close()


def create_file(path: Path, mode: int = 0o644, *, dir_fd: int | None = None) -> int:
    """Create a file that does not exist yet, with exactly this mode.

    Parameters
    ----------
    path : Path
        An existing file or link of this name is an error.
    mode : int
        Permission bits, whatever the umask is.
    dir_fd : int, optional
        Directory that a relative `path` starts from.

    Returns
    -------
    int
        A descriptor for reading and writing.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=dir_fd)
    os.fchmod(fd, mode)  # the umask must not remove permissions that others need
    return fd


def _write_all(fd: int, chunks: list[bytes]) -> None:
    done = os.writev(fd, chunks) if chunks else 0
    for chunk in chunks:
        # a full disk or a signal may have cut the first call short
        written, done = min(done, len(chunk)), max(done - len(chunk), 0)
        while written < len(chunk):
            written += os.write(fd, chunk[written:])


def _close_all(fds: tuple[int, ...]) -> None:
    for fd in fds:
        os.close(fd)


def _retrieve_and_close(fds: tuple[int, ...], future: asyncio.Future[Any]) -> None:
    retrieve_exception(future)  # its caller is gone
    _close_all(fds)
