"""The log of a running job, polled as fast as it can be, is always the beginning of the final log."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.support.gateway_process import GatewayProcess

Events = list[dict[str, Any]]

#: Each way on which a line may come: both streams, a thread, child processes, C code, a line without an end, the end
#: of the process.
SCRIPT = """
import ctypes, os, subprocess, sys, threading
import pandas as pd

def transform():
    kind = {kind}
    print("first", kind)
    if kind == 1:
        print("error", file=sys.stderr)
        os.write(1, b"raw\\n")
    elif kind == 2:
        thread = threading.Thread(target=print, args=("in a thread",))
        thread.start()
        thread.join()
    elif kind == 3:
        subprocess.run("echo child; echo child err >&2", shell=True, check=True)
    elif kind == 4:
        ctypes.CDLL(None).printf(b"from C\\n")
    elif kind == 5:
        for i in range(3000):
            print("line", i)
    elif kind == 6:
        raise ValueError("on purpose")
    elif kind == 7:
        print("last words", end="")
        os.kill(os.getpid(), 9)
    print("no end", end="")
    return pd.DataFrame({{"x": [1]}})
"""
KINDS = 8


def watch(gateway: GatewayProcess, request_id: str, running: Future[Any], seen: list[Events], parts: Events) -> None:
    """Poll the whole log, and what is new, without a pause until the job is answered, and once more then."""
    offset, last = 0, False
    while not last:
        last = running.done()
        answer = gateway.request("GET", f"/v1/logs?request_id={request_id}")
        if answer.status == 200:
            seen.append(answer.body["events"])
        answer = gateway.request("GET", f"/v1/logs?request_id={request_id}&offset={offset}")
        if answer.status == 200:
            parts += answer.body["events"]
            offset = answer.body["next_offset"]


def run_one(gateway: GatewayProcess, number: int) -> None:
    request_id = f"live-{number}"
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(gateway.execute, SCRIPT.format(kind=number % KINDS), request_id)
        seen: list[Events] = []
        parts: Events = []
        watch(gateway, request_id, running, seen, parts)
        running.result()
    raw = gateway.request("GET", f"/v1/results/{request_id}/events").raw
    final = [json.loads(line) for line in raw.splitlines()]
    assert final[0]["message"] == f"first {number % KINDS}"
    for events in seen:
        assert events == final[: len(events)], (number, events, final)
    assert parts == final


@pytest.mark.parametrize("jobs", [2 * KINDS, pytest.param(600, marks=pytest.mark.soak)])
def test_live_log_is_a_prefix_of_the_final_one(start_gateway: Callable[..., GatewayProcess], jobs: int) -> None:
    gateway = start_gateway(SLOTS="2", READY_KERNELS="2", QUEUE_LENGTH="20")
    stop = threading.Event()

    def look_aside() -> None:  # more polls than the loop can answer at once
        while not stop.is_set():
            gateway.request("GET", "/v1/logs")

    with ThreadPoolExecutor(8) as pool:
        for _ in range(4):
            pool.submit(look_aside)
        try:
            list(pool.map(run_one, [gateway] * jobs, range(jobs)))
        finally:
            stop.set()
