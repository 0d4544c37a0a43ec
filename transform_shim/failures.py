"""What is said when a job fails: the text on stderr, and the code and message of result.json.

Texts are Metabase's (its tests compare them), but for the traceback, which begins at the user's own line.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from transform_shim.errors import ShimError
from transform_shim.loading import SCRIPT_FILE
from transform_shim.result import peak_memory_bytes

__all__ = ["Failure", "describe", "free_frames", "is_ours"]

_SHIM_DIR = str(Path(__file__).parent)
_HEADLINES = {
    "import": "Failed to import user script",
    "transform": "Transform function failed",
    "read": "Failed to read the tables",
    "write": "Failed to write the output",
}
_MESSAGE_CHARS = 64 << 10
_MIB = 1 << 20
_SCRATCH = ("/dev/shm", "/tmp")  # noqa: S108
#: Exceptions of engines that are no MemoryError and mean one (DuckDB).
_MEMORY_ERRORS = frozenset({"OutOfMemoryException"})
#: Functions of the standard library that start processes; the innermost frame of an EAGAIN that came from fork().
_FORKING = frozenset({"_execute_child", "_launch", "_fork_exec", "fork", "forkpty", "spawnv_passfds"})


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed job: ``text`` goes to stderr, the rest into result.json."""

    code: str
    message: str
    text: str
    exit_code: int = 1
    error_type: str | None = None
    error_line: int | None = None


def describe(error: BaseException, stage: str, limits: Mapping[str, int], broken: Sequence[ShimError] = ()) -> Failure:
    """Put a failure into words.

    Parameters
    ----------
    error : BaseException
        What ended the job, with its traceback.
    stage : {'import', 'read', 'transform', 'write'}
        What was going on.
    limits : mapping
        The job's limits, by the names of the request.
    broken : sequence of ShimError
        What went wrong while tables were read on demand. An engine that consumed them (polars, DuckDB) raises an
        exception of its own, which may keep no more of ours than its words.
    """
    kind = type(error).__name__
    line = _script_line(error.__traceback__)
    if isinstance(error, ShimError) and error.code != "shim_error":
        message = str(error)
        # a lazy table breaks while the user's code consumes it: then the user's line belongs to it
        trace = _traceback(error) if stage == "transform" else ""
        return Failure(error.code, message, f"ERROR: {message}\n{trace}", error_type=kind, error_line=line)
    if isinstance(error, SystemExit):
        return _exited(error, stage, line)
    cause = _shim_error_in(error, broken)
    if cause is not None:  # an engine (polars, duckdb, Arrow) wrapped what our reader said
        message = str(cause)
        return Failure(cause.code, message, f"ERROR: {message}\n{_traceback(error)}", error_type=kind, error_line=line)
    if isinstance(error, KeyboardInterrupt):
        message = f"Interrupted {_doing(stage)}"
        return Failure("user_error", message, f"ERROR: {message}\n{_traceback(error)}", 1, kind, line)
    said = _text(error) or (kind if isinstance(error, MemoryError) else "")
    headline = f"{_HEADLINES[stage]}: {said}"
    text = f"ERROR: {headline}\n{_traceback(error)}"
    code, message = _limit_hit(error, limits) or (_plain_code(error, stage), headline)
    return Failure(code, message, text, 1, kind, line)


def free_frames(error: BaseException) -> None:
    """Let go of what the failed code held in its local variables, so that there is memory to say so."""
    pending: list[BaseException] = [error]
    seen: set[int] = set()
    while pending:
        current = pending.pop()
        if id(current) not in seen:
            seen.add(id(current))
            traceback.clear_frames(current.__traceback__)
            pending += [other for other in (current.__cause__, current.__context__) if other is not None]
    gc.collect()


def _plain_code(error: BaseException, stage: str) -> str:
    if stage == "import" and isinstance(error, SyntaxError):
        return "syntax_error"
    return "user_error" if stage in ("import", "transform") else "shim_error"


