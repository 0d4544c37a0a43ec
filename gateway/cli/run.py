"""`transform-gateway run`: run a transform of a script or a notebook with tables from files."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from gateway.cli import common
from gateway.cli.display import Display, harmless, stage_times
from gateway.cli.job_options import JobInputs, add_job, add_look, job_inputs
from gateway.client.client import TransformClient
from gateway.client.ephemeral_gateway import EphemeralGateway
from gateway.client.errors import TransformFailed
from gateway.client.result import TransformResult
from gateway.core.formats import DataFormat
from gateway.scripts.contract import contract_path
from gateway.table_files.kinds import FileKind, kind_of
from gateway.table_files.parsed import ParsedTables
from gateway.table_files.readable import FileVersion, ReadableFiles, UnreadableTable, file_version
from gateway.table_files.writing import UnwritableResult, check_writer, write_as
from gateway.telemetry.waterfall import lay_out

if TYPE_CHECKING:
    import pyarrow as pa

WATCH_SECONDS = 0.25


def main(name: str, arguments: Sequence[str]) -> int:
    """Run one transform and return the job's exit code."""
    options = _options(name, arguments)
    cancel_on_sigterm()
    return common.guarded(lambda: run(options))


def cancel_on_sigterm() -> None:
    """Make SIGTERM, which schedulers send, act like Ctrl-C: it cancels the job, and nothing is left behind."""
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def _options(name: str, arguments: Sequence[str]) -> argparse.Namespace:
    parser = common.parser(
        name,
        "Run a transform from a file and wait for its result. Ctrl-C cancels the job. On a terminal, the first rows of "
        "the result are shown as a table; otherwise the result is written to standard output.",
    )
    add_job(parser)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="file for the result; default: standard output, while the job's own output goes to standard error",
    )
    look = add_look(parser)
    look.add_argument(
        "--watch",
        action="store_true",
        help="run again after each change of the script, its modules and tables, and compare with the run before",
    )
    common.add_gateway(parser, otherwise="one that is started for this call")
    return parser.parse_args(arguments)


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of the command: its options, the gateway, and its table files."""

    options: argparse.Namespace
    client: TransformClient
    files: ReadableFiles


def run(options: argparse.Namespace, settings: Mapping[str, str] = MappingProxyType({})) -> int:
    """Run the job of the options and return its exit code; a gateway that is started for it gets the settings."""
    _check(options)
    with _scratch() as directory:
        files = ReadableFiles(directory)
        inputs = _inputs(options, files)
        with _client(options, settings) as client:
            call = _Call(options, client, files)
            if options.watch:
                return _watch(call)
            try:
                code, _ = _run_once(call, inputs, None)
            except TransformFailed as failure:
                return _report_failure(failure)
            return code


def _check(options: argparse.Namespace) -> None:
    if options.hold is not None and not options.url:
        raise common.UsageError("--hold: needs --url, because the gateway of this call ends with it")
    if options.out is not None:
        common.check_output("--out", options.out)
        _check_kind(options.out, options.format)
    if options.head is not None and options.head < 1:
        raise common.UsageError(f"--head {options.head}: expected a number of rows above 0")
    if not 0 <= options.tolerance < 1:
        raise common.UsageError(f"--tolerance {options.tolerance:g}: expected a number from 0 to below 1")
    if options.key and not (options.against or options.watch):
        raise common.UsageError("--key: needs --against or --watch, whose rows it identifies")
    if options.against is not None:
        common.check_input(options.against, option="--against")
        _kind_of(options.against)


def _check_kind(out: Path, data_format: DataFormat | None) -> None:
    kind = _kind_of(out, data_format)
    if data_format is not None and not kind.is_plain:
        raise common.UsageError(f"--format: the ending of --out {out} gives the format; leave one of them out")
    try:
        check_writer(kind)
    except UnwritableResult as error:
        raise common.UsageError(f"--out {out}: {error}") from None


def _inputs(options: argparse.Namespace, files: ReadableFiles) -> JobInputs:
    """Return the job; a result that is only displayed is in Arrow format, which keeps the types."""
    inputs = job_inputs(options, options.out, files)
    if options.out is None and options.format is None and _is_shown(options):
        return dataclasses.replace(inputs, output_format="arrow")
    return inputs


def _is_shown(options: argparse.Namespace) -> bool:
    """Return whether standard output gets a table for the terminal and not the data."""
    asked = options.head is not None or options.profile or options.against is not None or options.watch
    return bool(asked or (options.out is None and options.format is None and sys.stdout.isatty()))


def _run_once(call: _Call, inputs: JobInputs, before: pa.Table | None) -> tuple[int, pa.Table | None]:
    """Run the job and show its result; return the exit code and the result, where it was read."""
    options, out = call.options, call.options.out
    is_shown = _is_shown(options)
    kind = None if out is None else _kind_of(out, options.format)
    with contextlib.ExitStack() as stack:
        is_direct = kind is not None and kind.is_plain
        path = out if is_direct else stack.enter_context(_scratch()) / "output"
        job_stdout = sys.stdout if out is not None else sys.stderr
        display = stack.enter_context(Display(job_stdout, progress=False if options.quiet else None))
        result = _execute(call.client, inputs, path, display, profile=options.profile)
        if kind is not None and not is_direct:
            display.say("writing the file")
            try:
                write_as(path, kind, out)
            except UnwritableResult as error:
                raise common.UsageError(f"--out {out}: {error}") from None
        display.close()
        if not is_shown and out is None:
            with path.open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()
        code, table = _show(call, result, path, before) if is_shown else (0, None)
    if not options.quiet:
        sys.stderr.write(_summary(result, options.out))
    return code, table


def _show(call: _Call, result: TransformResult, path: Path, before: pa.Table | None) -> tuple[int, pa.Table]:
    # pandas and pyarrow take half a second to import, which a plain run does not pay
    from gateway.results.comparison import ComparisonError
    from gateway.results.result_file import UnreadableResult, read_result
    from gateway.results.show import Found, show

    base_types = {field["name"]: field["base_type"] for field in result.manifest.get("fields", [])}
    try:
        table = read_result(path, result.data_format, base_types)
        found = Found(table, base_types, result.profile, lay_out(result.stages_seconds))
        is_same = show(call.options, found, before, call.files)
    except (UnreadableResult, UnreadableTable, ComparisonError) as error:
        raise common.UsageError(str(error)) from None
    return 0 if is_same else common.EXIT_DIFFERS, table


def _watch(call: _Call) -> int:
    """Run the transform after each change of its files, until Ctrl-C."""
    options = call.options
    before: pa.Table | None = None
    with _scratch() as directory:
        parsed = ParsedTables(directory)
        while True:
            seen = _changes(options)
            try:
                _, before = _run_once(call, _watched_inputs(call, parsed), before)
            except TransformFailed as failure:
                _report_failure(failure)
            except common.UsageError as error:  # such as a script that was just moved
                sys.stderr.write(f"transform-gateway: {error}\n")
            except OSError as error:  # a table that is being replaced: it was there when the options were checked
                if error.filename is None:
                    raise
                sys.stderr.write(f"transform-gateway: {error.filename}: {error.strerror}\n")
            sys.stderr.write("watching for changes; Ctrl-C ends\n")
            try:
                while _changes(options) == seen:
                    time.sleep(WATCH_SECONDS)
            except KeyboardInterrupt:
                return 0


def _watched_inputs(call: _Call, parsed: ParsedTables) -> JobInputs:
    """Return the job; a table that has not changed since the last run is not parsed again."""
    inputs = _inputs(call.options, call.files)
    if call.options.url:  # a gateway of another version may not know the form of parsed tables
        return inputs
    tables = {name: parsed.parsed(name, path, inputs.manifests.get(name)) for name, path in inputs.tables.items()}
    return dataclasses.replace(inputs, tables=tables)


def _changes(options: argparse.Namespace) -> dict[Path, FileVersion | None]:
    """Return the version of each file; None for one that is not there."""
    named = [Path(text.partition("=")[2]) for text in [*options.table, *options.manifest]]
    found: dict[Path, FileVersion | None] = {}
    for path in [options.script, contract_path(options.script), *options.library, *named]:
        try:
            found[path] = file_version(path)
        except OSError:
            found[path] = None
    return found


def _report_failure(failure: TransformFailed) -> int:
    is_told = any(failure.message.strip() in line.message for line in failure.log)  # as the last line of the log
    text = f"exit code {failure.exit_code}; the reason is above" if is_told else failure.message
    text = "\n".join(map(harmless, text.split("\n")))
    sys.stderr.write(f"transform-gateway: {failure.code}: {text}\n")
    if held := failure.answer.get("held"):
        sys.stderr.write(f"its kernel is held: {held['attach']}\n")
    return common.exit_code_of(failure.exit_code)


def _kind_of(path: Path, data_format: DataFormat | None = None) -> FileKind:
    """Return the kind of a file by its name; a plain file may have any format."""
    try:
        kind = kind_of(path)
    except ValueError as error:
        if data_format is not None:
            return FileKind(data_format)
        raise common.UsageError(str(error)) from None
    is_own_choice = data_format is not None and kind.compression is None and kind.shape != "workbook"
    return FileKind(data_format) if is_own_choice and data_format is not None else kind


def _execute(
    client: TransformClient, inputs: JobInputs, path: Path, display: Display, *, profile: bool
) -> TransformResult:
    """Run the job and show its output and progress."""
    return client.run(
        inputs.code,
        inputs.tables,
        manifests=inputs.manifests,
        library=inputs.library,
        timeout=inputs.timeout,
        output=path,
        output_format=inputs.output_format,
        request_id=inputs.request_id,
        hold_minutes=inputs.hold_minutes,
        output_schema=inputs.output_schema,
        profile=profile,
        on_event=display,
    )


@contextlib.contextmanager
def _client(options: argparse.Namespace, settings: Mapping[str, str]) -> Iterator[TransformClient]:
    if options.url:
        yield common.client_of(options)
        return
    with contextlib.ExitStack() as stack:
        with Display(progress=False if options.quiet else None) as display:
            display.say("starting a gateway")
            gateway = stack.enter_context(EphemeralGateway(settings))
        yield TransformClient(gateway.url, gateway.token)


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """Yield a temporary directory for converted tables, and for results that must appear complete or not at all."""
    with tempfile.TemporaryDirectory(prefix="transform-run-") as directory:
        yield Path(directory)


def _summary(result: TransformResult, out: Path | None) -> str:
    where = f" in {out}" if out is not None else ""
    counted = f"{common.counted(result.rows, 'row')}, {common.counted(result.fields, 'column')}"
    return (
        f"{counted}, {result.output_bytes:,} bytes{where}; "
        f"{result.execution_seconds:.2f} s ({stage_times(result.stages_seconds)})\n"
    )
