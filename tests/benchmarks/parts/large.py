"""A table larger than memory: filtered and grouped, and passed through, under the usual limit of 1 GiB."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks import processes
from tests.benchmarks.report.results import Results
from tests.benchmarks.workload import encoded, flights, manifest, post

MEMORY_LIMIT_MIB = 1024.0
#: Goals on two idle cores.
GROUPED_MB_PER_SECOND, THROUGH_MB_PER_SECOND = 400.0, 300.0
TIMEOUT_SECONDS = 1800

_GROUPED = {
    "Polars LazyFrame": """
import polars as pl


def transform(flights: pl.LazyFrame) -> pl.LazyFrame:
    far = flights.filter(pl.col("distance") > 1000)
    return far.group_by("carrier").agg(flights=pl.len(), delay=pl.col("arr_delay").mean())
""",
    "Arrow RecordBatchReader": """
import pyarrow as pa
import pyarrow.compute as pc


def transform(flights: pa.RecordBatchReader) -> pa.Table:
    parts = []
    for batch in flights:
        far = pa.table(batch.select(["carrier", "arr_delay"])).filter(pc.greater(batch["distance"], 1000))
        parts.append(far.group_by("carrier").aggregate([("arr_delay", "sum"), ("arr_delay", "count"), ([], "count_all")]))
    sums = pa.concat_tables(parts).group_by("carrier").aggregate(
        [("count_all", "sum"), ("arr_delay_sum", "sum"), ("arr_delay_count", "sum")]
    )
    mean = pc.divide(pc.cast(sums["arr_delay_sum_sum"], pa.float64()), sums["arr_delay_count_sum"])
    return pa.table({"carrier": sums["carrier"], "flights": sums["count_all_sum"], "delay": mean})
""",
    "DuckDB relation": """
import duckdb


def transform(flights: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyRelation:
    return flights.filter("distance > 1000").aggregate("carrier, count(*) as flights, avg(arr_delay) as delay")
""",
}  # fmt: skip
_THROUGH = {
    "Polars LazyFrame": "import polars as pl\ndef transform(flights: pl.LazyFrame) -> pl.LazyFrame:\n    return flights\n",
    "Arrow RecordBatchReader": (
        "import pyarrow as pa\ndef transform(flights: pa.RecordBatchReader) -> pa.RecordBatchReader:\n    return flights\n"
    ),
    "DuckDB relation": (
        "import duckdb\ndef transform(flights: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyRelation:\n    return flights\n"
    ),
}


def larger_than_memory(results: Results, gigabytes: float) -> None:
    """Measure the speed of reading in execute, and the kernel's peak memory, for each frame that is read on demand.

    The time is that of stage ``execute``: without the download, which is over before, and the output's way out.
    """
    directory = Path(tempfile.mkdtemp(prefix="bench-large-"))
    directory.chmod(0o777)
    try:
        size_bytes, rows = _make(directory, gigabytes)
        results.notes.append(f"larger than memory: {rows:,} flights, {size_bytes / 1e9:.2f} GB of JSON lines")
        room = str(4 * size_bytes)
        with (
            _served(directory) as address,
            processes.gateway(
                DISK_LIMIT_BYTES=room, FILE_SIZE_LIMIT_BYTES=room, RESULT_KEEP="1", RESULT_KEEP_BYTES=room
            ) as gateway,
        ):
            for what, codes, goal in (
                ("filtered and grouped", _GROUPED, GROUPED_MB_PER_SECOND),
                ("in and out", _THROUGH, THROUGH_MB_PER_SECOND),
            ):
                for name, code in codes.items():
                    seconds, peak_bytes = _run(gateway.url, address, code)
                    label = f"{size_bytes / 1e9:.1f} GB {what}, {name}"
                    results.figure(label, "MB/s", [size_bytes / 1e6 / seconds], floor=goal)
                    results.figure(f"{label}: peak memory", "MiB", [peak_bytes / 2**20], limit=MEMORY_LIMIT_MIB)
    finally:
        shutil.rmtree(directory)


def _make(directory: Path, gigabytes: float) -> tuple[int, int]:
    frame = flights()
    lines, times = encoded(frame, "jsonl"), 0
    with (directory / "flights.jsonl").open("wb") as file:
        while file.tell() < gigabytes * 1e9:
            file.write(lines)
            times += 1
        size_bytes = file.tell()
    (directory / "flights.manifest.json").write_text(json.dumps(manifest(frame)))
    return size_bytes, times * len(frame)


@contextlib.contextmanager
def _served(directory: Path) -> Iterator[str]:
    """Serve the files over HTTP: the test's own store holds no 5 GB."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing."""

    handler = functools.partial(Quiet, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def _run(url: str, address: str, code: str) -> tuple[float, int]:
    body = {
        "code": code,
        "request_id": uuid.uuid4().hex,
        "timeout": TIMEOUT_SECONDS,
        "table_mapping": {"flights": f"{address}/flights.jsonl"},
        "manifest_mapping": {"flights": f"{address}/flights.manifest.json"},
    }
    status, answer = post(f"{url}/v1/execute", body, TIMEOUT_SECONDS)
    if status != 200:
        raise RuntimeError(f"the job failed with {status}: {answer}")
    return answer["stages"]["execute"], answer["peak_memory_bytes"]
