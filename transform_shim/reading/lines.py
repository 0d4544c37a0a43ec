"""Blocks of whole lines from a file that may be compressed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from transform_shim.errors import InputInvalid
from transform_shim.request import TableFile

__all__ = ["BLOCK_BYTES", "LineBlock", "line_blocks", "open_binary"]

#: Small enough that a block and its columns stay in the cache of two cores and bound memory, large enough that the
#: cost per block (0.2 ms) does not count; measured best on 104 MB.
BLOCK_BYTES = 4 << 20


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
    line, position, pieces = 1, 0, []
    with open_binary(file.data_path, file.compression) as stream:
        while data := _read(stream, block_bytes, file.alias):
            cut = data.rfind(b"\n") + 1
            if not cut:
                pieces.append(data)
                continue
            block = b"".join((*pieces, memoryview(data)[:cut]))
            pieces = [data[cut:]] if cut < len(data) else []
            position += len(block)
            yield LineBlock(line, block, position)
            line += block.count(b"\n")
    if rest := b"".join(pieces):
        yield LineBlock(line, rest, position + len(rest), is_cut=True)


def _read(stream: BinaryIO, size_bytes: int, table: str) -> bytes:
    try:
        return stream.read(size_bytes)
    except OSError as error:
        if error.errno is not None:
            raise
        raise InputInvalid(table, f"the file cannot be unpacked ({error})") from None
