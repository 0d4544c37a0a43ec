"""One job inside the kernel: the gateway's ``execute_request`` calls `run_job`.

The order of a job: modules are written and the script imported, ``transform`` is found and its tables are read, it is
called, its return value is written, and last of all result.json appears by rename. Every failure ends in a result.json
too, with its text on stderr; `run_job` raises nothing. Success prints nothing here: the gateway reports it once the
objects are uploaded.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, TextIO

import pyarrow as pa

from transform_shim.bars.job_bars import reporting
from transform_shim.bars.tqdm_bars import adapt_tqdm
from transform_shim.core.errors import ResultFailed
from transform_shim.core.notices import warn
from transform_shim.core.progress import Progress, Report
from transform_shim.core.table_file import TableFile
from transform_shim.displays.capture import captured_displays, figures_shown
from transform_shim.displays.recorder import Recorder
from transform_shim.job.failure_text import Failure, describe, free_frames
from transform_shim.job.official_traceback import official_text
from transform_shim.job.post_mortem import PostMortem, keep_post_mortem
from transform_shim.job.request import JobRequest
from transform_shim.job.result import JobResult, TableRead, write_result
from transform_shim.job.script import SCRIPT_FILE, load_script, write_modules
from transform_shim.job.signature import bind_tables, find_transform, refuse_unfetched
from transform_shim.job.streams import log_streams, silence_descriptors
from transform_shim.job.user_namespace import in_directory, user_namespace
from transform_shim.job.warm_up import flush_c_streams
from transform_shim.reading.frame_kinds import TableReader, load_table, refuse_read_reader
from transform_shim.reading.table_source import TableSource
from transform_shim.writing.frame_source import is_frame, open_frame
from transform_shim.writing.official_digits import with_official_digits
from transform_shim.writing.output import Written, write_output

if TYPE_CHECKING:
    from transform_shim.core.contract import Contract

__all__ = ["attempt", "run_job"]

#: Memory that is freed before a failure is described, which needs some.
_RESERVE_BYTES = 4 << 20
#: Descriptors that are closed before anything is written: output, manifest and result need some.
_RESERVE_DESCRIPTORS = 4


@dataclass(slots=True)
class _Job:
    """A job under way."""

    request: JobRequest
    report: Report | None = None
    stage: str = "import"
    stage_seconds: dict[str, float] = field(default_factory=dict)
    loaded: list[tuple[TableReader, float]] = field(default_factory=list)
    spare: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    returned: tuple[Any, ...] = ()

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Measure the time of a stage, however it ends."""
        self.stage = stage
        start_seconds = time.perf_counter()
        try:
            yield
        finally:
            self.stage_seconds[stage] = time.perf_counter() - start_seconds

    def tables_read(self) -> tuple[TableRead, ...]:
        return tuple(
            TableRead(
                table.source.file.alias,
                table.rows,
                table.source.size_bytes,
                round(seconds, 6),
                tuple((field.name, field.base_type or "") for field in table.source.fields),
            )
            for table, seconds in self.loaded
        )


def run_job(request_json: str, report: Report | None = None) -> None:
    """Run one job. Its result is the files that the request names; nothing is raised.

    Where there is no log pipe, `report` is called with the progress.
    """
    with log_streams() as pipe:
        stderr = sys.stderr  # kept, because user code may replace it
        try:
            request = JobRequest.from_json(request_json)
        except (ValueError, KeyError, TypeError) as error:
            _say(stderr, f"ERROR: The job request is not valid: {type(error).__name__}: {error}\n")
            return
        result = attempt(request, stderr, report if pipe is None else partial(pipe.send, b"p"))
        _flush_streams()
        if pipe is not None and result.outcome == "error":
            silence_descriptors()
        try:
            write_result(request.result_path, result)
        except OSError as error:
            _say(stderr, f"ERROR: The result cannot be written: {error}\n")
        if pipe is not None:
            # IPython's work after a cell and the reply over ZeroMQ take 3 ms, which the gateway need not wait for.
            pipe.send(b"d", b"done")


def attempt(request: JobRequest, stderr: TextIO, report: Report | None = None) -> JobResult:
    """Run a job up to its output file, and return its result, which is not written yet.

    An error becomes a result, and its text goes to `stderr`.
    """
    process = os.getpid()
    job = _Job(request, report)
    try:
        written = _do(job, process)
        _profile(job)
        result = _succeeded(job, written)
    except BaseException as error:  # the outermost frame: sys.exit and the gateway's interrupt end here too
        with _uninterrupted():
            job.spare.close()
            failure = _failure_of(error, job)
            result = _failed(job, failure)
            raised = error.__cause__ if isinstance(error, ResultFailed) else error
            # the official runner has no lazy results: a failure in one of ours would have been one in transform()
            official = request.official_compatibility and (job.stage == "transform" or raised is not error)
            text = official_text(failure.text, raised, request.work_dir) if official and raised else failure.text
            _say(stderr, text)
    if os.getpid() != process:  # a child that user code forked returned through transform(): it has no result
        _flush_streams()
        os._exit(0 if result.outcome == "ok" else 1)
    return result


