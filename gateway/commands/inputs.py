"""The options that describe a job: script, tables, library, formats."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from gateway.client import format_of
from gateway.commands.common import UsageError, script_text
from gateway.jobs.model import DataFormat, RequestId
from gateway.sources.notebook import read_notebook


@dataclass(frozen=True, slots=True)
class JobInputs:
    """A job as given on the command line, with every file looked at."""

    code: str
    tables: dict[str, Path]
    manifests: dict[str, Path]
    library: dict[str, str]
    timeout: float | None
    output_format: DataFormat
    request_id: RequestId | None
    hold_minutes: float | None


def add_sources(options: argparse.ArgumentParser) -> None:
    """Add the options that say which transform, with which tables and modules."""
    options.add_argument(
        "script", type=Path, help="Python file that defines transform(), or a notebook: the last cell that defines it"
    )
    options.add_argument(
        "--table",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="a table: .csv, .jsonl, .parquet or .arrow; may come again",
    )
    options.add_argument(
        "--library", action="append", default=[], type=Path, metavar="FILE", help="a module beside the script"
    )


def add_job(options: argparse.ArgumentParser) -> None:
    """Add the options that describe a job."""
    add_sources(options)
    options.add_argument(
        "--manifest", action="append", default=[], metavar="NAME=FILE", help="types of a table, as Metabase's manifest"
    )
    options.add_argument("--timeout", type=float, metavar="SECONDS", help="default: the gateway's")
    options.add_argument(
        "--format",
        choices=get_args(DataFormat),
        help="format of the result; default: by the ending of --out, else jsonl",
    )
    options.add_argument(
        "--hold", type=float, metavar="MINUTES", help="keep the kernel that long if the job fails in it, to look around"
    )
    options.add_argument("--id", help="request_id of the job; made up otherwise")


def job_inputs(options: argparse.Namespace, output: Path | None) -> JobInputs:
    """Return the job that the options describe.

    Raises
    ------
    UsageError
        Names the option and what is wrong with it.
    """
    if options.timeout is not None and not options.timeout > 0:
        raise UsageError("--timeout: expected seconds above 0")
    tables = named_files(options.table, "--table")
    manifests = named_files(options.manifest, "--manifest")
    try:
        for path in tables.values():
            format_of(path)
        output_format: DataFormat = options.format or (format_of(output) if output is not None else "jsonl")
    except ValueError as error:
        raise UsageError(str(error)) from None
    for name, path in [*tables.items(), *manifests.items()]:
        if not path.is_file():
            raise UsageError(f"{path} (table {name}): no such file")
    if orphans := sorted(manifests.keys() - tables.keys()):
        raise UsageError(f"--manifest {orphans[0]}: there is no --table of this name")
    code, library = _sources(options.script)
    return JobInputs(
        code,
        tables,
        manifests,
        library | {path.name: script_text(path) for path in options.library},
        options.timeout,
        output_format,
        options.id,
        options.hold,
    )


def _sources(path: Path) -> tuple[str, dict[str, str]]:
    """Return the script's text and the library that comes with it: a notebook has one in its cells."""
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
