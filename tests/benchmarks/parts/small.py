"""Small jobs: one at a time, back to back, from several callers, and where their time goes."""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.benchmarks import processes
from tests.benchmarks.report.results import Comparison, Results, Series
from tests.benchmarks.workload import SMALL_CODE, Answer, Jobs, Table

SETTLE_SECONDS = 0.3
"""Pause before a lone job, so that it meets a gateway with its kernels ready, as a lone job does."""
#: Pause between two jobs of a caller that is not in a hurry; a fresh kernel is ready again by then.
PAUSE_SECONDS = 0.1
#: Goals: fresh kernels back to back against the subprocess design, and processor time of the gateway's processes.
BACK_TO_BACK_TIMES, PROCESSOR_MS = 12, 50.0


def one_job(jobs: Jobs, table: Table, results: Results, rounds: int) -> None:
    """Measure one small job at a time, in turn on both servers, through S3 and inline, and the gateway's stages."""
    with processes.subprocess_runner() as baseline, processes.gateway() as gateway:
        _check_alike(jobs, table, baseline.url, gateway.url)
        theirs: list[float] = []
        answers: list[Answer] = []
        inline: list[float] = []
        for _ in range(rounds):
            theirs.append(jobs.call(baseline.url, SMALL_CODE, [table]).seconds)
            time.sleep(SETTLE_SECONDS)
            answers.append(jobs.call(gateway.url, SMALL_CODE, [table]))
            time.sleep(SETTLE_SECONDS)
            inline.append(1000 * jobs.call_inline(gateway.url, SMALL_CODE, table).seconds)
        ours = [answer.seconds for answer in answers]
        results.comparisons.append(Comparison("one small job, warm", "ms", _milliseconds(ours), _milliseconds(theirs)))
        results.figure("one small job, table and result inline", "ms", inline)
        results.stages_ms = _stages(answers)
        _waiting_memory(gateway.pid, results)
        _back_to_back(jobs, table, results, gateway, baseline, rounds)


def _check_alike(jobs: Jobs, table: Table, *urls: str) -> None:
    """Run the job once on each server (imports are compiled and cached then) and compare what they wrote."""
    outputs = [jobs.rows(jobs.call(url, SMALL_CODE, [table])) for url in urls]
    if outputs[0] != outputs[1] or len(outputs[0]) != 3:
        raise RuntimeError(f"the servers do not agree on the result: {outputs}")


def _stages(answers: list[Answer]) -> dict[str, Series]:
    values: dict[str, list[float]] = defaultdict(list)
    for answer in answers:
        for name, seconds in answer.body.get("stages", {}).items():
            values[name].append(seconds)
    return {name: _milliseconds(seconds) for name, seconds in values.items()}


