"""``python -m tests.benchmarks.parts.page``: the cost of open pages for small jobs, and the time of filters of the history."""

from __future__ import annotations

import os
import socket
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gateway.core.errors import FailureCode
from gateway.core.events import EventLog
from gateway.core.job import Job, JobState, KeptDelivery, OutputFacts, Verdict
from gateway.jobs.store.database import open_database
from gateway.jobs.store.history import HistoryQuery, read_page
from gateway.jobs.store.record import JobRecord
from gateway.jobs.store.rows import insert_job, update_end
from tests.support.gateway_process import GatewayProcess

STREAMS = 50
JOBS = 40
ROUNDS = 5
HISTORY_JOBS = 10_000
CODE = "import pandas as pd\ndef transform():\n    print('one line')\n    return pd.DataFrame({'n': [1, 2, 3]})"
TICKS = os.sysconf("SC_CLK_TCK")

QUERIES = {
    "no filter": HistoryQuery(),
    "failures": HistoryQuery(code="failed"),
    "a code": HistoryQuery(code="user_error"),
    "running": HistoryQuery(state=JobState.RUNNING),
    "part of a label": HistoryQuery(label="report 7"),
    "a label that no job has": HistoryQuery(label="none such"),
    "many rows": HistoryQuery(min_rows=999_000),
    "long": HistoryQuery(min_duration_seconds=9.99),
    "a request_id": HistoryQuery(request_ids=(77, "77")),
    "by duration": HistoryQuery(sort="duration"),
    "by end": HistoryQuery(sort="finished_at"),
}


def processor_seconds(pid: int) -> float:
    """Return the processor time of a process so far; see proc(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process; see proc(5)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def streams(gateway: GatewayProcess, count: int) -> Iterator[None]:
    """Hold open streams, which one thread reads, as pages do."""
    request = f"GET /v1/stream HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {gateway.token}\r\n\r\n".encode()
    sockets = [socket.create_connection(("127.0.0.1", gateway.port)) for _ in range(count)]
    for each in sockets:
        each.sendall(request)
        each.recv(1)
    is_over = threading.Event()

    def read() -> None:
        while not is_over.wait(0.2):
            for each in sockets:
                with suppress(BlockingIOError):
                    each.recv(1 << 20, socket.MSG_DONTWAIT)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield
    finally:
        is_over.set()
        reader.join()
        for each in sockets:
            each.close()


def jobs(gateway: GatewayProcess) -> tuple[float, float]:
    """Run small jobs; return the seconds and the gateway's processor seconds of one."""
    began, used = time.perf_counter(), processor_seconds(gateway.pid)
    for number in range(JOBS):
        answer = gateway.request("POST", "/v1/execute", {"code": CODE, "request_id": number, "inline": True})
        if answer.status != 200:
            raise RuntimeError(f"a job failed: {answer.raw!r}")
    return (time.perf_counter() - began) / JOBS, (processor_seconds(gateway.pid) - used) / JOBS


def measure_streams() -> None:
    """Write the cost of streams by alternating rounds without and with them."""
    with GatewayProcess({"SLOTS": "1"}) as gateway:
        jobs(gateway)
        plain, watched, grown = [], [], 0
        for _ in range(ROUNDS):
            plain.append(jobs(gateway))
            before = resident_bytes(gateway.pid)
            with streams(gateway, STREAMS):
                watched.append(jobs(gateway))
                grown = resident_bytes(gateway.pid) - before
    without, without_processor = (statistics.median(each) for each in zip(*plain, strict=True))
    watched_seconds, watched_processor = (statistics.median(each) for each in zip(*watched, strict=True))
    extra = (watched_processor - without_processor) / watched_seconds
    sys.stdout.write(
        f"a small job: {1000 * without:.1f} ms, with {STREAMS} streams {1000 * watched_seconds:.1f} ms "
        f"({watched_seconds / without - 1:+.1%}); the streams take {extra:.1%} of a processor, memory {grown / 1e6:+.1f} MB\n"
    )


def measure_history() -> None:
    """Write the time of one page of the history by filter."""
    with tempfile.TemporaryDirectory() as directory:
        connection = open_database(Path(directory) / "jobs.db")
        connection.execute("BEGIN")
        for number in range(HISTORY_JOBS):
            add_job(connection, number)
        connection.execute("COMMIT")
        for name, query in QUERIES.items():
            times = []
            for _ in range(ROUNDS):
                began = time.perf_counter()
                read_page(connection, query)
                times.append(time.perf_counter() - began)
            sys.stdout.write(f"history of {HISTORY_JOBS} jobs, {name}: {1000 * statistics.median(times):.1f} ms\n")
        connection.close()


def add_job(connection: sqlite3.Connection, number: int) -> None:
    """Store a finished job; each twentieth has failed."""
    record = JobRecord(
        number,
        f"{number:032x}",
        "v1",
        Job(number, "", 30.0, KeptDelivery()),
        EventLog(),
        label=f"nightly report {number % 50}" if number % 3 else None,
        tables=("orders", "customers"),
        created_at=1.7e9 + 60 * number,
    )
    insert_job(record, None, connection)
    seconds = number * 7919 % 10_000 / 1000
    record.started_at, record.finished_at = record.created_at, record.created_at + seconds
    stages = dict.fromkeys(("queue", "fetch", "claim", "execute", "read", "transform", "write", "deliver"), 0.1)
    if number % 20:
        facts = OutputFacts(number * 7907 % 1_000_000, 5, 10**6, "ab" * 32, "jsonl")
        verdict = Verdict(None, "", 0, seconds, stages, facts, peak_memory_bytes=10**8, bytes_in=10**6)
    else:
        verdict = Verdict(FailureCode.USER_ERROR, "ValueError: x (script.py, line 3)", 1, seconds, stages)
    update_end(record, verdict, record.log.snapshot(), connection)


if __name__ == "__main__":
    measure_history()
    measure_streams()
