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


def add_job(options: argparse.ArgumentParser) -> None:
    """Add the options that describe a job."""
    options.add_argument("script", type=Path, help="Python file that defines transform()")
    options.add_argument(
        "--table",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="a table: .csv, .jsonl, .parquet or .arrow; may come again",
    )
    options.add_argument(
        "--manifest", action="append", default=[], metavar="NAME=FILE", help="types of a table, as Metabase's manifest"
    )
    options.add_argument(
        "--library", action="append", default=[], type=Path, metavar="FILE", help="a module beside the script"
    )
    options.add_argument("--timeout", type=float, metavar="SECONDS", help="default: the gateway's")
    options.add_argument(
        "--format",
        choices=get_args(DataFormat),
        help="format of the result; default: by the ending of --out, else jsonl",
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
    tables = _named(options.table, "--table")
    manifests = _named(options.manifest, "--manifest")
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
    return JobInputs(
        script_text(options.script),
        tables,
        manifests,
        {path.name: script_text(path) for path in options.library},
        options.timeout,
        output_format,
        options.id,
    )


def _named(texts: Sequence[str], option: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for text in texts:
        name, separator, file = text.partition("=")
        if not (name and separator and file):
            raise UsageError(f"{option} {text}: expected NAME=FILE")
        if name in found:
            raise UsageError(f"{option} {name}: given twice")
        found[name] = Path(file)
    return found
