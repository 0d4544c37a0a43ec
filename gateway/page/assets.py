"""The built files of the page, read and compressed once. `make page` builds them from the sources in this folder."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from functools import cache
from pathlib import Path

BUILT = Path(__file__).parent / "built"

CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """One file of the page, as it is and compressed by gzip."""

    content_type: str
    plain: bytes
    packed: bytes


def asset(name: str) -> Asset | None:
    """Return a built file.

    Parameters
    ----------
    name : str
        Of a file directly in ``built``; never a path.

    Returns
    -------
    Asset or None
        None if there is no such file.
    """
    return _assets().get(name)


@cache
def _assets() -> dict[str, Asset]:
    """Return all files by name. They are read together, because an upgrade below a running gateway replaces them."""
    found = {path: path.read_bytes() for path in BUILT.iterdir() if path.suffix in CONTENT_TYPES}
    # the same bytes in each process: without the time of compression
    return {
        path.name: Asset(CONTENT_TYPES[path.suffix], plain, gzip.compress(plain, mtime=0))
        for path, plain in found.items()
    }
