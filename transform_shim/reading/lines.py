"""Blocks of whole lines from a file that may be compressed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from transform_shim.errors import InputInvalid
from transform_shim.request import TableFile

__all__ = ["BLOCK_BYTES", "LineBlock", "count_of", "line_blocks", "open_binary"]

#: Small enough that a block and its columns stay in the cache of two cores and bound memory, large enough that the
#: cost per block (0.2 ms) does not count; measured best on 104 MB.
BLOCK_BYTES = 4 << 20
#: Where the last line end of a block is looked for, in bytes from its end.
_TAIL_BYTES = 64 << 10
_LINE_FEED = ord("\n")
#: As much as is compared at a time when bytes are counted.
_COUNT_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class LineBlock:
    """Some whole lines: ``first_line`` is the number of the first, counted from 1."""

    first_line: int
    data: bytes
    #: Where the block ends in the uncompressed file, in bytes.
    end_bytes: int
    #: Whether the file ends here, without a final line feed.
    is_cut: bool = False


def open_binary(path: Path, compression: str | None) -> BinaryIO:
    """Open a file for reading, unpacked on the way."""
    if compression is None:
        return path.open("rb", buffering=0)
    return pa.CompressedInputStream(pa.OSFile(str(path), "rb"), compression)  # type: ignore[no-any-return]


def line_blocks(file: TableFile, block_bytes: int = BLOCK_BYTES) -> Iterator[LineBlock]:
    """Read a table file in blocks that end at line ends; a line longer than a block makes its block longer.

    Raises
    ------
    InputInvalid
        If the file cannot be unpacked.
    """
    if file.compression is None:
        blocks = _plain_blocks(file.data_path, block_bytes)
    else:
        blocks = _unpacked_blocks(file, file.compression, block_bytes)
    line, position = 1, 0
    for data in blocks:
        position += len(data)
        yield LineBlock(line, data, position, is_cut=not data.endswith(b"\n"))
        line += count_of(_LINE_FEED, np.frombuffer(data, dtype=np.uint8))


def count_of(byte: int, view: np.ndarray[Any, np.dtype[np.uint8]]) -> int:
    """How often a byte stands in a view of many."""
    # bytes.count() takes eight times as long where lines are short, and keeps other threads waiting; comparing a whole
    # block at once takes up to twice as long, because what comes of it does not stay in a core's own cache
    pieces = (view[start : start + _COUNT_BYTES] for start in range(0, view.size, _COUNT_BYTES))
    return sum(int(np.count_nonzero(piece == byte)) for piece in pieces)


def _plain_blocks(path: Path, block_bytes: int) -> Iterator[bytes]:
    """Blocks read at the offsets where they begin and end, so that nothing is copied twice."""
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
            data = os.pread(descriptor, min(stop, size) - start, start)
            if not data:  # the file became shorter
                return
            yield data
            start += len(data)


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
