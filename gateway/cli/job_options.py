"""Command-line options of a job: script, tables, library, formats."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.cli.common import EXIT_DIFFERS, UsageError, check_input, minutes, script_text, seconds
from gateway.core.formats import DEFAULT_FORMAT, FORMATS, DataFormat
from gateway.core.job import RequestId
from gateway.scripts.contract import contract_path, read_contract
from gateway.scripts.notebook import read_notebook
from gateway.table_files.kinds import kind_of, known
from gateway.table_files.readable import ReadableFiles

DEFAULT_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class JobInputs:
    """A job as the options of the command line describe it, after the check of its files."""

    code: str
    tables: dict[str, Path]
    manifests: dict[str, Path]
    library: dict[str, str]
    timeout: float | None
    output_format: DataFormat
    request_id: RequestId | None
    hold_minutes: float | None
    output_schema: dict[str, Any] | None


def add_sources(options: argparse.ArgumentParser) -> None:
    """Add the options for the transform, its tables and its modules."""
    options.add_argument(
        "script", type=Path, help="Python file that defines transform(), or a notebook: the last cell that defines it"
    )
    options.add_argument(
        "--table",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help=f"a table ({known()}); may be repeated",
    )
    options.add_argument(
        "--library",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="a module that the script imports; may be repeated",
    )


def add_job(options: argparse.ArgumentParser) -> None:
    """Add all options of a job."""
    add_sources(options)
    options.add_argument(
        "--manifest",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="Metabase's manifest of a table, with its types",
    )
    options.add_argument(
        "--timeout",
        type=seconds,
        metavar="DURATION",
        help="timeout of the job, such as 90 (seconds) or 5m; default: the gateway's",
    )
    options.add_argument(
        "--format",
        choices=tuple(FORMATS),
        help=f"format of the result; default: {DEFAULT_FORMAT}, or with `run --out` by the ending of the file",
    )
    options.add_argument(
        "--hold",
        type=minutes,
        metavar="DURATION",
        help="time to hold the kernel for a console if the job fails, such as 30 (minutes) or 1h",
    )
    options.add_argument("--id", help="request_id of the job; default: a random one")


def add_look(parser: argparse.ArgumentParser) -> Any:
    """Add the options for the display of the result, and return their group."""
    look = parser.add_argument_group("look at the result")
    look.add_argument("--head", type=int, metavar="N", help="show the first N rows, with types and nulls")
    look.add_argument(
        "--profile",
        action="store_true",
        help="show nulls, distinct values, smallest and largest value, quartiles and a histogram of each column, and "
        "when each stage of the job ran",
    )
    look.add_argument(
        "--against",
        type=Path,
        metavar="FILE",
        help=f"compare with an earlier result; the exit code is {EXIT_DIFFERS} if columns or rows differ",
    )
    look.add_argument(
        "--key",
        metavar="NAME[,NAME]",
        help="columns that identify a row in a comparison, to see changed cells",
    )
    look.add_argument(
        "--tolerance",
        type=float,
        default=DEFAULT_TOLERANCE,
        help="relative difference up to which two numbers are the same; default: %(default)g",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress and no summary")
    return look


def job_inputs(options: argparse.Namespace, output: Path | None, files: ReadableFiles) -> JobInputs:
    """Return the job that the options describe, with its tables in a form that a gateway accepts.

    Raises
    ------
    UsageError
        An option is wrong.
    """
    tables = named_files(options.table, "--table")
    manifests = named_files(options.manifest, "--manifest")
    for name, path in [*tables.items(), *manifests.items()]:
        check_input(path, f" (table {name})")
    if orphans := sorted(manifests.keys() - tables.keys()):
        raise UsageError(f"--manifest {orphans[0]}: there is no --table of this name")
    code, library = _sources(options.script)
    try:
        by_name = DEFAULT_FORMAT if output is None or options.format else kind_of(output).data_format
        readable = {name: files.readable(path) for name, path in tables.items()}
    except ValueError as error:
        raise UsageError(str(error)) from None
    return JobInputs(
        code,
        readable,
        manifests,
        library | _modules(options.library),
        options.timeout,
        options.format or by_name,
        options.id,
        options.hold,
        _output_schema(options.script),
    )


def _modules(paths: Sequence[Path]) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in paths:
        if path.name in found:
            raise UsageError(f"--library {path}: another file of this name is given too, and modules have no directory")
        found[path.name] = script_text(path)
    return found


def _output_schema(script: Path) -> dict[str, Any] | None:
    try:
        return read_contract(contract_path(script))
    except ValueError as error:
        raise UsageError(str(error)) from None


def _sources(path: Path) -> tuple[str, dict[str, str]]:
    """Return the script's text and its library, which a notebook has in its cells."""
    if path.suffix != ".ipynb":
        return script_text(path), {}
    try:
        notebook = read_notebook(path)
    except ValueError as error:
        raise UsageError(str(error)) from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    if notebook.script is None:
        raise UsageError(f"{path}: no cell defines transform()")
    return notebook.script.code, {f"{name}.py": cell.code for name, cell in notebook.library.items()}


def named_files(texts: Sequence[str], option: str) -> dict[str, Path]:
    """Return the files of options of the form NAME=FILE.

    Raises
    ------
    UsageError
        A text has another form, or a name is repeated.
    """
    found: dict[str, Path] = {}
    for text in texts:
        name, separator, file = text.partition("=")
        if not (name and separator and file):
            raise UsageError(f"{option} {text}: expected NAME=FILE")
        if name in found:
            raise UsageError(f"{option} {name}: given twice")
        found[name] = Path(file)
    return found