def _exited(error: SystemExit, stage: str, line: int | None) -> Failure:
    """sys.exit() by the script: no result, so no success whatever the code (0 would tell Metabase so)."""
    status = error.code
    exit_code = status if isinstance(status, int) and status % 256 else 1
    at_line = f" (script.py, line {line})" if line else ""
    message = f"The script called sys.exit({status!r}) {_doing(stage)}{at_line}"
    said = f"{status}\n" if isinstance(status, str) else ""  # what Python itself would print
    return Failure("exited", message, f"{said}ERROR: {message}\n", int(exit_code), "SystemExit", line)


def _doing(stage: str) -> str:
    return {
        "import": "while it was imported",
        "transform": "in transform()",
        "read": "while the tables were read",
        "write": "while the output was written",
    }[stage]


def _limit_hit(error: BaseException, limits: Mapping[str, int]) -> tuple[str, str] | None:
    """Code and sentence if a limit of the job is behind the error."""
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, MemoryError) or number == errno.ENOMEM or type(error).__name__ in _MEMORY_ERRORS:
        limit = _mib(limits.get("memory_bytes"))
        return "memory_limit", f"Memory limit of {limit} reached (peak {_mib(peak_memory_bytes())} resident)"
    if number == errno.EFBIG:
        return "file_size_limit", f"File size limit of {_mib(limits.get('file_size_bytes'))} reached"
    if number == errno.ENOSPC and (full := _full_place()) is not None:
        return "disk_limit", f"Disk limit reached: {full}; the job's own directory has more room"
    if number == errno.EMFILE:
        return "descriptor_limit", f"Limit of {_count(limits, 'descriptors')} open files reached"
    if (number == errno.EAGAIN and _is_fork(error)) or _is_thread_start(error):
        return "process_limit", f"Limit of {_count(limits, 'processes')} processes and threads reached"
    return None


def _full_place() -> str | None:
    """Which of the places outside of the job's directory is full, if one is: they are small, and lie in memory."""
    for place in _SCRATCH:
        with contextlib.suppress(OSError):
            found = os.statvfs(place)
            if not found.f_bavail or (found.f_files and not found.f_favail):
                return f"{place} is full, it holds {_mib(found.f_blocks * found.f_frsize)}"
    return None


def _count(limits: Mapping[str, int], name: str) -> str:
    return str(limits.get(name, "the allowed number of"))


def _mib(size_bytes: int | None) -> str:
    return "the job" if size_bytes is None else f"{size_bytes / _MIB:.0f} MiB"


def _is_thread_start(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and str(error).startswith("can't start new thread")


def _is_fork(error: BaseException) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and (frames[-1].name in _FORKING or "fork" in (frames[-1].line or ""))


def _shim_error_in(error: BaseException, broken: Sequence[ShimError]) -> ShimError | None:
    """The failure of ours that another exception was made of: as its cause, its context, or only in its words."""
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
        return str(error)[:_MESSAGE_CHARS]
    except Exception as broken:  # the user's own exception class
        return f"<{type(error).__name__}, whose str() raises {type(broken).__name__}>"


def _traceback(error: BaseException) -> str:
    """The traceback without frames of the shim; causes and contexts are kept."""
    rendered = traceback.TracebackException.from_exception(error, compact=True)
    _drop_shim_frames(rendered, set())
    return "".join(rendered.format())


def _drop_shim_frames(rendered: traceback.TracebackException, seen: set[int]) -> None:
    if id(rendered) in seen:
        return
    seen.add(id(rendered))
    if rendered.stack is not None:
        kept = [frame for frame in rendered.stack if not is_ours(frame.filename)]
        # without frames there is no "Traceback" line either, as Python prints a syntax error of a script
        rendered.stack = traceback.StackSummary.from_list(kept) if kept else None  # type: ignore[assignment]
    for other in (rendered.__cause__, rendered.__context__, *(rendered.exceptions or ())):
        if other is not None:
            _drop_shim_frames(other, seen)


def is_ours(file_name: str) -> bool:
    """Whether a frame's file belongs to the shim or to the import machinery, and not to the user."""
    return file_name.startswith((_SHIM_DIR, "<frozen importlib"))


def _script_line(trace: TracebackType | None) -> int | None:
    """The innermost line of the script itself."""
    lines = [frame.lineno for frame in traceback.extract_tb(trace) if Path(frame.filename).name == SCRIPT_FILE]
    return lines[-1] if lines else None
