"""The text of a failed job on stderr, and the code and message in result.json.

The first line in the log is Metabase's (its tests compare it); the message of result.json begins with the exception's
type and names the line that raised it. The last line gives the reason and the remedy, where the exception does not.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import re
import traceback
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from transform_shim.core.errors import InvalidReturn, ResultFailed, ShimError
from transform_shim.job.failure_hints import hint, return_hint
from transform_shim.job.result import peak_memory_bytes
from transform_shim.job.script import shown_text
from transform_shim.job.traceback_text import render, users_place

__all__ = ["Failure", "describe", "free_frames"]

_HEADLINES = {
    "import": "Failed to import user script",
    "transform": "Transform function failed",
    "read": "Failed to read the tables",
    "write": "Failed to write the output",
    "profile": "Failed to profile the output",
    "result": "Transform function failed",
}
#: Stages in which the user's code raises; "result" is a lazy result that is computed while it is written.
_USERS_STAGES = frozenset({"import", "transform", "result"})
_MESSAGE_CHARS = 64 << 10
_MIB = 1 << 20
_SCRATCH = ("/dev/shm", "/tmp")  # noqa: S108
#: Exceptions of engines that mean a MemoryError and are not one (DuckDB).
_MEMORY_ERRORS = frozenset({"OutOfMemoryException"})
#: Texts of allocators in exceptions that have other meanings too (Arrow through Polars, or through a stream).
_MEMORY_TEXT = re.compile(
    r"\b(malloc|realloc|calloc) of size \d+ failed|memory allocation of \d+ bytes failed|^MemoryError\b"
)
#: The text of engines for ENOSPC in exceptions without a number.
_FULL_TEXT = os.strerror(errno.ENOSPC)
#: Bytes that may be free on a full disk when the failed write has given back its last pages.
_FULL_BYTES = 1 << 20
#: Inodes below which the disk counts as full: another process may have removed files since the job met the error.
_FULL_INODES = 100
#: Functions of the standard library that start processes; the innermost frame of an EAGAIN that came from fork().
_FORKING = frozenset({"_execute_child", "_launch", "_fork_exec", "fork", "forkpty", "spawnv_passfds"})


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed job: ``text`` goes to stderr, the rest into result.json."""

    code: str
    message: str
    text: str
    exit_code: int = 1


def describe(
    error: BaseException,
    stage: str,
    limits: Mapping[str, int],
    broken: Sequence[ShimError] = (),
    returned: Sequence[object] = (),
    tables: Collection[str] = (),
) -> Failure:
    """Describe a failure.

    Parameters
    ----------
    error : BaseException
        The exception that ended the job, with its traceback.
    stage : {'import', 'read', 'transform', 'write', 'profile'}
        The stage in which it was raised.
    limits : mapping
        The job's limits, by the names of the request.
    broken : sequence of ShimError
        The failures of tables that were read on demand. An engine that consumed them (polars, DuckDB) raises an
        exception of its own, which may keep only the text of ours.
    returned : sequence of one object
        The return value of transform(), if it returned.
    tables : collection of str
        The names of the job's tables.
    """
    if isinstance(error, ResultFailed) and error.__cause__ is not None:
        error, stage = error.__cause__, "result"
    failure = _described(error, stage, limits, broken)
    said = ""
    if isinstance(error, InvalidReturn):
        said = error.hint or (return_hint(returned[0]) if returned else "")
    if failure.code in ("user_error", "syntax_error") and not said:
        with contextlib.suppress(Exception):  # it looks into objects of the user's
            said = hint(error, tables)
    if not said:
        return failure
    return replace(failure, message=f"{failure.message}; {said}", text=f"{failure.text}HINT: {said}\n")


def _described(error: BaseException, stage: str, limits: Mapping[str, int], broken: Sequence[ShimError]) -> Failure:
    kind = type(error).__name__
    if isinstance(error, ShimError) and error.code != "shim_error":
        message = str(error)
        # a lazy table breaks while the user's code consumes it: then the user's line belongs to it
        trace = render(error) if stage == "transform" else ""
        return Failure(error.code, message, f"ERROR: {message}\n{trace}")
    if isinstance(error, SystemExit):
        return _exited(error, stage)
    cause = _shim_error_in(error, broken)
    if cause is not None:  # an engine (polars, duckdb, Arrow) wrapped the error of our reader
        message = str(cause)
        return Failure(cause.code, message, f"ERROR: {message}\n{render(error)}")
    if isinstance(error, KeyboardInterrupt):
        message = f"Interrupted {_doing(stage)}"
        return Failure("user_error", message, f"ERROR: {message}\n{render(error)}")
    said = _text(error)
    headline = (
        f"{_HEADLINES[stage]}: {said or kind}" if isinstance(error, MemoryError) else f"{_HEADLINES[stage]}: {said}"
    )
    text = f"ERROR: {headline}\n{render(error, fold=stage in _USERS_STAGES)}"
    place = _doing(stage) if _is_of_request(error) else users_place(error) or _doing(stage)
    limit = _limit_hit(error, limits) or _disk_full(error, stage)
    if limit is not None:
        code, message = limit
        return Failure(code, f"{message} {place}", text)
    if stage not in _USERS_STAGES:
        return Failure("shim_error", f"{headline} ({kind})", text)
    code = "syntax_error" if stage == "import" and isinstance(error, SyntaxError) else "user_error"
    return Failure(code, _message(kind, said, place), text)


