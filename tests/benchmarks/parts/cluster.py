"""A cluster beside one gateway: what the broker adds to a job, a cancel and a line, and what three hosts run."""

from __future__ import annotations

import http.client
import json
import shutil
import statistics
import time
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import psutil

from tests.benchmarks import processes
from tests.benchmarks.parts.small import SETTLE_SECONDS
from tests.benchmarks.report.results import Results
from tests.benchmarks.workload import SMALL_CODE, Jobs, Table, post
from tests.support.nats_server import PROGRAM, NatsServer

#: Goals: of a small job, beside one gateway; of a cancel; of a line; of three hosts; of a host beside its launcher.
ADDED_MS, CANCEL_MS, LINE_MS, IDEAL_PERCENT, MEMBER_MIB = 3.0, 100.0, 50.0, 90.0, 45.0

HOSTS, SLOTS = 3, 1
JOB_SECONDS = 0.5
LINES, LINE_PAUSE_SECONDS = 60, 0.02

WAITS = "import time\nimport pandas as pd\n\ndef transform():\n    time.sleep({seconds})\n    return pd.DataFrame({{'x': [1]}})\n"
PRINTS = (
    "import time\nimport pandas as pd\n\ndef transform():\n    for _ in range({lines}):\n        print(time.time())\n"
    "        time.sleep({pause})\n    return pd.DataFrame({{'x': [1]}})\n"
)


def beside_one_gateway(jobs: Jobs, table: Table, results: Results, rounds: int) -> None:
    """Measure an acceptor with one host and one gateway in turn, then an acceptor with three hosts."""
    if shutil.which(PROGRAM) is None:
        results.notes.append("cluster: nats-server is not installed")
        return
    with NatsServer() as broker, processes.gateway() as alone, _cluster(broker, 1, 1) as (front, hosts):
        for _ in range(3):
            for server in (alone, front):
                jobs.call(server.url, SMALL_CODE, [table])
        _small_jobs(jobs, table, results, alone.url, front.url, 6 * rounds)
        for name, url in (("one gateway", alone.url), ("cluster", front.url)):
            limits = (CANCEL_MS, LINE_MS) if name == "cluster" else (None, None)
            cancels_ms = [_cancel_ms(jobs, url) for _ in range(max(5, rounds // 2))]
            results.figure(f"{name}: a cancel until the answer", "ms", cancels_ms, limits[0])
            lines_ms = _lines_ms(jobs, url)
            results.figure(f"{name}: a printed line until it is in the log", "ms", lines_ms, limits[1])
        _memory(results, alone, front, hosts[0])
    with NatsServer() as broker, _cluster(broker, HOSTS, SLOTS) as (front, _):
        _throughput(jobs, results, front.url, max(5, rounds))


@contextmanager
def _cluster(broker: NatsServer, hosts: int, slots: int) -> Iterator[tuple[processes.Server, list[processes.Server]]]:
    """Yield an acceptor and its hosts, once it knows them."""
    command = [processes.GATEWAY_COMMAND, "host"]
    with ExitStack() as opened:
        front = opened.enter_context(processes.gateway(0, QUEUE_LENGTH="500", **broker.settings("acceptor")))
        started = [
            opened.enter_context(processes.gateway(slots, command, **broker.settings("host"))) for _ in range(hosts)
        ]
        deadline = time.monotonic() + processes.HEALTHY_SECONDS
        while json.loads(_get(front.url, "/v1/status"))["slots"] < hosts * slots:
            if time.monotonic() > deadline:
                raise RuntimeError("the hosts did not join")
            time.sleep(0.05)
        yield front, started


def _small_jobs(jobs: Jobs, table: Table, results: Results, alone: str, front: str, pairs: int) -> None:
    ms: dict[str, list[float]] = {alone: [], front: []}
    for number in range(pairs):
        for url in (alone, front)[:: 1 if number % 2 else -1]:  # each goes first in every second pair
            time.sleep(SETTLE_SECONDS / 3)
            ms[url].append(1000 * jobs.call(url, SMALL_CODE, [table]).seconds)
    added = [more - less for more, less in zip(ms[front], ms[alone], strict=True)]
    results.figure("one gateway: one small job", "ms", ms[alone])
    results.figure("cluster: one small job", "ms", ms[front])
    results.figure("small job: added by the cluster", "ms", [statistics.median(added)], ADDED_MS)


def _cancel_ms(jobs: Jobs, url: str) -> float:
    body, _ = jobs.request("import time\n\ndef transform():\n    print('begun')\n    time.sleep(60)\n", [])
    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(post, f"{url}/v1/execute", body)
        next(_lines_of(url, body["request_id"]))
        began = time.perf_counter()
        post(f"{url}/v1/cancel", {"request_id": body["request_id"]})
        if going.result()[1]["code"] != "cancelled":
            raise RuntimeError(f"not cancelled: {going.result()}")
        return 1000 * (time.perf_counter() - began)


def _lines_ms(jobs: Jobs, url: str) -> list[float]:
    """Poll the log of a job that prints the time, without a pause; return how old each line was when it came."""
    body, _ = jobs.request(PRINTS.format(lines=LINES, pause=LINE_PAUSE_SECONDS), [])
    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(post, f"{url}/v1/execute", body)
        lines = _lines_of(url, body["request_id"])
        ages_ms = [-1000 * (float(next(lines)) - time.time()) for _ in range(LINES)]
        going.result()
    return ages_ms


def _lines_of(url: str, request_id: int) -> Iterator[str]:
    """Yield the lines of a job as they come."""
    offset, deadline = 0, time.monotonic() + 60
    target = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=60)
    try:
        while time.monotonic() < deadline:
            connection.request("GET", f"/v1/logs?request_id={request_id}&offset={offset}")
            answer = connection.getresponse()
            found: dict[str, Any] = json.loads(answer.read())
            if answer.status == 200:
                offset = found["next_offset"]
                yield from (event["message"] for event in found["events"])
    finally:
        connection.close()
    raise RuntimeError("the job printed nothing more")


def _memory(results: Results, alone: processes.Server, front: processes.Server, host: processes.Server) -> None:
    names = {"one gateway": alone, "acceptor": front, "host": host}
    for name, server in names.items():
        used = psutil.Process(server.pid).memory_full_info().uss / 2**20
        limit = MEMBER_MIB if name == "host" else None
        results.figure(f"{name}: private memory without launcher and kernels", "MiB", [used], limit)


def _throughput(jobs: Jobs, results: Results, url: str, waves: int) -> None:
    """Run jobs that wait, always more than there are slots."""
    slots, code = HOSTS * SLOTS, WAITS.format(seconds=JOB_SECONDS)
    with ThreadPoolExecutor(3 * slots) as pool:
        list(pool.map(lambda _: jobs.call(url, code, []), range(2 * slots)))
        began = time.perf_counter()
        list(pool.map(lambda _: jobs.call(url, code, []), range(waves * slots)))
        percent = 100 * waves * JOB_SECONDS / (time.perf_counter() - began)
    name = f"{HOSTS} hosts with a slot each, jobs of {JOB_SECONDS:g} s: share of the ideal rate"
    results.figure(name, "%", [percent], floor=IDEAL_PERCENT)


def _get(url: str, path: str) -> bytes:
    target = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=60)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()
