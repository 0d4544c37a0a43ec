"""The log: many printed lines beside a plain Python, and what pollers of a long log cost everybody else."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.benchmarks import processes
from tests.benchmarks.parts.poll import get
from tests.benchmarks.report.results import Results, Series
from tests.benchmarks.workload import SMALL_CODE, Jobs, Table, post

LINES = 100_000
FLOOD_LINES = 1_000_000
LONG_LOG_LINES = 20_000
POLLERS_WITHOUT_PAUSE = 20
POLLERS_EACH_SECOND = 100

PRINT_CODE = """
import pandas as pd
def transform():
    for i in range({lines}):
        print("row", i)
    return pd.DataFrame({{"x": [1]}})
"""
PLAIN_CODE = "for i in range({lines}): print('row', i)"
LONG_LOG_ID = "long-log"


def printed_lines(jobs: Jobs, table: Table, results: Results, rounds: int) -> None:
    """Measure printing against ``python -u | cat`` in turn, then polls of a long log beside other requests."""
    with processes.gateway(slots=2) as gateway:
        jobs.call(gateway.url, SMALL_CODE, [table])
        ours: list[float] = []
        theirs: list[float] = []
        for _ in range(max(3, rounds // 4)):
            theirs.append(_plain_print(LINES))
            ours.append(_print_in_job(jobs, gateway.url, LINES))
        results.figure(f"{LINES:,} printed lines in a job", "s", ours)
        results.figure(f"{LINES:,} printed lines of python -u | cat", "s", theirs)
        ratio = Series(tuple(ours)).median / Series(tuple(theirs)).median
        results.figure(f"{LINES:,} printed lines, against python -u | cat", "×", [ratio], limit=1.5)
        flood = _print_in_job(jobs, gateway.url, FLOOD_LINES)
        results.figure(f"{FLOOD_LINES:,} printed lines in a job, for each line", "µs", [flood / FLOOD_LINES * 1e6])
        _polls(jobs, table, results, gateway.url, rounds)


def _print_in_job(jobs: Jobs, url: str, lines: int) -> float:
    return float(jobs.call(url, PRINT_CODE.format(lines=lines), []).body["stages"]["transform"])


def _plain_print(lines: int) -> float:
    """Return the seconds of a plain interpreter's prints into a pipe, without its start."""
    times = []
    for count in (0, lines):
        program = [sys.executable, "-u", "-c", PLAIN_CODE.format(lines=count)]
        began = time.perf_counter()
        with subprocess.Popen(program, stdout=subprocess.PIPE) as printing:
            subprocess.run(["cat"], stdin=printing.stdout, stdout=subprocess.DEVNULL, check=True)
        times.append(time.perf_counter() - began)
    return times[1] - times[0]


def _polls(jobs: Jobs, table: Table, results: Results, url: str, rounds: int) -> None:
    body, _ = jobs.request(PRINT_CODE.format(lines=LONG_LOG_LINES), [])
    status_code, answer = post(f"{url}/v1/execute", body | {"request_id": LONG_LOG_ID})
    if status_code != 200:
        raise RuntimeError(f"the job failed with {status_code}: {answer}")
    looks, log_url = 5 * rounds, f"{url}/v1/logs?request_id={LONG_LOG_ID}"

    def status() -> list[float]:
        return [1000 * get(f"{url}/v1/status") for _ in range(looks)]

    def small_jobs() -> float:
        return Series(tuple(jobs.call(url, SMALL_CODE, [table]).seconds for _ in range(looks))).median

    results.percentiles("GET /v1/status alone", "ms", status())
    results.figure(
        f"one poll of a log of {LONG_LOG_LINES:,} lines",
        "ms",
        [1000 * get(log_url) for _ in range(looks)],
    )
    with _pollers(log_url, POLLERS_WITHOUT_PAUSE, 0.0):
        results.percentiles(f"GET /v1/status beside {POLLERS_WITHOUT_PAUSE} pollers of that log", "ms", status())
    alone = small_jobs()
    with _pollers(log_url, POLLERS_EACH_SECOND, 1.0):
        beside = small_jobs()
    name = f"small job beside {POLLERS_EACH_SECOND} pollers of that log, one poll a second each, against alone"
    results.figure(name, "×", [beside / alone], limit=1.5)


@contextmanager
def _pollers(url: str, count: int, pause_seconds: float) -> Iterator[None]:
    """Poll the long log in another process; yield when each poller has its first response."""
    command = [sys.executable, "-m", "tests.benchmarks.parts.poll", url, str(count), str(pause_seconds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as polling:
        if polling.stdout is None or not polling.stdout.readline():
            raise RuntimeError("the pollers did not start")
        yield
        polling.communicate()
    if polling.returncode:
        raise RuntimeError("a poller failed")
