"""The gateway starts, refuses, drains and dies without leaving anything."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import pytest

from gateway.storage.embedded_s3.sigv4 import Signer
from tests.support.gateway_process import GatewayProcess, alive, command_of, descendants, gateway_command
from tests.support.ports import free_port

SIMPLE = "import pandas as pd\ndef transform():\n    return pd.DataFrame({'x': [1]})"
SLOW = (
    "import time\nimport pandas as pd\n"
    "def transform():\n"
    "    print('script started')\n"
    "    time.sleep({seconds})\n"
    "    return pd.DataFrame({{'x': [1]}})"
)

SLOW_WITH_NETWORK = (
    "import socket, time\nimport pandas as pd\n"
    "def transform():\n"
    "    print('script started')\n"
    "    time.sleep(2)\n"
    "    socket.socket(socket.AF_INET, socket.SOCK_STREAM).close()\n"  # which another process makes for the job
    "    return pd.DataFrame({'x': [1]})"
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

LOSES_ITS_JOBS = pytest.mark.one_machine("in a cluster the jobs of a lost machine run again (test_faults_of_hosts.py)")
LOSES_ITS_CALLER = pytest.mark.one_machine("in a cluster the caller is connected to another member, which goes on")


def test_listening_beyond_loopback_without_a_token_is_refused(tmp_path: Path) -> None:
    done = gateway_command(HOST="0.0.0.0", STATE_DIR=str(tmp_path))
    assert done.returncode == 2
    assert "AUTH_TOKEN" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_in_use_says_which_setting_to_change() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        tempfile.TemporaryDirectory(prefix="tg-", dir="/tmp") as directory,
    ):
        Path(directory).chmod(0o755)  # the gateway drops root before it uses it
        done = gateway_command(PORT=str(taken.getsockname()[1]), STATE_DIR=f"{directory}/s")
    assert done.returncode == 2
    assert "PORT" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.one_machine("the hosts of a cluster are looked for on 127.0.0.1")
@pytest.mark.parametrize(("host", "shown"), [("", "[::]"), ("::1", "[::1]"), ("127.0.0.2", "127.0.0.2")])
def test_the_log_has_the_address_as_in_a_url(
    host: str, shown: str, start_gateway: Callable[..., GatewayProcess]
) -> None:
    if ":" in host and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    gateway = start_gateway(HOST=host, READY_KERNELS="0")
    assert gateway.url == f"http://{shown}:{gateway.port}"


def test_a_wrong_environment_variable_is_named(tmp_path: Path) -> None:
    done = gateway_command(SLOTS="many", STATE_DIR=str(tmp_path))
    assert done.returncode == 2
    assert "SLOTS" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("victim", "number", "status"), [("launcher", signal.SIGKILL, 1), ("gateway", signal.SIGINT, 130)]
)
def test_a_start_that_is_cut_off_is_not_a_refused_setting(victim: str, number: int, status: int) -> None:
    """A service is not started again after the status of a refused setting, and the launcher may die of a full memory."""
    with tempfile.TemporaryDirectory(prefix="tg-", dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        environment = {"PATH": os.environ["PATH"], "STATE_DIR": f"{directory}/s", "PORT": "0"}
        with subprocess.Popen(
            [sys.executable, "-m", "gateway"],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
        ) as starting:
            deadline = time.monotonic() + 60
            launchers: list[int] = []
            while not launchers and time.monotonic() < deadline:
                launchers = [pid for pid in descendants(starting.pid) if b"kernel_spec.launcher" in command_of(pid)]
            os.kill(min(launchers) if victim == "launcher" else starting.pid, number)
            _, told = starting.communicate(timeout=60)
    assert (starting.returncode, "Traceback" in told) == (status, False), told


def test_sigterm_lets_a_running_job_end(start_gateway: Callable[..., GatewayProcess]) -> None:
    gateway = start_gateway(DRAIN_SECONDS="20")
    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(gateway.execute, SLOW.format(seconds=2), 1)
        gateway.wait_for_line(1, "script started")
        family = descendants(gateway.pid)
        assert gateway.stop(signal.SIGTERM) == 0
        assert going.result(timeout=60).status == 200
    assert not [pid for pid in family if alive(pid)]


def test_a_broken_configuration_file_starts_nothing(tmp_path: Path) -> None:
    """Without the file the gateway would serve without its token."""
    (tmp_path / "c.py").write_text("c.TransformGatewayApp.auth_token = 'secret'\nc.TransformGatewayApp.slots == = 2\n")
    done = gateway_command(f"--config={tmp_path / 'c.py'}", STATE_DIR=str(tmp_path / "s"))
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"transform-gateway: the configuration file {tmp_path / 'c.py'}, line 2, is not valid"
    )
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "s").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only a gateway that drops root becomes another user")
def test_a_state_directory_that_the_gateway_cannot_enter_is_named() -> None:
    with tempfile.TemporaryDirectory(prefix="tg-", dir="/tmp") as closed:  # short: sockets would live below it
        done = gateway_command(STATE_DIR=f"{closed}/s")
    assert done.returncode == 2
    assert "cannot enter" in done.stderr
    assert "chmod 755" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.one_machine("the store that is looked into is that of the member that accepted the job")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_all_processes_of_the_service_drains(
    start_gateway: Callable[..., GatewayProcess], number: signal.Signals
) -> None:
    """Do what systemd does by default when it stops a service: jobs end, are delivered, or wait for the next start."""
    port = free_port()
    bucket = "metabase-python-runner"
    output_url = Signer(f"http://127.0.0.1:{port}", "test", "test", "us-east-1").url("PUT", f"/{bucket}/output")
    gateway = start_gateway(
        DRAIN_SECONDS="20", ALLOW_NETWORK="true", ENABLE_INTERNAL_S3="true", INTERNAL_S3_PORT=str(port)
    )
    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(gateway.execute, SLOW_WITH_NETWORK, 1, output_url=output_url)
        gateway.wait_for_line(1, "script started", 60)
        waiting = {"code": SIMPLE, "request_id": "waiting"}
        answer = gateway.request("POST", "/v1/execute", waiting, headers={"Prefer": "respond-async"})
        assert answer.status == 202
        family = descendants(gateway.pid)
        servers = [pid for pid in family if b"rclone" in command_of(pid)]
        for pid in (*family, gateway.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        assert servers
        with socket.create_connection(("127.0.0.1", port), timeout=60) as storage:
            storage.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert storage.recv(100).startswith(b"HTTP/1.0 ")
        assert all(map(alive, servers)) or going.done()
        assert going.result(timeout=60).status == 200
        assert gateway.process.wait(60) == 0
    state_dir = gateway.state_dir / "s"
    assert (state_dir / "s3" / "objects" / bucket / "output").stat().st_size > 0
    with contextlib.closing(sqlite3.connect(state_dir / "store" / "jobs.db")) as store:
        left = store.execute("SELECT job_id, state, attempts FROM jobs WHERE state != 'finished'").fetchall()
    assert left == [(answer.body["execution_id"], "queued", 0)]
    assert not [pid for pid in family if alive(pid)]


@LOSES_ITS_JOBS
def test_a_launcher_that_dies_is_started_again(start_gateway: Callable[..., GatewayProcess]) -> None:
    gateway = start_gateway(SLOTS="2")
    job = {"code": SLOW.format(seconds=2), "request_id": "async"}
    job_id = gateway.request("POST", "/v1/execute", job, headers={"Prefer": "respond-async"}).body["execution_id"]
    with ThreadPoolExecutor(3) as pool:
        running = pool.submit(gateway.execute, SLOW.format(seconds=60), "waited", timeout=100)
        for name in ("waited", "async"):
            gateway.wait_for_line(name, "script started")
        queued = pool.submit(gateway.execute, SIMPLE, "queued")
        _wait_until(lambda: gateway.request("GET", "/v1/status").body["queue_size"] == 1)
        family = descendants(_launcher_of(gateway))
        os.kill(_launcher_of(gateway), signal.SIGKILL)
        answer = running.result(timeout=60)
        assert (answer.status, answer.body["code"], answer.body["retryable"]) == (503, "launcher_lost", True)
        answer = queued.result(timeout=60)
        assert answer.status == 200, answer.body
    ended = gateway.wait_for_end(job_id)
    assert (ended["code"], ended["attempts"]) == ("ok", 2)
    assert "The launcher of kernels ended, and the job's kernel with it: this job runs again (attempt 2 of 2)" in [
        event["message"] for event in gateway.log("async")
    ]
    status = gateway.request("GET", "/v1/status").body
    assert status["healthy"]
    assert status["launcher"] == {"up": True, "restarts": 1}
    _wait_until(lambda: not [pid for pid in family if alive(pid)])
    held = len(list((gateway.state_dir / "s" / "workspaces").iterdir()))
    assert held <= status["ready_kernels"]["ready"] + status["ready_kernels"]["starting"] + 2, "old workspaces are left"
    family = descendants(gateway.pid)
    assert gateway.stop(signal.SIGTERM) == 0
    assert not [pid for pid in family if alive(pid)]


@LOSES_ITS_JOBS
def test_a_launcher_without_its_supervisor_ends_the_gateway_with_its_end(
    start_gateway: Callable[..., GatewayProcess],
) -> None:
    gateway = start_gateway()
    supervisor = next(pid for pid in descendants(gateway.pid) if b"kernel_spec.supervisor" in command_of(pid))
    launcher, family = _launcher_of(gateway), descendants(gateway.pid)
    os.kill(supervisor, signal.SIGKILL)
    _wait_for_output(gateway, "supervisor has ended")
    assert gateway.execute(SIMPLE).status == 200
    with ThreadPoolExecutor(2) as pool:
        going = [pool.submit(gateway.execute, SLOW.format(seconds=60), 1, timeout=100)]
        gateway.wait_for_line(1, "script started")
        going.append(pool.submit(gateway.execute, SIMPLE, 2))
        _wait_until(lambda: gateway.request("GET", "/v1/status").body["queue_size"] == 1)
        os.kill(launcher, signal.SIGKILL)
        answers = [future.result(timeout=60) for future in going]
        assert gateway.process.wait(60) == 1
    assert {(answer.status, answer.body["retryable"]) for answer in answers} == {(503, True)}
    _wait_until(lambda: not [pid for pid in family if alive(pid)])


@LOSES_ITS_JOBS
def test_job_that_ends_in_time_while_the_gateway_is_paused_has_a_result(
    start_gateway: Callable[..., GatewayProcess],
) -> None:
    gateway = start_gateway()
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(gateway.execute, SLOW.format(seconds=1), "paused", timeout=3)
        gateway.wait_for_line("paused", "script started")
        gateway.process.send_signal(signal.SIGSTOP)
        try:
            _wait_until(lambda: list((gateway.state_dir / "s" / "workspaces").glob("*/out/result.json")))
            time.sleep(3)  # the timeout: by the gateway's clock the job's time is over
        finally:
            gateway.process.send_signal(signal.SIGCONT)
        answer = slow.result()
    assert answer.body["exit_code"] == 0, answer.raw


@LOSES_ITS_JOBS
def test_second_interrupt_ends_the_jobs_that_run(start_gateway: Callable[..., GatewayProcess]) -> None:
    gateway = start_gateway(DRAIN_SECONDS="100")
    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(gateway.execute, SLOW.format(seconds=60), 1, timeout=100)
        gateway.wait_for_line(1, "script started")
        os.kill(gateway.pid, signal.SIGINT)
        _wait_for_output(gateway, "stopping: no new jobs")
        assert not going.done()
        assert gateway.stop(signal.SIGINT) == 0
        answer = going.result(timeout=60)
    assert (answer.status, answer.body["code"]) == (503, "shutting_down")


def test_processes_that_a_job_forks_still_end_by_sigterm(running_gateway: GatewayProcess) -> None:
    code = (
        "import multiprocessing, os, signal, subprocess, time\nimport pandas as pd\n"
        "def transform():\n"
        "    forked = multiprocessing.get_context('fork').Process(target=time.sleep, args=(100,))\n"
        "    started = subprocess.Popen(['sleep', '100'])\n"
        "    forked.start()\n"
        "    forked.terminate()\n"
        "    started.terminate()\n"
        "    forked.join(60)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return pd.DataFrame({'code': [forked.exitcode, started.wait(60)]})"
    )
    answer = running_gateway.execute(code, inline=True)
    assert answer.status == 200, answer.body
    assert answer.body["output"].split() == ['{"code":-15}', '{"code":-15}'], answer.body


def test_sigterm_ends_a_stream(start_gateway: Callable[..., GatewayProcess]) -> None:
    gateway = start_gateway()
    watching = HTTPConnection("127.0.0.1", gateway.port, timeout=60)
    watching.request("GET", "/v1/stream", headers={"Authorization": f"Bearer {gateway.token}"})
    answer = watching.getresponse()
    assert answer.readline() == b"event: snapshot\n"
    assert gateway.stop(signal.SIGTERM) == 0
    answer.read()  # with the chunk that ends it, or http.client raises IncompleteRead
    watching.close()


def test_sigterm_answers_a_job_that_outlives_the_grace(start_gateway: Callable[..., GatewayProcess]) -> None:
    gateway = start_gateway(DRAIN_SECONDS="0.5")
    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(gateway.execute, SLOW.format(seconds=60), 1)
        gateway.wait_for_line(1, "script started")
        assert gateway.stop(signal.SIGTERM) == 0
        answer = going.result(timeout=60)
    assert (answer.status, answer.body["code"]) == (503, "shutting_down")


@LOSES_ITS_CALLER
def test_sigkill_of_the_gateway_leaves_no_process_and_no_workspace(
    start_gateway: Callable[..., GatewayProcess],
) -> None:
    gateway = start_gateway()
    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(gateway.execute, FORKING, 1)
        gateway.wait_for_line(1, "script started")
        ends = [os.pidfd_open(pid) for pid in descendants(gateway.pid) if alive(pid)]
        assert len(ends) >= 4, "launcher, fork server, kernel and its child"
        os.kill(gateway.pid, signal.SIGKILL)
        with pytest.raises((OSError, HTTPException)):
            going.result(timeout=60)
    _wait_until_dead(ends)
    assert not list((gateway.state_dir / "s" / "workspaces").iterdir())


@LOSES_ITS_CALLER
def test_leftovers_of_a_killed_gateway_are_swept_at_the_next_start(
    start_gateway: Callable[..., GatewayProcess],
) -> None:
    gateway = start_gateway()
    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(gateway.execute, FORKING, 1)
        gateway.wait_for_line(1, "script started")
        family = descendants(gateway.pid)
        ends = [os.pidfd_open(pid) for pid in family if alive(pid)]
        # neither this launcher removes anything nor another one, which the supervisor starts while the gateway lives
        launcher = _launcher_of(gateway)
        os.kill(launcher, signal.SIGSTOP)
        gateway.kill()
        os.kill(launcher, signal.SIGKILL)
        with pytest.raises((OSError, HTTPException)):
            going.result(timeout=60)
    left = {path.name for path in (gateway.state_dir / "s" / "workspaces").iterdir()}
    assert left, "nobody was there to remove the workspaces"
    again = start_gateway(STATE_DIR=str(gateway.state_dir / "s"))
    _wait_until_dead(ends)
    assert again.execute(SIMPLE, 2).status == 200
    assert not left & {path.name for path in (gateway.state_dir / "s" / "workspaces").iterdir()}


def _wait_for_output(gateway: GatewayProcess, text: str) -> None:
    _wait_until(lambda: any(text in line for line in gateway.output))


def _wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _launcher_of(gateway: GatewayProcess) -> int:
    return next(pid for pid in descendants(gateway.pid) if b"kernel_spec.launcher" in command_of(pid))


def _wait_until_dead(pidfds: list[int]) -> None:
    for pidfd in pidfds:
        readable, _, _ = select.select([pidfd], [], [], 60)
        assert readable, "a process outlived its gateway"
        os.close(pidfd)


@pytest.mark.parametrize("jobs", [20, pytest.param(200, marks=pytest.mark.soak)])
def test_jobs_leave_the_gateway_as_it_was(start_gateway: Callable[..., GatewayProcess], jobs: int) -> None:
    gateway = start_gateway(READY_KERNELS="0")
    for number in range(5):
        assert gateway.execute(SIMPLE, number).status == 200
    before = _settled_footprint(gateway)
    for number in range(jobs):
        assert gateway.execute(SIMPLE, number).status == 200
    assert _settled_footprint(gateway, before) == before


def _footprint(gateway: GatewayProcess) -> dict[str, int]:
    proc = Path(f"/proc/{gateway.pid}")
    return {
        "descriptors": _open_descriptors(gateway),
        "threads": len(list((proc / "task").iterdir())),
        "processes": len(descendants(gateway.pid)),
        "workspaces": len(list((gateway.state_dir / "s" / "workspaces").iterdir())),
        "jobs": len(list((gateway.state_dir / "s" / "jobs").iterdir())),
    }


def _open_descriptors(gateway: GatewayProcess) -> int:
    """Return the number that the gateway tells, because Linux shows its descriptors to root alone."""
    metrics = gateway.request("GET", "/metrics").raw.decode().splitlines()
    return int(float(next(line.split()[1] for line in metrics if line.startswith("process_open_fds "))))


def _settled_footprint(gateway: GatewayProcess, expected: dict[str, int] | None = None) -> dict[str, int]:
    """Look until one kernel stands ready, and two looks agree or one is as expected.

    A kernel boots and sockets are closed for a moment after each answer.
    """
    last: dict[str, int] = {}
    for _ in range(240):
        found = _footprint(gateway)
        ready = gateway.request("GET", "/v1/status").body["ready_kernels"]
        if found == (last if expected is None else expected) and (ready["starting"], found["workspaces"]) == (0, 1):
            return found
        last = found
        time.sleep(0.25)
    assert expected is not None, f"the gateway does not come to rest: {last}"
    return last
