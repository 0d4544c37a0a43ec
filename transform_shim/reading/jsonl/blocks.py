"""Blocks of whole lines from a file that may be compressed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from transform_shim.core.errors import InputInvalid
from transform_shim.core.table_file import TableFile

__all__ = ["BLOCK_BYTES", "LineBlock", "count_of", "line_blocks", "open_binary"]

#: Small enough that the blocks in work bound memory, large enough that the cost per block (0.7 ms, most of it that of
#: Polars) counts little. Blocks of 6 MiB are 8 % faster where memory has been used before, but in a job's fresh kernel
#: not at all, and take 13 MiB more.
BLOCK_BYTES = 4 << 20
#: Where the last line end of a block is looked for, in bytes from its end.
_TAIL_BYTES = 64 << 10
_LINE_FEED = ord("\n")
#: As much as is compared at a time when bytes are counted.
_COUNT_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class LineBlock:
    """Some whole lines of a table file, from ``start_bytes`` to ``end_bytes`` of what it holds when unpacked."""

    file: TableFile
    start_bytes: int
    end_bytes: int
    #: The lines of a file that had to be unpacked to find them.
    unpacked: bytes | None = None

    def read(self) -> bytes:
        """Read the lines, in the thread that parses them: no block is in memory while it waits for a thread."""
        if self.unpacked is not None:
            return self.unpacked
        with self.file.data_path.open("rb", buffering=0) as stream:
            return os.pread(stream.fileno(), self.end_bytes - self.start_bytes, self.start_bytes)

    @contextlib.contextmanager
    def numbered(self) -> Iterator[None]:
        """Translate line numbers of errors, which count from this block's first line, to those of the file."""
        try:
            yield
        except InputInvalid as error:
            raise error.moved(self._lines_before()) from None

    def _lines_before(self) -> int:
        # only a mistake has to be numbered: to count the lines of all blocks took 35 of 720 ms for 101 MB
        lines, position = 0, 0
        with open_binary(self.file.data_path, self.file.compression) as stream:
            while data := stream.read(min(BLOCK_BYTES, self.start_bytes - position)):
                lines += count_of(_LINE_FEED, np.frombuffer(data, dtype=np.uint8))
                position += len(data)
        return lines


def open_binary(path: Path, compression: str | None) -> BinaryIO:
    """Open a file for reading, unpacked on the way."""
    if compression is None:
        return path.open("rb", buffering=0)
    return pa.CompressedInputStream(pa.OSFile(str(path), "rb"), compression)  # type: ignore[no-any-return]


def line_blocks(file: TableFile, block_bytes: int = BLOCK_BYTES) -> Iterator[LineBlock]:
    """Find the blocks of a table file that end at line ends; a line longer than a block makes its block longer.

    Raises
    ------
    InputInvalid
        If the file cannot be unpacked.
    """
    start = 0
    if file.compression is None:
        for stop in _block_ends(file.data_path, block_bytes):
            yield LineBlock(file, start, stop)
            start = stop
    else:
        for data in _unpacked_blocks(file, file.compression, block_bytes):
            yield LineBlock(file, start, start + len(data), data)
            start += len(data)


def count_of(byte: int, view: np.ndarray[Any, np.dtype[np.uint8]]) -> int:
    """Count a byte in a view."""
    # bytes.count() takes eight times as long where lines are short, and keeps other threads waiting; comparing a whole
    # block at once takes up to twice as long, because its result does not stay in a core's own cache
    pieces = (view[start : start + _COUNT_BYTES] for start in range(0, view.size, _COUNT_BYTES))
    return sum(int(np.count_nonzero(piece == byte)) for piece in pieces)


def _block_ends(path: Path, block_bytes: int) -> Iterator[int]:
    """Yield where blocks end in a file of lines, reading only their last bytes."""
    with path.open("rb", buffering=0) as stream:
        descriptor, start = stream.fileno(), 0
        size = os.fstat(descriptor).st_size
        while start < size:
            stop = start + block_bytes
            while stop < size:
                tail = os.pread(descriptor, min(_TAIL_BYTES, stop - start), max(stop - _TAIL_BYTES, start))
                if cut := tail.rfind(b"\n") + 1:
                    stop += cut - len(tail)
                    break
                stop += _TAIL_BYTES
            start = min(stop, size)
            yield start


def _unpacked_blocks(file: TableFile, compression: str, block_bytes: int) -> Iterator[bytes]:
    pieces: list[bytes] = []
    with open_binary(file.data_path, compression) as stream:
        while data := _read(stream, block_bytes, file.alias):
            cut = data.rfind(b"\n") + 1
            if not cut:
                pieces.append(data)
                continue
            yield b"".join((*pieces, memoryview(data)[:cut]))
            pieces = [data[cut:]] if cut < len(data) else []
    if rest := b"".join(pieces):
        yield rest


def _read(stream: BinaryIO, size_bytes: int, table: str) -> bytes:
    try:
        return stream.read(size_bytes)
    except OSError as error:
        if error.errno is not None:
            raise
        raise InputInvalid(table, f"the file cannot be unpacked ({error})") from None