def _do(job: _Job, process: int) -> Written:
    request = job.request
    with contextlib.ExitStack() as stack:
        stack.enter_context(job.spare)
        _reserve(job.spare)
        stack.enter_context(user_namespace(request.work_dir / SCRIPT_FILE))
        displays = stack.enter_context(captured_displays(request.displays_path))
        stack.enter_context(reporting(job.report))
        adapt_tqdm()
        with job.timed("import"):
            script_path = write_modules(request.work_dir, *request.sources())
            stack.enter_context(in_directory(request.work_dir))
            module = load_script(script_path)
            function = find_transform(module)
            kinds = bind_tables(function, [*(table.alias for table in request.tables), *request.unfetched])
            refuse_unfetched(kinds, request.unfetched)
            contracts = _contracts(request, module)
        with job.timed("read"):
            arguments = _read_tables(job, kinds)
        inputs = [table.source.metadata for table, _ in job.loaded if table.source.metadata is not None]
        with job.timed("transform"), figures_shown(displays):
            returned = function(**arguments)
        if os.getpid() != process:
            os._exit(0)
        with job.timed("write"):
            refuse_read_reader(returned, (table for table, _ in job.loaded))
            if request.hold or not is_frame(returned):
                job.returned = (returned,)
            if not request.hold:
                del arguments
                for table, _ in job.loaded:
                    table.value = None
            job.spare.close()
            table_rows = max((table.rows for table, _ in job.loaded), default=0)
            frame = open_frame(returned, inputs, table_rows=table_rows, mixed_columns=request.mixed_columns)
            if request.official_compatibility:
                frame = with_official_digits(frame)
            check = None
            if contracts:
                from transform_shim.writing.contract_check import ContractCheck  # most jobs have no contract

                check = ContractCheck(contracts, frame)
                frame = check.frame
            progress = Progress(job.report, "write", "output")
            finish = None if check is None else check.finish
            paths = request.output_path, request.manifest_path
            written = write_output(frame, request.output_format, *paths, progress, finish, checksum=request.checksum)
        had_rows = not job.loaded or any(table.rows for table, _ in job.loaded)
        if not written.rows and had_rows and isinstance(returned, pa.RecordBatchReader):
            warn("the returned reader gave no rows: one that was read before has none left")
        return written


def _profile(job: _Job) -> None:
    request = job.request
    if request.profile and request.displays_path is not None:
        from transform_shim.displays.profile import record_profile  # few jobs have a profile

        output = TableFile("output", request.output_path, request.manifest_path, request.output_format)
        with job.timed("profile"):
            record_profile(output, Recorder(request.displays_path))


def _contracts(request: JobRequest, module: ModuleType) -> list[Contract]:
    """Return the contracts of the request and of the script, all of which must hold."""
    own = None if request.official_compatibility else getattr(module, "OUTPUT_SCHEMA", None)
    if request.output_schema is None and own is None:
        return []
    from transform_shim.core.contract import parse_contract

    found = (
        [] if request.output_schema is None else [parse_contract(json.loads(request.output_schema), "output_schema")]
    )
    return found if own is None else [*found, parse_contract(own, "OUTPUT_SCHEMA")]


def _reserve(spare: contextlib.ExitStack) -> None:
    """Reserve memory and descriptors, which are freed when the end of the job needs them, and store the umask."""
    # private, so that RLIMIT_DATA counts it (setrlimit(2)); untouched, so that it costs nothing else
    memory = mmap.mmap(-1, _RESERVE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    spare.callback(memory.close)
    for _ in range(_RESERVE_DESCRIPTORS):
        spare.callback(os.close, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    # with another mask of the user's, such as 077, the gateway could not read what is written
    mask = os.umask(0o077)
    os.umask(mask)
    spare.callback(os.umask, mask)


def _read_tables(job: _Job, kinds: Mapping[str, Any]) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for file in job.request.tables:
        if file.alias in kinds:
            start_seconds = time.perf_counter()
            table = load_table(TableSource(file), kinds[file.alias], job.report)
            job.loaded.append((table, time.perf_counter() - start_seconds))
            arguments[file.alias] = table.value
    return arguments


def _failure_of(error: BaseException, job: _Job) -> Failure:
    hold = job.request.hold
    # A job that is to be held keeps its frames for inspection; then only the reserve is free for the description.
    if isinstance(error.__cause__ if isinstance(error, ResultFailed) else error, MemoryError) and not hold:
        free_frames(error)
    broken = [table.failure for table, _ in job.loaded if table.failure is not None]
    names = [*(table.alias for table in job.request.tables), *job.request.unfetched]
    failure = describe(error, job.stage, job.request.limits, broken, job.returned, names)
    if isinstance(error, ResultFailed):
        error = error.__cause__ or error  # for the post-mortem: the exception of the user's code
    # a caller who interrupts a job may have its kernel held, which the request does not say
    if hold or isinstance(error, KeyboardInterrupt):
        tables = {table.source.file.alias: table.value for table, _ in job.loaded}
        keep_post_mortem(PostMortem(job.request.work_dir, tables, job.returned, error, failure.message))
    if not hold and not isinstance(error, MemoryError):
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
    )


def _succeeded(job: _Job, written: Written) -> JobResult:
    return JobResult(
        outcome="ok",
        code="ok",
        rows=written.rows,
        fields=len(written.columns),
        columns=written.columns,
        output_bytes=written.output_bytes,
        sha256=written.sha256,
        stages=job.stage_seconds,
        tables=job.tables_read(),
    )


def _say(stderr: TextIO, text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # closed by user code: the result still has the message
        stderr.write(text)


def _flush_streams() -> None:
    """Flush the streams, which user code may have replaced by buffering ones, and C's stdio."""
    for name in ("stdout", "stderr"):
        with contextlib.suppress(Exception):  # it is the user's object or removed, and the job is over
            getattr(sys, name).flush()
    flush_c_streams()


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ignore SIGINT: a second interrupt, while the first one's result is made, would lose that result."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)
