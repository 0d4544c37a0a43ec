"""Reading and writing alone, beside the libraries that do nothing else, on the same file with the same types.

Runs in a process of its own with the environment of a kernel: ``python -m tests.benchmarks.parts.codecs FILE MANIFEST ROUNDS``
prints one JSON object of names and seconds. The candidates take turns, so that a busy moment meets all of them, and each
round begins with another one: what pandas frees and what is left to be written to the disk slow the next one down.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.json

from kernel_spec.kernel.environment import interpreter_environment
from tests.benchmarks.report.results import Results
from tests.benchmarks.workload import encoded, flights, manifest
from transform_shim.core.progress import Progress
from transform_shim.core.table_file import TableFile
from transform_shim.reading.frame_kinds import load_table
from transform_shim.reading.table_source import TableSource
from transform_shim.writing.frame_source import open_frame
from transform_shim.writing.output import write_output

OURS = "ours"
MOST_TIMES_SLOWER = 1.5
#: Read 1.5 and "12" as integers without a word: shown, but not what we are compared with.
LENIENT = {"read": {"DuckDB"}}


def codecs(results: Results, rounds: int) -> None:
    """Measure both ways and add the ratios to the fastest library."""
    frame = flights()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        data_path, manifest_path = Path(name) / "flights.jsonl", Path(name) / "flights.manifest"
        data_path.write_bytes(encoded(frame, "jsonl"))
        manifest_path.write_text(json.dumps(manifest(frame)))
        size_mb = data_path.stat().st_size / 1e6
        command = [
            sys.executable,
            "-m",
            "tests.benchmarks.parts.codecs",
            str(data_path),
            str(manifest_path),
            str(rounds),
        ]
        done = subprocess.run(command, env=interpreter_environment(), stdout=subprocess.PIPE, check=True)
    for way, candidates in json.loads(done.stdout).items():
        for library, seconds in candidates.items():
            results.figure(f"{way} {size_mb:.0f} MB of JSON lines, {library}", "s", seconds)
        exact = [found for name, found in candidates.items() if name not in LENIENT.get(way, set()) | {OURS}]
        best = min(exact, key=statistics.median)
        ratios = [mine / theirs for mine, theirs in zip(candidates[OURS], best, strict=True)]
        results.figure(f"{way}: times the fastest exact library's own time", "×", ratios, limit=MOST_TIMES_SLOWER)


def main(data_path: Path, manifest_path: Path, rounds: int) -> None:
    """Measure in this process and print."""
    source = TableSource(TableFile("flights", data_path, manifest_path))
    frame = load_table(source, "pandas").value
    table = load_table(source, "arrow").value
    polars_frame = pl.from_arrow(table)
    assert isinstance(polars_frame, pl.DataFrame)
    schema = polars_frame.schema
    parse = pyarrow.json.ParseOptions(explicit_schema=table.schema.remove_metadata())
    out = data_path.with_suffix(".out")

    def write_ours() -> None:
        progress = Progress(None, "write", "output")  # no checksum, as for a result that goes to an output_url
        write_output(open_frame(frame, []), "jsonl", out, out.with_suffix(".manifest"), progress, checksum=False)

    connection = duckdb.connect()
    columns = {f.name: "BIGINT" if pa.types.is_integer(f.type) else "VARCHAR" for f in table.schema}
    connection.register("flights", table)
    ways: dict[str, dict[str, Callable[[], object]]] = {
        "read": {
            OURS: lambda: load_table(TableSource(source.file), "pandas").value,
            "Polars": lambda: pl.read_ndjson(data_path, schema=schema),
            "pyarrow": lambda: pyarrow.json.read_json(data_path, parse_options=parse),
            "DuckDB": lambda: connection.sql(
                f"select * from read_json('{data_path}', format='newline_delimited', columns={columns})"
            ).to_arrow_table(),
            "pandas": lambda: _pandas_read(data_path),
        },
        "write": {
            OURS: write_ours,
            "Polars": lambda: polars_frame.write_ndjson(out),
            "DuckDB": lambda: connection.execute(f"copy flights to '{out}' (format json)"),
            "pandas": lambda: frame.to_json(out, orient="records", lines=True),
        },
    }
    seconds: dict[str, dict[str, list[float]]] = {way: {name: [] for name in found} for way, found in ways.items()}
    for number in range(rounds):
        for way, candidates in ways.items():
            names = deque(candidates)
            names.rotate(-number)
            for name in names:
                began = time.perf_counter()
                candidates[name]()
                seconds[way][name].append(time.perf_counter() - began)
    print(json.dumps(seconds))


def _pandas_read(path: Path) -> object:
    import pandas as pd

    return pd.read_json(path, orient="records", lines=True, dtype=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