def _back_to_back(
    jobs: Jobs, table: Table, results: Results, ours: processes.Server, theirs: processes.Server, rounds: int
) -> None:
    rates: dict[str, list[float]] = {ours.url: [], theirs.url: []}
    lone_ms: dict[str, list[float]] = {ours.url: [], theirs.url: []}
    processor_ms: list[float] = []
    for _ in range(3):
        for server, count in ((theirs, max(3, rounds // 4)), (ours, 3 * rounds)):
            url, used, began = server.url, processes.processor_seconds(server), time.perf_counter()
            for _ in range(count):
                lone_ms[url].append(1000 * jobs.call(url, SMALL_CODE, [table]).seconds)
            rates[url].append(count / (time.perf_counter() - began))
            if server is ours:
                processor_ms.append(1000 * (processes.processor_seconds(server) - used) / count)
    results.figure("small job, back to back: processor time of all processes", "ms", processor_ms, limit=PROCESSOR_MS)
    results.comparisons.append(
        Comparison(
            "small jobs back to back, one caller",
            "jobs/s",
            Series(tuple(rates[ours.url])),
            Series(tuple(rates[theirs.url])),
            BACK_TO_BACK_TIMES,
        )
    )
    results.percentiles("small job, back to back", "ms", lone_ms[ours.url])
    paused_ms: list[float] = []
    for _ in range(6 * rounds):
        time.sleep(PAUSE_SECONDS)
        paused_ms.append(1000 * jobs.call(ours.url, SMALL_CODE, [table]).seconds)
    results.percentiles(f"small job, {PAUSE_SECONDS:g} s after the one before", "ms", paused_ms)


def callers(jobs: Jobs, table: Table, results: Results, rounds: int) -> None:
    """Measure the rate of N callers at once against two slots; the baseline gets one slot, as the first public runner
    has, and then two as well.
    """
    with (
        processes.subprocess_runner(1) as single,
        processes.subprocess_runner(2) as double,
        processes.gateway(2) as gateway,
    ):
        for url in (single.url, double.url, gateway.url):
            jobs.call(url, SMALL_CODE, [table])
        for count in (1, 2, 4, 8):
            per_caller = max(2, 2 * rounds // count)
            rates: dict[str, list[float]] = defaultdict(list)
            for _ in range(3):
                for url in (single.url, double.url):
                    rates[url].append(_rate(jobs, table, url, count, max(1, per_caller // 8)))
                rates[gateway.url].append(_rate(jobs, table, gateway.url, count, per_caller))
            for url, which in ((single.url, "one slot"), (double.url, "two slots")):
                results.comparisons.append(
                    Comparison(
                        f"{count} caller{'s' if count > 1 else ''}, SLOTS=2, against {which}",
                        "jobs/s",
                        Series(tuple(rates[gateway.url])),
                        Series(tuple(rates[url])),
                    )
                )


def _rate(jobs: Jobs, table: Table, url: str, callers_at_once: int, jobs_each: int) -> float:
    def caller(_: int) -> None:
        for _ in range(jobs_each):
            jobs.call(url, SMALL_CODE, [table])

    began = time.perf_counter()
    with ThreadPoolExecutor(callers_at_once) as pool:
        list(pool.map(caller, range(callers_at_once)))
    return callers_at_once * jobs_each / (time.perf_counter() - began)


def plain_start(jobs: Jobs, table: Table, results: Results, rounds: int) -> None:
    """Measure the gateway with its fork server off."""
    with processes.gateway(USE_FORK_SERVER="false") as gateway:
        jobs.call(gateway.url, SMALL_CODE, [table])
        lone: list[float] = []
        for _ in range(max(3, rounds // 3)):
            time.sleep(10 * SETTLE_SECONDS)
            lone.append(jobs.call(gateway.url, SMALL_CODE, [table]).seconds * 1000)
        results.figure("fork server off: one small job, kernel ready", "ms", lone)
        chain = [jobs.call(gateway.url, SMALL_CODE, [table]).seconds * 1000 for _ in range(max(4, rounds // 3))]
        results.figure("fork server off: small jobs back to back, each", "ms", chain)


def cold_start(jobs: Jobs, table: Table, results: Results, rounds: int) -> None:
    """Measure from the start of the gateway's process to the answer of its first job, and to healthy."""
    healthy: list[float] = []
    first: list[float] = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="bench-") as directory:
            Path(directory).chmod(0o755)
            began = time.perf_counter()
            server = processes.launch_gateway(Path(directory))
            try:
                processes.wait_until_healthy(server)
                healthy.append(time.perf_counter() - began)
                jobs.call(server.url, SMALL_CODE, [table])
                first.append(time.perf_counter() - began)
            finally:
                processes.end(server)
    results.figure("gateway start to healthy", "s", healthy)
    results.figure("gateway start to first finished job", "s", first, limit=2.5)


def _waiting_memory(gateway_pid: int, results: Results) -> None:
    time.sleep(1.0)  # the kernel that took the place of the last job's has booted by then
    looked = processes.family(gateway_pid)
    limits = {("gateway", "PSS"): 80.0}
    for role in ("gateway", "supervisor", "launcher", "fork server", "ready kernel", "kernel's init"):
        members = [process for process in looked if process.role == role]
        for what in ("PSS", "private dirty"):
            sizes = [m.pss_bytes if what == "PSS" else m.private_dirty_bytes for m in members]
            known = [size / 2**20 for size in sizes if size is not None]
            results.figure(f"{role}: {what}", "MiB", known, limits.get((role, what)))
    of_kernels = [m for m in looked if m.role in ("ready kernel", "kernel's init")]
    count = sum(m.role == "ready kernel" for m in of_kernels)
    dirty = [m.private_dirty_bytes for m in of_kernels if m.private_dirty_bytes is not None]
    whole = [sum(dirty) / count / 2**20] if count and dirty else []
    results.figure("a ready kernel in all (init too): private dirty", "MiB", whole, limit=25.0)


def soak(jobs: Jobs, table: Table, results: Results, count: int) -> None:
    """Run many small jobs in a row and look now and then what the gateway's processes hold."""
    with processes.gateway() as gateway:
        for done in range(count + 1):
            if done:
                jobs.call(gateway.url, SMALL_CODE, [table])
            if done in (20, 50) or done % 100 == 0:
                time.sleep(1.0)
                results.soak.append({"jobs": done, "processes": [_row(p) for p in processes.family(gateway.pid)]})
    _flatness(results, count)


def _row(process: processes.ProcessFacts) -> dict[str, object]:
    memory = None if process.pss_bytes is None else round(process.pss_bytes / 2**20, 1)
    return {
        "role": process.role,
        "pss_mib": memory,
        "descriptors": process.descriptors,
        "threads": process.threads,
    }


def _flatness(results: Results, count: int) -> None:
    """Compare the look after 100 jobs (everything lazy is loaded then) with the last one."""
    early = next((look for look in results.soak if look["jobs"] >= min(100, count)), None)
    if early is None:
        return
    for role in ("gateway", "launcher", "fork server"):
        before, after = (
            next((p for p in look["processes"] if p["role"] == role), None) for look in (early, results.soak[-1])
        )
        if before is None or after is None:
            continue
        growth = {
            "PSS": ("pss_mib", "MiB", 5.0),
            "descriptors": ("descriptors", "", 0.0),
            "threads": ("threads", "", 0.0),
        }
        for what, (key, unit, limit) in growth.items():
            values = [] if before[key] is None else [float(after[key] - before[key])]
            name = f"{role}: more {what} after {count} jobs than after {early['jobs']}"
            results.figure(name, unit, values, limit)


def _milliseconds(seconds: list[float]) -> Series:
    return Series(tuple(1000 * value for value in seconds))
