"""The lower bound of any gateway: the kernel's own round trip with the same job, fetches, uploads and one fsync alone.

A small job is measured a moment after the one before, when the caches of the processor are cold. So each part is too;
the same parts without a pause, which take 0.6 to 0.8 times as long, are shown beside them.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

from gateway.local.job_request import RUN_CODE
from tests.benchmarks.parts.durability import fsync_ms
from tests.benchmarks.parts.small import SETTLE_SECONDS
from tests.benchmarks.report.results import Results
from tests.benchmarks.workload import SMALL_CODE, Jobs, Table

WARM = """
import pandas, pyarrow, pyarrow.json, orjson, transform_shim.job.run
pandas.DataFrame({"a": [1]}).groupby("a").sum()
"""
REPLY_SECONDS = 60.0


def floor(jobs: Jobs, table: Table, results: Results, rounds: int) -> None:
    """Measure a small job's parts alone: the kernel's round trip (its first, and again), the storage, and one fsync.

    The floor takes the round trip of a kernel that has run the job before: a first one also pays for pages that the
    gateway copies ahead.
    """
    first: list[float] = []
    for pause_seconds, when in ((SETTLE_SECONDS, ""), (0.0, ", without a pause")):
        again: list[float] = []
        sizes: list[int] = []
        for _ in range(max(3, rounds // 4)):
            times, sizes = _kernel_round_trips(jobs, table, pause_seconds)
            first.append(times[0])
            again += times[1:]
        outputs = [b"x" * size for size in sizes]
        moves = [1000 * s for s in _repeated(rounds, pause_seconds, partial(jobs.move, table, outputs=outputs))]
        with tempfile.NamedTemporaryFile() as scratch:
            syncs = _repeated(rounds, pause_seconds, partial(fsync_ms, scratch))
        results.figure(f"alone: kernel round trip, the same kernel again{when}", "ms", again)
        results.figure(f"alone: two fetches and three uploads{when}", "ms", moves)
        results.figure(f"alone: one fsync{when}", "ms", syncs)
    results.figure("alone: kernel round trip, first job of a kernel", "ms", first)


def _repeated(count: int, pause_seconds: float, measure: Callable[[], float]) -> list[float]:
    found = []
    for _ in range(count):
        time.sleep(pause_seconds)
        found.append(measure())
    return found


def _kernel_round_trips(jobs: Jobs, table: Table, pause_seconds: float) -> tuple[list[float], list[int]]:
    """Time the shim's call in a stock ipykernel that has imported everything; return ms and output sizes."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        directory = Path(name)
        spec = _job(jobs, table, directory)
        manager = KernelManager(kernel_name="python3", transport="ipc", ip=str(directory / "k"))
        manager.start_kernel(cwd=name)
        client: BlockingKernelClient = manager.blocking_client()
        client.start_channels()
        try:
            client.wait_for_ready(timeout=REPLY_SECONDS)
            _execute(client, WARM)
            call = RUN_CODE.format(request=json.dumps(spec))
            times = _repeated(4, pause_seconds, partial(_execute, client, call))
            result = json.loads((directory / "result.json").read_text())
            if result["outcome"] != "ok":
                raise RuntimeError(f"the shim alone failed: {result}")
            sizes = [(directory / name).stat().st_size for name in ("output.jsonl", "output-manifest.json")]
            return times, [*sizes, 300]
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)


def _execute(client: BlockingKernelClient, code: str) -> float:
    began = time.perf_counter()
    reply = client.execute(code, store_history=False, reply=True, timeout=REPLY_SECONDS)
    milliseconds = (time.perf_counter() - began) * 1000
    if reply["content"]["status"] != "ok":
        raise RuntimeError(f"the kernel answered {reply['content']}")
    return milliseconds


def _job(jobs: Jobs, table: Table, directory: Path) -> dict[str, Any]:
    """Lay the job out as the gateway does and return what the shim is told."""
    data_path, manifest_path = directory / "0.data", directory / "0.manifest"
    data_path.write_bytes(jobs.store.get(table.data_key) or b"")
    manifest_path.write_bytes(jobs.store.get(table.manifest_key) or b"")
    work_dir = directory / "work"
    work_dir.mkdir()
    files = {"alias": table.alias, "data_path": str(data_path), "manifest_path": str(manifest_path)}
    return {
        "version": 1,
        "code": SMALL_CODE,
        "library": {},
        "tables": [{**files, "data_format": "jsonl", "compression": None}],
        "output_format": "jsonl",
        "output_path": str(directory / "output.jsonl"),
        "manifest_path": str(directory / "output-manifest.json"),
        "result_path": str(directory / "result.json"),
        "work_dir": str(work_dir),
        "limits": {"memory_bytes": 1 << 30, "cpu_seconds": 60, "file_size_bytes": 500_000_000},
    }
