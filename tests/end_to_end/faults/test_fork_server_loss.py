"""The fork server may die at any moment, on a busy machine as well: no job is lost, none hangs, nothing stays behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from kernel_spec.linux import procfs
from tests.support.gateway_process import GatewayProcess, alive, descendants

pytestmark = pytest.mark.alone  # it keeps every core busy

CODE = "import pandas as pd\ndef transform():\n    return pd.DataFrame({{'x': [{number}]}})\n"


@contextmanager
def busy_cores() -> Iterator[None]:
    """Keep every core busy with a process of the same priority as a kernel, whatever ours is."""
    code = "import os\nos.setpriority(os.PRIO_PROCESS, 0, max(0, os.getpriority(os.PRIO_PROCESS, 0)))\nwhile True: os.getpid()"
    with ExitStack() as stack:
        for _ in range(os.cpu_count() or 1):
            burner = stack.enter_context(subprocess.Popen([sys.executable, "-c", code]))
            stack.callback(burner.kill)
        yield


def family_of_the_fork_server(gateway: GatewayProcess) -> list[int]:
    """Return the fork server and, after it, what it has forked, oldest first."""
    found: list[tuple[int, int]] = []
    for pid in descendants(gateway.pid):
        with suppress(OSError):
            if b"kernel_spec.fork_server" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append((procfs.read_start_ticks(pid) or 0, pid))
    return [pid for _, pid in sorted(found)]


@pytest.mark.parametrize(("jobs", "kills"), [(30, 1), pytest.param(200, 4, marks=pytest.mark.soak)])
def test_jobs_survive_the_death_of_the_fork_server(
    start_gateway: Callable[..., GatewayProcess], jobs: int, kills: int
) -> None:
    gateway = start_gateway(SLOTS="2", QUEUE_LENGTH="10", QUEUE_TIMEOUT="120")
    kill_before = set(random.Random(7).sample(range(10, jobs), kills))
    killed: list[int] = []

    def run(number: int) -> object:
        if number in kill_before:
            # The oldest process of that name: its forks have the same name.
            for pid in family_of_the_fork_server(gateway)[:1]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
        answer = gateway.execute(CODE.format(number=number), number, inline=True)
        assert answer.status == 200, f"{answer.body}\n{gateway.output[-30:]}"
        return answer.body["output"]

    with busy_cores(), ThreadPoolExecutor(3) as pool:
        outputs = list(pool.map(run, range(jobs)))
    assert [str(number) in str(output) for number, output in enumerate(outputs)] == [True] * jobs
    assert killed, "it was never there to be killed"
    deadline = time.monotonic() + 60
    while (status := gateway.request("GET", "/v1/status").body)["fork_server"]["state"] != "ready":
        assert time.monotonic() < deadline, f"it did not come back: {status['fork_server']}"
        time.sleep(0.05)
    assert status["fork_server"]["restarts"] >= 1
    assert status["ready_kernels"]["start_failures"] <= 2 * len(killed), "only what was killed may fail"

    family = descendants(gateway.pid)
    assert gateway.stop() == 0
    deadline = time.monotonic() + 60
    while left := [pid for pid in family if alive(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.01)
