"""`transform-gateway run`: a transform from a script or a notebook, its tables from files, its result to a file."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from gateway.client import TransformClient, TransformFailed, TransformResult
from gateway.commands import common
from gateway.commands.display import Display, stage_times
from gateway.commands.inputs import JobInputs, add_job, job_inputs
from gateway.commands.own_gateway import OwnGateway


def main(name: str, arguments: Sequence[str]) -> int:
    """Run one transform; the exit code is the job's."""
    options = _options(name, arguments)
    # what a scheduler sends when it has waited enough ends as Ctrl-C does: the job is cancelled, and nothing is left
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    return common.guarded(lambda: _run(options))


def _options(name: str, arguments: Sequence[str]) -> argparse.Namespace:
    parser = common.parser(name, "Run a transform from a file and wait for its result. Ctrl-C cancels the job.")
    add_job(parser)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="where the result goes; without it, to standard output, and the job's own output to standard error",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress and no summary")
    common.add_gateway(parser, own=True)
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace) -> int:
    inputs = job_inputs(options, options.out)
    if inputs.hold_minutes is not None and not options.url:
        raise common.UsageError("--hold: needs a gateway that stays, so also --url")
    if options.out is not None and not options.out.absolute().parent.is_dir():
        raise common.UsageError(f"--out {options.out}: there is no such directory")
    job_stdout = sys.stdout if options.out is not None else sys.stderr
    with contextlib.ExitStack() as stack:
        path = options.out or stack.enter_context(_temporary())
        display = stack.enter_context(Display(job_stdout, progress=False if options.quiet else None))
        client = stack.enter_context(_client(options, display))
        try:
            result = execute(client, inputs, path, display)
        except TransformFailed as failure:
            display.close()
            sys.stderr.write(f"transform-gateway: {failure.code}: {failure.message}\n")
            if held := failure.answer.get("held"):
                sys.stderr.write(f"its kernel is held: {held['attach']}\n")
            return common.exit_code_of(failure.exit_code)
        if options.out is None:
            with path.open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()
    if not options.quiet:
        sys.stderr.write(_summary(result, options.out))
    return 0


def execute(client: TransformClient, inputs: JobInputs, path: Path, display: Display) -> TransformResult:
    """Run the job; its output and progress are shown while it goes on."""
    return client.execute(
        inputs.code,
        inputs.tables,
        manifests=inputs.manifests,
        library=inputs.library,
        timeout=inputs.timeout,
        output=path,
        output_format=inputs.output_format,
        request_id=inputs.request_id,
        hold_minutes=inputs.hold_minutes,
        on_event=display,
    )


@contextlib.contextmanager
def _client(options: argparse.Namespace, display: Display) -> Iterator[TransformClient]:
    if options.url:
        yield common.client_of(options)
        return
    display.say("starting a gateway")
    with OwnGateway() as gateway:
        yield TransformClient(gateway.url, gateway.token)


@contextlib.contextmanager
def _temporary() -> Iterator[Path]:
    """Yield a path for a result that is passed on: a failed job must not leave half of it on standard output."""
    with tempfile.TemporaryDirectory(prefix="transform-run-") as directory:
        yield Path(directory) / "output"


def _summary(result: TransformResult, out: Path | None) -> str:
    where = f" in {out}" if out is not None else ""
    return (
        f"{result.rows:,} rows, {result.fields} columns, {result.output_bytes:,} bytes{where}; "
        f"{result.execution_seconds:.2f} s ({stage_times(result.stages_seconds)})\n"
    )
