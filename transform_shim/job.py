"""One job: what the gateway's execute_request calls inside the kernel.

The order of a job: modules are written and the script imported, ``transform`` is found and its tables are read, it is
called, what it returned is written, and last of all result.json appears by rename. Every failure ends in a result.json
too, with its text on stderr; :func:`run` raises nothing. Success prints nothing here: the gateway says so once the
objects are uploaded.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TextIO

from transform_shim.binding import bind_tables, find_transform
from transform_shim.failures import Failure, describe, free_frames
from transform_shim.holding import Remains, set_aside
from transform_shim.loading import load_script, write_modules
from transform_shim.plain import in_directory, plain_surroundings
from transform_shim.progress import Progress, Report
from transform_shim.reading.source import TableSource
from transform_shim.reading.tables import LoadedTable, load_table
from transform_shim.request import JobRequest
from transform_shim.result import JobResult, TableRead, write_result
from transform_shim.streams import FramePipe, log_streams
from transform_shim.warm import flush_c_streams, warm_up
from transform_shim.writing.frames import open_frame
from transform_shim.writing.output import Written, write_output

__all__ = ["attempt", "run", "warm_up"]

#: Memory given back before a failure is described: there is then something left to describe it with.
_RESERVE_BYTES = 4 << 20
#: Descriptors given back before anything is written: output, manifest, result and what they are made with.
_RESERVE_DESCRIPTORS = 4


@dataclass(slots=True)
class _Job:
    """A job under way."""

    request: JobRequest
    report: Report | None = None
    stage: str = "import"
    stage_seconds: dict[str, float] = field(default_factory=dict)
    loaded: list[tuple[LoadedTable, float]] = field(default_factory=list)
    spare: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    returned: tuple[Any, ...] = ()

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count the time of a stage, however it ends."""
        self.stage = stage
        start_seconds = time.perf_counter()
        try:
            yield
        finally:
            self.stage_seconds[stage] = time.perf_counter() - start_seconds

    def tables_read(self) -> tuple[TableRead, ...]:
        """What was read of each table so far."""
        return tuple(
            TableRead(table.source.file.alias, table.rows, table.source.size_bytes, round(seconds, 6))
            for table, seconds in self.loaded
        )


def run(request_json: str) -> None:
    """Do one job; its result is ``result_path`` and the files beside it. Raises nothing.

    Parameters
    ----------
    request_json : str
        The request as JSON; see :mod:`transform_shim.request`.
    """
    with log_streams() as pipe:
        stderr = sys.stderr  # kept, because user code may put anything in its place
        try:
            request = JobRequest.from_json(request_json)
        except (ValueError, KeyError, TypeError) as error:
            _say(stderr, f"ERROR: The job cannot be understood: {type(error).__name__}: {error}\n")
            return
        result = attempt(request, stderr, _reporter(pipe))
        _flush_streams()
        try:
            write_result(request.result_path, result)
        except OSError as error:
            _say(stderr, f"ERROR: The result cannot be written: {error}\n")
        if pipe is not None:
            # What IPython does after a cell, and a reply over ZeroMQ, take 3 ms that nobody has to wait for.
            pipe.send(b"d", b"done")


def attempt(request: JobRequest, stderr: TextIO, report: Report | None = None) -> JobResult:
    """Do the job up to its output file; what goes wrong becomes a result, its text goes to `stderr`."""
    process = os.getpid()
    job = _Job(request, report)
    failure: Failure | None = None
    written: Written | None = None
    try:
        written = _do(job, process)
    except BaseException as error:  # the outermost frame: sys.exit and the gateway's interrupt end here as well
        with _uninterrupted():
            job.spare.close()
            failure = _failure_of(error, job)
            _say(stderr, failure.text)
    if os.getpid() != process:  # a child that user code forked came back through transform(): it has no result to give
        _flush_streams()
        os._exit(0 if failure is None else 1)
    if failure is not None:
        return _failed(job, failure)
    return _succeeded(job, written)


