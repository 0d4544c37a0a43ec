"""Compressed files."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class UnpackingError(ValueError):
    """A file is not compressed as its name or its storage declares."""


def unpack(path: Path, compression: str, target: Path) -> None:
    """Write the plain content of a compressed file to a new file.

    Raises
    ------
    UnpackingError
        The file is not valid.
    OSError
        A file cannot be read or written.
    """
    import pyarrow as pa  # needed for compressed files only

    with (
        pa.OSFile(str(path), "rb") as packed,
        pa.CompressedInputStream(packed, compression) as stream,
        target.open("xb") as plain,
    ):
        while block := _read(stream, compression):
            plain.write(block)


def _read(stream: Any, compression: str) -> bytes:
    try:
        block: bytes = stream.read(1 << 20)
    except (ValueError, OSError) as error:  # Arrow finds a fault of the content
        raise UnpackingError(f"not valid {compression} ({error})") from None
    return block
