"""Recognise the compression of stored objects by their Content-Encoding."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Literal

Compression = Literal["gzip", "zstd"]


class UnusableInput(Exception):
    """An input cannot be used, and another attempt would not help; the text says why."""


def compression_of(content_encoding: str | None) -> Compression | None:
    """Return the compression of a stored object.

    ``aws-chunked`` only describes how some SDKs once sent the object; S3 keeps the word although the object is plain.

    Parameters
    ----------
    content_encoding : str or None
        The header of the answer.

    Returns
    -------
    str or None

    Raises
    ------
    UnusableInput
        The object is compressed in another way, or more than once.
    """
    words = [word.strip().lower() for word in (content_encoding or "").split(",")]
    words = [word for word in words if word not in ("", "identity", "aws-chunked")]
    match words:
        case []:
            return None
        case ["gzip" | "x-gzip"]:
            return "gzip"
        case ["zstd"]:
            return "zstd"
        case _:
            raise UnusableInput(f"it is compressed with {', '.join(words)!r}; gzip and zstd are supported")


def decompress_manifest(path: Path, limit_bytes: int) -> None:
    """Replace a manifest compressed with gzip by its plain content.

    Parameters
    ----------
    path : Path
        The file, changed in place.
    limit_bytes : int
        Largest plain size.

    Raises
    ------
    UnusableInput
        The file is not valid gzip, cut off or too large.
    """
    decompressor = zlib.decompressobj(wbits=31)
    try:
        plain = decompressor.decompress(path.read_bytes(), limit_bytes + 1)
    except zlib.error as error:
        raise UnusableInput(f"its manifest is not valid gzip: {error}") from None
    if len(plain) > limit_bytes or not decompressor.eof:
        raise UnusableInput(f"its manifest is truncated, or larger than {limit_bytes} bytes when decompressed")
    with path.open("r+b") as file:  # makes no file: the job may have ended meanwhile, and its files are removed
        file.truncate(file.write(plain))
