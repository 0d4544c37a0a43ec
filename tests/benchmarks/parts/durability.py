"""The price of job store and outbox: accepted jobs and whole small jobs, with and without a disk, and one fsync."""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import IO

import psutil

from gateway.core.events import EventLog, Finished
from gateway.core.job import Job, UrlDelivery, Verdict
from gateway.core.settings import Settings
from gateway.jobs.store import JobRecord, JobStore
from tests.benchmarks import processes
from tests.benchmarks.parts.small import SETTLE_SECONDS
from tests.benchmarks.report.results import Results
from tests.benchmarks.workload import SMALL_CODE, Jobs, Table

#: The bytes that a commit of a small job adds to SQLite's write-ahead log: some pages with their headers.
COMMIT_BYTES = 4 * 4096

#: Goals: the acceptance of a job beyond one fsync, and a whole job.
BEYOND_FSYNC_MS, ADDED_MS = 0.5, 1.0


def price(jobs: Jobs, table: Table, results: Results, rounds: int) -> None:
    """Measure the acceptance of jobs alone, then small jobs on both gateways in turn."""
    asyncio.run(_accept(results, 20 * rounds))
    _small_jobs(jobs, table, results, 6 * rounds)


async def _accept(results: Results, count: int) -> None:
    """Accept jobs in a store on disk and in one in memory in turn, with an fsync after each pair."""
    disk_ms: list[float] = []
    memory_ms: list[float] = []
    syncs_ms: list[float] = []
    with tempfile.TemporaryDirectory() as name, tempfile.NamedTemporaryFile() as scratch:
        settings = Settings(state_dir=Path(name))
        disk, memory = JobStore(settings, settings.state_dir), JobStore(settings)
        for _ in range(count):
            disk_ms.append(await _accept_ms(disk))
            memory_ms.append(await _accept_ms(memory))
            syncs_ms.append(fsync_ms(scratch))
        disk.close()
        memory.close()
    beyond = statistics.median(disk_ms) - statistics.median(memory_ms) - statistics.median(syncs_ms)
    results.figure("acceptance of a job on disk", "ms", disk_ms)
    results.figure("acceptance of a job in memory", "ms", memory_ms)
    results.figure("one fsync", "ms", syncs_ms)
    results.figure("acceptance on disk, beyond memory and one fsync", "ms", [beyond], limit=BEYOND_FSYNC_MS)


async def _accept_ms(store: JobStore) -> float:
    """Accept a job, and end it without a measurement, so that its end shares no commit with the next acceptance."""
    job = Job("small", SMALL_CODE, 30, UrlDelivery("http://localhost/output"))
    record = JobRecord(job.request_id, uuid.uuid4().hex, job.form, job, EventLog())
    began = time.perf_counter()
    await store.accept(record)
    took_ms = 1000 * (time.perf_counter() - began)
    record.finished_at, verdict = time.time(), Verdict(None, "", 0)
    ended = store.finish(record, verdict)
    record.log.emit(Finished(verdict))
    store.forget_live(record)
    await ended
    return took_ms


def _small_jobs(jobs: Jobs, table: Table, results: Results, pairs: int) -> None:
    memory = [sys.executable, "-m", "tests.benchmarks.parts.memory_gateway"]
    with processes.gateway() as disk, processes.gateway(command=memory) as bare:
        servers = (disk, bare)
        for _ in range(3):
            for server in servers:
                jobs.call(server.url, SMALL_CODE, [table])
        ms: dict[str, list[float]] = {disk.url: [], bare.url: []}
        began = [_processor_seconds(server) for server in servers]
        for number in range(pairs):
            # each goes first in every second pair
            for server in servers[:: 1 if number % 2 else -1]:
                time.sleep(SETTLE_SECONDS / 3)
                ms[server.url].append(1000 * jobs.call(server.url, SMALL_CODE, [table]).seconds)
        used = [_processor_seconds(server) - at for server, at in zip(servers, began, strict=True)]
    added = [ours - theirs for ours, theirs in zip(ms[disk.url], ms[bare.url], strict=True)]
    results.figure("small job with job store and outbox on disk", "ms", ms[disk.url])
    results.figure("small job with both in memory", "ms", ms[bare.url])
    results.figure("small job: added by the disk", "ms", [statistics.median(added)], limit=ADDED_MS)
    results.figure("small job: added processor time of the gateway", "ms", [1000 * (used[0] - used[1]) / pairs])


def fsync_ms(file: IO[bytes]) -> float:
    """Write as much as the commit of a small job, and return the time until it is on the disk."""
    began = time.perf_counter()
    os.write(file.fileno(), b"x" * COMMIT_BYTES)
    os.fsync(file.fileno())
    return 1000 * (time.perf_counter() - began)


def _processor_seconds(server: processes.Server) -> float:
    times = psutil.Process(server.pid).cpu_times()
    return float(times.user + times.system)
