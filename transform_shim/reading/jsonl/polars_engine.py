"""Polars as the parser of JSON lines, where it is installed and a table is large enough to pay for it.

It takes 0.58 s of processor time for 101 MB where Arrow's parser takes 0.76 s (medians, on the way to a pandas frame).
Its writer of JSON lines gains nothing over :mod:`transform_shim.writing.lines.concat` once hashing
and the file are counted.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import mmap
import sys
import threading
from types import ModuleType
from typing import Any

__all__ = ["WORTHWHILE_BYTES", "has_free_memory", "is_worthwhile", "json_engine", "worthwhile_bytes"]

#: Size of a table from which on the parser saves more than its threads and buffers cost.
WORTHWHILE_BYTES = 8 << 20
#: The same where Polars must be imported first, which takes 85 ms.
_IMPORT_BYTES = 64 << 20
#: Private memory that must be left for it to be used: where an allocation fails, Polars ends the process, and the
#: job's owner would not learn why. Its threads and arenas take 60 MB.
_ROOM_BYTES = 160 << 20

#: Lines that a parser which loses nothing must refuse for a column of 64-bit integers. Earlier releases took some.
_NO_INTEGERS = (b"1.5", b"1.0", b"9223372036854775808", b'"1"', b"true", b"[1]")

_lock = threading.Lock()
_found: ModuleType | None = None
_is_known = False


def json_engine() -> Any:
    """Return Polars, imported at the first call; None during the import, if it is unusable or memory is short."""
    global _found, _is_known
    if not has_free_memory():
        return None
    if not _is_known and _lock.acquire(blocking=False):
        try:
            if not _is_known:
                _found = _load()
                _is_known = True
        finally:
            _lock.release()
    return _found


def is_worthwhile(size_bytes: int) -> bool:
    """Return whether the engine pays for a table of this size."""
    return size_bytes >= WORTHWHILE_BYTES and size_bytes >= worthwhile_bytes()


def worthwhile_bytes() -> int:
    """Return the size of a table from which on the engine pays."""
    return WORTHWHILE_BYTES if "polars" in sys.modules or _waits_to_be_imported() else _IMPORT_BYTES


def _waits_to_be_imported() -> bool:
    """Return whether the fork server has already imported Polars."""
    with contextlib.suppress(ValueError):  # a module of that name without a spec
        loader = getattr(importlib.util.find_spec("polars"), "loader", None)
        return bool(getattr(loader, "holds_imported_module", False))
    return False


def has_free_memory() -> bool:
    """Return whether the memory limit is far enough away, by mapping address space and unmapping it untouched."""
    try:
        # private, so that RLIMIT_DATA counts it (setrlimit(2)); a sandboxed kernel cannot look into /proc
        mmap.mmap(-1, _ROOM_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError:
        return False
    return True


def _load() -> ModuleType | None:
    try:
        polars = importlib.import_module("polars")
        return polars if _is_strict(polars) else None
    except BaseException as error:
        # not installed, half installed, a module of the user's by this name; or no thread to be had, which is a panic
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            return None
        raise


def _is_strict(polars: Any) -> bool:
    for value in _NO_INTEGERS:
        try:
            polars.read_ndjson(b'{"a":%s}\n' % value, schema={"a": polars.Int64})
        except polars.exceptions.ComputeError:
            continue
        return False
    good = polars.read_ndjson(b'{"a":-9223372036854775808}\n{"a":null}\n', schema={"a": polars.Int64})
    return bool(good["a"].to_list() == [-(2**63), None])
