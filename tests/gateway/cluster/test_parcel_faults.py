"""Hosts, members and disks that fail while a parcel is on its way: one right result, and nothing half is left."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.end_to_end.faults.test_full_disk import filled
from tests.gateway.cluster.gate import Gate
from tests.gateway.cluster.members import OUTPUT, ROWS, SLOW, cluster_of, in_background
from tests.gateway.cluster.test_parcels import ECHO, HOST, MANIFEST, TABLE, multipart, wait_until_empty
from tests.support.gateway_process import Answer, GatewayProcess
from tests.support.nats_server import NatsServer

#: Says which run of the job it is.
UNIQUE = "import os\nimport pandas as pd\ndef transform():\n    return pd.DataFrame({'run': [os.urandom(8).hex()]})\n"
NO_WAIT = {"Prefer": "respond-async"}


@pytest.fixture
def gate() -> Iterator[Gate]:
    with Gate() as opened:
        yield opened


def acceptor(nats_server: NatsServer, gate: Gate, **settings: str) -> GatewayProcess:
    own = {"SLOTS": "0", "PORT": str(gate.member_port), "CLUSTER_ADVERTISE_URL": gate.url}
    return GatewayProcess({**nats_server.settings("acceptor"), **own, **settings})


def host(stack: ExitStack, nats_server: NatsServer) -> GatewayProcess:
    settings = {**nats_server.settings("host"), "SLOTS": "1", "READY_KERNELS": "0"}
    return stack.enter_context(GatewayProcess(settings, launch=HOST))


def uploaded(gateway: GatewayProcess, request_id: str, code: str = ECHO) -> tuple[threading.Thread, list[Answer]]:
    answers: list[Answer] = []
    files = {"table:t": ("t.jsonl", TABLE), "manifest:t": ("m.json", MANIFEST)}
    request = {"code": code, "request_id": request_id, "timeout": 60}
    thread = threading.Thread(target=lambda: answers.append(multipart(gateway, request, files)))
    thread.start()
    return thread, answers


def wait_for_requests(gate: Gate, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(gate.asked) < count:
        assert time.monotonic() < deadline, gate.asked
        time.sleep(0.05)


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_a_host_is_killed_in_the_middle_of_a_parcel(
    stack: ExitStack, nats_server: NatsServer, gate: Gate, method: str
) -> None:
    gate.hold, gate.is_cut = (method, 0), True
    front = stack.enter_context(acceptor(nats_server, gate))
    first = host(stack, nats_server)
    thread, answers = uploaded(front, "job")
    assert gate.held.wait(60)
    host(stack, nats_server)
    first.kill()
    gate.release.set()
    thread.join(60)
    assert answers[0].status == 200, answers[0].raw
    assert front.request("GET", "/v1/results/job/output").raw == TABLE
    shown = [line["message"] for line in front.log("job")]
    assert sum("was lost: this job runs again (attempt 2)" in line for line in shown) == 1
    assert sum("Successfully saved 2 rows" in line for line in shown) == 1
    wait_until_empty(front.state_dir / "s/parcels")
    wait_until_empty(front.state_dir / "s/uploads")
    assert len(list((front.state_dir / "s/results").iterdir())) == 1


def test_a_half_upload_leaves_nothing(stack: ExitStack, nats_server: NatsServer, gate: Gate) -> None:
    gate.hold, gate.is_cut = ("PUT", 0), True
    front = stack.enter_context(acceptor(nats_server, gate))
    first = host(stack, nats_server)
    thread, answers = in_background(front, OUTPUT, "job", timeout=60)
    assert gate.held.wait(60)
    first.process.send_signal(signal.SIGSTOP)
    try:
        gate.release.set()
        deadline = time.monotonic() + 60
        while left := [path for path in (front.state_dir / "s/parcels").rglob("*") if path.is_file()]:
            assert time.monotonic() < deadline, left
            time.sleep(0.05)
    finally:
        first.process.send_signal(signal.SIGCONT)
    thread.join(60)
    assert answers[0].status == 200, answers[0].raw
    assert front.request("GET", "/v1/results/job/output").raw == ROWS


def test_what_a_frozen_host_sent_before_comes_too_late(stack: ExitStack, nats_server: NatsServer, gate: Gate) -> None:
    gate.hold = ("PUT", 0)
    front = stack.enter_context(acceptor(nats_server, gate))
    first = host(stack, nats_server)
    thread, answers = in_background(front, UNIQUE, "job", timeout=60)
    assert gate.held.wait(60)  # the whole output has left the host
    host(stack, nats_server)
    first.process.send_signal(signal.SIGSTOP)
    try:
        thread.join(60)
        assert answers[0].status == 200, answers[0].raw
        result = front.request("GET", "/v1/results/job/output").raw
        gate.release.set()
        wait_for_requests(gate, 3)
    finally:
        first.process.send_signal(signal.SIGCONT)
    assert [status for _, _, status in gate.asked] == [200, 200, 404]
    assert len(set(gate.paths("PUT"))) == 3  # each attempt has URLs of its own
    assert front.request("GET", "/v1/results/job/output").raw == result
    wait_until_empty(front.state_dir / "s/parcels")


def test_an_upload_between_two_attempts_is_refused_at_its_end(
    stack: ExitStack, nats_server: NatsServer, gate: Gate
) -> None:
    """The first attempt's upload ends while the second one runs: its file is not taken for the second one's."""
    gate.hold = ("PUT", 0)
    front = stack.enter_context(acceptor(nats_server, gate))
    first = host(stack, nats_server)
    thread, answers = in_background(front, SLOW.format(seconds=4), "job", timeout=60)
    assert gate.held.wait(60)
    host(stack, nats_server)
    first.process.send_signal(signal.SIGSTOP)
    try:
        deadline = time.monotonic() + 60
        while [line["message"] for line in front.log("job")].count("running") < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        gate.release.set()
        thread.join(60)
        wait_for_requests(gate, 3)
    finally:
        first.process.send_signal(signal.SIGCONT)
    assert answers[0].status == 200, answers[0].raw
    assert sorted(status for _, _, status in gate.asked) == [200, 200, 404]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_job_outlives_the_member_that_accepted_it(
    stack: ExitStack, nats_server: NatsServer, gate: Gate, number: signal.Signals
) -> None:
    front = stack.enter_context(acceptor(nats_server, gate, DRAIN_SECONDS="0"))
    host(stack, nats_server)
    body = {"code": SLOW.format(seconds=5), "request_id": "job", "timeout": 60}
    accepted = front.request("POST", "/v1/execute", body, headers=NO_WAIT)
    assert accepted.status == 202, accepted.raw
    front.wait_for_line("job", "running")
    front.process.send_signal(number)
    front.process.wait(60)
    state = str(front.state_dir / "s")
    again = stack.enter_context(GatewayProcess(front.settings | {"STATE_DIR": state}))
    job = again.wait_for_end(accepted.body["execution_id"])
    assert job["code"] == "ok", job
    assert again.request("GET", "/v1/results/job/output").raw == ROWS
    assert [line["message"] for line in again.log("job")].count("running") <= 1
    wait_until_empty(Path(state) / "parcels")


def test_an_output_beyond_the_limit_of_the_member_is_refused(
    stack: ExitStack, nats_server: NatsServer, gate: Gate
) -> None:
    front = stack.enter_context(acceptor(nats_server, gate, FILE_SIZE_LIMIT_BYTES="2000000"))
    runs = host(stack, nats_server)
    code = "import pandas as pd\ndef transform():\n    return pd.DataFrame({'x': ['a' * 3_000_000]})\n"
    answer = front.execute(code, "large")
    assert (answer.body["code"], answer.body["retryable"]) == ("output_upload_failed", False), answer.raw
    assert "413" in answer.body["error"]
    assert front.request("GET", "/v1/results/large/output").status == 404
    wait_until_empty(front.state_dir / "s/parcels")
    assert front.execute(OUTPUT, "small").status == 200
    tokens = {path.rpartition("/")[2] for _, path, _ in gate.asked}
    shown = "\n".join([*front.output, *runs.output, answer.raw.decode()])
    assert [token for token in tokens if token in shown] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk is a mount, which takes root")
def test_a_full_disk_delays_the_result(stack: ExitStack, nats_server: NatsServer, gate: Gate) -> None:
    disk = Path(tempfile.mkdtemp(prefix="tg-disk-", dir="/tmp"))
    stack.callback(disk.rmdir)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m,nr_inodes=3000,mode=755", "tmpfs", disk], check=True)
    stack.callback(subprocess.run, ["umount", "-l", disk], check=False)
    floor = {"STATE_DIR": str(disk / "s"), "MIN_FREE_DISK_BYTES": "20000000"}
    front = stack.enter_context(acceptor(nats_server, gate, **floor))
    host(stack, nats_server)
    gate.hold = ("GET", 0)
    thread, answers = uploaded(front, "job")
    assert gate.held.wait(60)
    with filled(disk, left_bytes=1_000_000):
        gate.release.set()
        deadline = time.monotonic() + 60
        while ("PUT", 503) not in [(method, status) for method, _, status in gate.asked]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    thread.join(60)
    assert answers[0].status == 200, answers[0].raw
    assert front.request("GET", "/v1/results/job/output").raw == TABLE


def test_large_code_waits_for_a_member_that_starts_again(stack: ExitStack, nats_server: NatsServer, gate: Gate) -> None:
    front = stack.enter_context(acceptor(nats_server, gate))
    body = {"code": f"x = '{'a' * 1_200_000}'\n{OUTPUT}", "request_id": "job", "timeout": 60}
    accepted = front.request("POST", "/v1/execute", body, headers=NO_WAIT)
    assert accepted.status == 202, accepted.raw
    deadline = time.monotonic() + 60
    while cluster_of(front)["members"][0]["waiting"] != 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    front.kill()
    runs = host(stack, nats_server)
    again = stack.enter_context(GatewayProcess(front.settings | {"STATE_DIR": str(front.state_dir / "s")}))
    job = again.wait_for_end(accepted.body["execution_id"])
    assert job["code"] == "ok", "\n".join(runs.output[-20:])
    assert again.request("GET", "/v1/results/job/output").raw == ROWS
