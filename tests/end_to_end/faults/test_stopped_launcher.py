"""A launcher of kernels that stands still for a while, as on a host that swaps: it has all workspaces again afterwards."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.support.gateway_process import GatewayProcess, command_of, descendants

LONG = "import time\ndef transform():\n    print('begun', flush=True)\n    time.sleep(3)\n    return 1"
OK = "import pandas as pd\ndef transform():\n    return pd.DataFrame({'x': [1]})"


def wait_until(is_so: Callable[[], bool], text: str) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline, text
        time.sleep(0.05)


def test_no_workspace_is_lost_to_a_launcher_that_stood_still(start_gateway: Callable[..., GatewayProcess]) -> None:
    gateway = start_gateway(SLOTS="1", READY_KERNELS="1")
    workspaces = gateway.state_dir / "s" / "workspaces"
    assert gateway.execute(OK).status == 200
    launcher = next(pid for pid in descendants(gateway.pid) if b"kernel_spec.launcher" in command_of(pid))
    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(gateway.execute, LONG, "cut-off")
        gateway.wait_for_line("cut-off", "begun")
        os.kill(launcher, signal.SIGSTOP)
        try:
            answer = going.result(timeout=60)
            wait_until(lambda: any("could not be removed" in line for line in gateway.output), "nothing was given up")
        finally:
            os.kill(launcher, signal.SIGCONT)
    assert answer.body["retryable"], answer.body
    for number in range(3):  # they use up the kernels that were ready
        assert gateway.execute(OK, f"after {number}").status == 200

    def has_lost_some() -> bool:
        there = len(list(workspaces.glob("*/work")))  # their names are used again
        kernels = gateway.request("GET", "/v1/status").body["ready_kernels"]
        return there > kernels["ready"] + kernels["starting"]

    wait_until(lambda: not has_lost_some(), "a workspace is lost for good")
