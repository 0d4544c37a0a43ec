"""The gateway starts, refuses, drains and dies without leaving anything."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path

import pytest

from tests.gateway_process import GatewayProcess, alive, descendants

SIMPLE = "import pandas as pd\ndef transform():\n    return pd.DataFrame({'x': [1]})"
SLOW = (
    "import time\nimport pandas as pd\n"
    "def transform():\n"
    "    print('script started')\n"
    "    time.sleep({seconds})\n"
    "    return pd.DataFrame({{'x': [1]}})"
)

FORKING = (
    "import os, time\n"
    "def transform():\n"
    "    if os.fork() == 0:\n"
    "        os.setsid()\n"
    "        time.sleep(60)\n"
    "    print('script started')\n"
    "    time.sleep(60)"
)


def gateway_command(**settings: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/tmp"), **settings}
    return subprocess.run(
        [sys.executable, "-m", "gateway"], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_listening_beyond_loopback_without_a_token_is_refused(tmp_path: Path) -> None:
    done = gateway_command(HOST="0.0.0.0", STATE_DIR=str(tmp_path))
    assert done.returncode == 1
    assert "AUTH_TOKEN" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_in_use_says_which_setting_to_change(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = gateway_command(PORT=str(taken.getsockname()[1]), STATE_DIR=str(tmp_path))
    assert done.returncode == 1
    assert "PORT" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_environment_variable_is_named(tmp_path: Path) -> None:
    done = gateway_command(SLOTS="many", STATE_DIR=str(tmp_path))
    assert done.returncode != 0
    assert "SLOTS" in done.stderr
    assert "Traceback" not in done.stderr


def test_sigterm_lets_a_running_job_end(start_gateway: Callable[..., GatewayProcess]) -> None:
    gateway = start_gateway(DRAIN_SECONDS="20")
    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(gateway.execute, SLOW.format(seconds=2), 1)
        gateway.wait_for_line(1, "script started")
        family = descendants(gateway.pid)
        assert gateway.stop(signal.SIGTERM) == 0
        assert going.result(timeout=10).status == 200
    assert not [pid for pid in family if alive(pid)]


def test_sigterm_answers_a_job_that_outlives_the_grace(start_gateway: Callable[..., GatewayProcess]) -> None:
    gateway = start_gateway(DRAIN_SECONDS="0.5")
    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(gateway.execute, SLOW.format(seconds=60), 1)
        gateway.wait_for_line(1, "script started")
        assert gateway.stop(signal.SIGTERM) == 0
        answer = going.result(timeout=10)
    assert (answer.status, answer.body["code"]) == (503, "shutting_down")


def test_sigkill_of_the_gateway_leaves_no_process_and_no_seat(start_gateway: Callable[..., GatewayProcess]) -> None:
    gateway = start_gateway()
    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(gateway.execute, FORKING, 1)
        gateway.wait_for_line(1, "script started")
        ends = [os.pidfd_open(pid) for pid in descendants(gateway.pid) if alive(pid)]
        assert len(ends) >= 4, "launcher, fork server, kernel and its child"
        os.kill(gateway.pid, signal.SIGKILL)
        with pytest.raises((OSError, HTTPException)):
            going.result(timeout=10)
    _wait_until_dead(ends)
    assert not list((gateway.state_dir / "s" / "seats").iterdir())


def test_what_a_gateway_and_its_launcher_leave_is_swept_at_the_next_start(
    start_gateway: Callable[..., GatewayProcess],
) -> None:
    gateway = start_gateway()
    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(gateway.execute, FORKING, 1)
        gateway.wait_for_line(1, "script started")
        family = descendants(gateway.pid)
        ends = [os.pidfd_open(pid) for pid in family if alive(pid)]
        launcher = next(pid for pid in family if "kernel_spec.launcher" in _command(pid))
        for pid in (gateway.pid, launcher):
            os.kill(pid, signal.SIGKILL)
        with pytest.raises((OSError, HTTPException)):
            going.result(timeout=10)
    left = {path.name for path in (gateway.state_dir / "s" / "seats").iterdir()}
    assert left, "nobody was there to remove the seats"
    again = start_gateway(STATE_DIR=str(gateway.state_dir / "s"))
    _wait_until_dead(ends)
    assert again.execute(SIMPLE, 2).status == 200
    assert not left & {path.name for path in (gateway.state_dir / "s" / "seats").iterdir()}


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def _wait_until_dead(pidfds: list[int]) -> None:
    for pidfd in pidfds:
        readable, _, _ = select.select([pidfd], [], [], 10)
        assert readable, "a process outlived its gateway"
        os.close(pidfd)


def test_two_hundred_jobs_leave_the_gateway_as_it_was(start_gateway: Callable[..., GatewayProcess]) -> None:
    gateway = start_gateway(READY_KERNELS="0")
    for number in range(5):
        assert gateway.execute(SIMPLE, number).status == 200
    before = _settled_footprint(gateway)
    assert before["seats"] == 1, "one kernel stands ready"
    for number in range(200):
        assert gateway.execute(SIMPLE, number).status == 200
    assert _settled_footprint(gateway) == before


def _footprint(gateway: GatewayProcess) -> dict[str, int]:
    proc = Path(f"/proc/{gateway.pid}")
    return {
        "descriptors": len(list((proc / "fd").iterdir())),
        "threads": len(list((proc / "task").iterdir())),
        "processes": len(descendants(gateway.pid)),
        "seats": len(list((gateway.state_dir / "s" / "seats").iterdir())),
        "jobs": len(list((gateway.state_dir / "s" / "jobs").iterdir())),
    }


def _settled_footprint(gateway: GatewayProcess) -> dict[str, int]:
    """Look until two looks agree: a kernel boots and sockets are closed for a moment after each answer."""
    last: dict[str, int] = {}
    for _ in range(40):
        found = _footprint(gateway)
        ready = gateway.request("GET", "/v1/status").body["ready_kernels"]
        if found == last and ready["starting"] == 0:
            return found
        last = found
        time.sleep(0.25)
    raise AssertionError(f"the gateway does not come to rest: {last}")