def _do(job: _Job, process: int) -> Written:
    request = job.request
    with contextlib.ExitStack() as stack:
        stack.enter_context(job.spare)
        _set_aside(job.spare)
        stack.enter_context(plain_surroundings())
        with job.timed("import"):
            script_path = write_modules(request.work_dir, request.code, request.library)
            stack.enter_context(in_directory(request.work_dir))
            module = load_script(script_path)
            function = find_transform(module)
            forms = bind_tables(function, [table.alias for table in request.tables])
        with job.timed("read"):
            arguments = _read_tables(job, forms)
        inputs = [table.source.metadata for table, _ in job.loaded if table.source.metadata is not None]
        with job.timed("transform"):
            returned = function(**arguments)
        if os.getpid() != process:
            os._exit(0)
        if request.hold:
            job.returned = (returned,)
        else:
            del arguments
            for table, _ in job.loaded:
                table.value = None
        job.spare.close()
        with job.timed("write"):
            frame = open_frame(returned, inputs)
            progress = Progress(job.report, "write", "output")
            return write_output(frame, request.output_format, request.output_path, request.manifest_path, progress)


def _set_aside(spare: contextlib.ExitStack) -> None:
    """Take memory and descriptors that are given back when they are needed to end the job."""
    # private, so that RLIMIT_DATA counts it (setrlimit(2)); untouched, so that it costs nothing else
    memory = mmap.mmap(-1, _RESERVE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    spare.callback(memory.close)
    for _ in range(_RESERVE_DESCRIPTORS):
        spare.callback(os.close, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))


def _read_tables(job: _Job, forms: Mapping[str, Any]) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for file in job.request.tables:
        if file.alias in forms:
            start_seconds = time.perf_counter()
            table = load_table(TableSource(file), forms[file.alias], job.report)
            job.loaded.append((table, time.perf_counter() - start_seconds))
            arguments[file.alias] = table.value
    return arguments


def _failure_of(error: BaseException, job: _Job) -> Failure:
    hold = job.request.hold
    # A job that is to be held keeps its frames: to look at them is what it is held for. What the description needs then
    # comes from the reserve alone.
    if isinstance(error, MemoryError) and not hold:
        free_frames(error)
    broken = [table.failure for table, _ in job.loaded if table.failure is not None]
    failure = describe(error, job.stage, job.request.limits, broken)
    if hold:
        tables = {table.source.file.alias: table.value for table, _ in job.loaded}
        set_aside(Remains(job.request.work_dir, tables, job.returned, error, failure.message))
    elif not isinstance(error, MemoryError):
        # for %debug in a notebook
        sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
    return failure


def _failed(job: _Job, failure: Failure) -> JobResult:
    return JobResult(
        outcome="error",
        code=failure.code,
        message=failure.message,
        exit_code=failure.exit_code,
        stages=job.stage_seconds,
        tables=job.tables_read(),
        error_type=failure.error_type,
        error_line=failure.error_line,
    )


def _succeeded(job: _Job, written: Written | None) -> JobResult:
    if written is None:  # neither written nor failed cannot be; a result must never claim more than is known
        return JobResult(outcome="error", code="shim_error", message="the job ended without a result", exit_code=1)
    return JobResult(
        outcome="ok",
        code="ok",
        rows=written.rows,
        fields=written.fields,
        output_bytes=written.output_bytes,
        sha256=written.sha256,
        stages=job.stage_seconds,
        tables=job.tables_read(),
    )


def _say(stderr: TextIO, text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # closed by user code: the result still says it
        stderr.write(text)


def _reporter(pipe: FramePipe | None) -> Report | None:
    return None if pipe is None else lambda payload: pipe.send(b"p", payload)


def _flush_streams() -> None:
    """What user code put in place of the streams may hold text back; so may C's stdio."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # it is the user's object, and the job is over
            stream.flush()
    flush_c_streams()


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """No interrupt in here: a second one, on the way to the result of the first, would lose it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)
