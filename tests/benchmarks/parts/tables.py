"""A table of real size: the flights, unchanged and grouped, through both servers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.benchmarks import processes
from tests.benchmarks.report.results import Comparison, Results, Series
from tests.benchmarks.workload import DUCKDB_CODE, GROUP_BY_CODE, IDENTITY_CODE, POLARS_CODE, Jobs, flights


def flights_jobs(jobs: Jobs, results: Results, rounds: int) -> None:
    """Measure identity and group-by over the flights on both servers in turn, and the gateway's memory."""
    table = jobs.table("flights", flights())
    results.notes.append(f"flights: {table.rows} rows, {table.data_bytes / 1e6:.0f} MB of JSON lines")
    with processes.subprocess_runner() as baseline, processes.gateway() as gateway:
        for name, code in (
            ("flights, unchanged", IDENTITY_CODE),
            ("flights, grouped by carrier", GROUP_BY_CODE),
        ):
            ours: list[float] = []
            theirs: list[float] = []
            growth: list[float] = []
            peak: list[float] = []
            stored: list[float] = []
            for _ in range(rounds):
                answer = jobs.call(baseline.url, code, [table])
                expected = len(jobs.rows(answer))
                theirs.append(answer.seconds)
                with _watched(gateway.pid) as sizes:
                    answer = jobs.call(gateway.url, code, [table])
                ours.append(answer.seconds)
                stored.append(jobs.move(table, outputs=[jobs.store.get(answer.output_key) or b""]))
                if len(jobs.rows(answer)) != expected:
                    raise RuntimeError(f"{name}: the servers do not agree on the number of rows")
                growth.append((max(sizes) - sizes[0]) / 2**20)
                if answer.body.get("peak_memory_bytes"):
                    peak.append(answer.body["peak_memory_bytes"] / 2**20)
            results.comparisons.append(Comparison(name, "s", Series(tuple(ours)), Series(tuple(theirs))))
            results.figure(f"{name}: the store alone", "s", stored)
            results.figure(f"{name}: gateway memory over idle", "MiB", growth, limit=20.0)
            results.figure(f"{name}: peak memory of the kernel", "MiB", peak, limit=1024.0)


def formats(jobs: Jobs, results: Results, rounds: int) -> None:
    """Measure the flights unchanged in each format, and grouped with each kind of frame."""
    frame = flights()
    with processes.gateway() as gateway:
        for data_format in ("jsonl", "csv", "parquet", "arrow"):
            table = jobs.table("flights", frame, data_format)
            times = [jobs.call(gateway.url, IDENTITY_CODE, [table]).seconds for _ in range(rounds)]
            results.figure(f"flights, unchanged, {data_format} in and out", "s", times)
        table = jobs.table("flights", frame)
        for name, code in (("pandas", GROUP_BY_CODE), ("Polars", POLARS_CODE), ("DuckDB", DUCKDB_CODE)):
            times = [jobs.call(gateway.url, code, [table]).seconds for _ in range(rounds)]
            results.figure(f"flights, grouped by carrier, {name}", "s", times)


def growth(jobs: Jobs, results: Results, rounds: int, most_rows: int) -> None:
    """Measure how time and memory of a group-by grow with the rows: five columns of the flights, over and over."""
    frame = flights()[["carrier", "flight", "arr_delay", "dep_delay", "distance"]]
    with processes.gateway() as gateway:
        rows = 10_000
        while rows <= most_rows:
            table = jobs.repeated("flights", frame, rows)
            answers = [jobs.call(gateway.url, POLARS_CODE, [table]) for _ in range(rounds)]
            seconds = [answer.seconds for answer in answers]
            results.growth.append((rows, Series(tuple(seconds))))
            results.figure(f"{rows:,} rows grouped with Polars", "s", seconds)
            peaks = [a.body["peak_memory_bytes"] / 2**20 for a in answers if a.body.get("peak_memory_bytes")]
            results.figure(f"{rows:,} rows: peak memory of the kernel", "MiB", peaks, limit=1024.0)
            rows *= 10


@contextmanager
def _watched(pid: int) -> Iterator[list[int]]:
    """Yield the resident bytes of a process, looked at every 10 ms from before the block to after it."""
    sizes = [_resident_bytes(pid)]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.01):
            sizes.append(_resident_bytes(pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield sizes
    finally:
        over.set()
        watcher.join()
        sizes.append(_resident_bytes(pid))


def _resident_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * 4096