def _is_of_request(error: BaseException) -> bool:
    """Return whether the script or a library module is not valid Python: its text has file and line."""
    return isinstance(error, SyntaxError) and shown_text(str(error.filename)) != error.filename


def _message(kind: str, said: str, place: str) -> str:
    """Return type, text and place; the place goes before a text of several lines, and after one of a few words."""
    if not said:
        return f"{kind} {place}"
    first, newline, rest = said.partition("\n")
    return f"{kind}: {first} {place}{newline}{rest}"


def free_frames(error: BaseException) -> None:
    """Clear the local variables of the failed code, so that there is memory to describe the failure."""
    pending: list[BaseException] = [error]
    seen: set[int] = set()
    while pending:
        current = pending.pop()
        if id(current) not in seen:
            seen.add(id(current))
            traceback.clear_frames(current.__traceback__)
            pending += [other for other in (current.__cause__, current.__context__) if other is not None]
    gc.collect()


def _exited(error: SystemExit, stage: str) -> Failure:
    """Describe sys.exit() by the script: never a success, as there is no result (Metabase takes 0 for one)."""
    status = error.code
    exit_code = status if isinstance(status, int) and status % 256 else 1
    message = f"The script called sys.exit({status!r}) {users_place(error) or _doing(stage)}"
    said = f"{status}\n" if isinstance(status, str) else ""  # what Python itself would print
    return Failure("exited", message, f"{said}ERROR: {message}\n", int(exit_code))


def _doing(stage: str) -> str:
    return {
        "import": "while it was imported",
        "transform": "in transform()",
        "read": "while the tables were read",
        "write": "while the output was written",
        "profile": "while the output was profiled",
        "result": "while the lazy result of transform() was computed",
    }[stage]


def _limit_hit(error: BaseException, limits: Mapping[str, int]) -> tuple[str, str] | None:
    """Return code and sentence if a limit of the job is behind the error, else None."""
    number = error.errno if isinstance(error, OSError) else None
    if _is_memory(error):
        # The limit counts requested memory, the peak used memory: bytearray(3 << 30) is refused at a peak of 97 MiB.
        limit, peak = _size(limits.get("memory_bytes")), _size(peak_memory_bytes())
        text = f"Memory limit of {limit} reached: a request for more was refused (at most {peak} were in use before it)"
        return "memory_limit", text
    if number == errno.EFBIG:
        return "file_size_limit", f"File size limit of {_size(limits.get('file_size_bytes'))} reached"
    if number == errno.ENOSPC and (full := _full_place()) is not None:
        return "disk_limit", f"Disk limit reached: {full}; the job's own directory has more room"
    if number == errno.EMFILE:
        return "descriptor_limit", f"Limit of {_count(limits, 'descriptors')} open files reached"
    if (number == errno.EAGAIN and _is_fork(error)) or _is_thread_start(error):
        return "process_limit", f"Limit of {_count(limits, 'processes')} processes and threads reached"
    return None


def _disk_full(error: BaseException, stage: str) -> tuple[str, str] | None:
    """Return code and sentence if the disk of the job's directory, which is the gateway's, is full, else None."""
    is_full = isinstance(error, OSError) and error.errno == errno.ENOSPC
    if not is_full and _FULL_TEXT not in _text(error):
        return None
    # the output goes to that disk and is removed when it does not fit; the user's code may write elsewhere
    if stage == "write" or _is_full(os.curdir, _FULL_BYTES, _FULL_INODES):
        return "gateway_disk_failed", "The disk of the gateway is full: no space left for the job's files"
    return None


def _is_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ in _MEMORY_ERRORS:
        return True
    return (isinstance(error, OSError) and error.errno == errno.ENOMEM) or bool(_MEMORY_TEXT.search(_text(error)))


def _full_place() -> str | None:
    """Name the full one of the small, memory-backed places outside of the job's directory; None if none is full."""
    for place in _SCRATCH:
        with contextlib.suppress(OSError):
            if _is_full(place):
                found = os.statvfs(place)
                return f"{place} is full, it holds {_size(found.f_blocks * found.f_frsize)}"
    return None


def _is_full(place: str, less_than_bytes: int = 1, fewer_than_inodes: int = 1) -> bool:
    found = os.statvfs(place)
    has_inodes = not found.f_files or found.f_favail >= fewer_than_inodes
    return found.f_bavail * found.f_frsize < less_than_bytes or not has_inodes


def _count(limits: Mapping[str, int], name: str) -> str:
    return str(limits.get(name, "the allowed number of"))


def _size(size_bytes: int | None) -> str:
    if size_bytes is None:
        return "the job"
    # a limit in the unit in which it was set
    return f"{size_bytes // 10**6} MB" if not size_bytes % 10**6 else f"{size_bytes / _MIB:.0f} MiB"


def _is_thread_start(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and str(error).startswith("can't start new thread")


def _is_fork(error: BaseException) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and (frames[-1].name in _FORKING or "fork" in (frames[-1].line or ""))


def _shim_error_in(error: BaseException, broken: Sequence[ShimError]) -> ShimError | None:
    """Return the failure of ours that an engine wrapped: as its cause, its context, or only in its text."""
    said = _text(error)
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if isinstance(current, ShimError):
            return current
        current = current.__cause__ or current.__context__
    return next((known for known in broken if str(known) in said), None)


def _text(error: BaseException) -> str:
    try:
        return shown_text(str(error))[:_MESSAGE_CHARS]
    except Exception as broken:  # the user's own exception class
        return f"<{type(error).__name__}, whose str() raises {type(broken).__name__}>"
