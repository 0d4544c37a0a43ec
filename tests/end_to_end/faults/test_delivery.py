"""A real gateway and its storage on bad days: outages, tables that drip, results that cannot be kept."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from kernel_spec.launcher.user_leases import FIRST_WORKSPACE_UID, LAST_WORKSPACE_UID
from tests.gateway.storage.faulty_server import Conversation, FaultyServer, answer, stall
from tests.support.gateway_process import GatewayProcess
from tests.support.ports import free_port

SIMPLE = "import pandas as pd\ndef transform():\n    return pd.DataFrame({'x': [1, 2]})"
READS = "def transform(orders):\n    return orders"
LARGE = "import pandas as pd\ndef transform():\n    return pd.DataFrame({'x': ['x' * 1000] * 2000})"


@pytest.fixture(scope="module")
def gateway(gateway_type: type[GatewayProcess]) -> Iterator[GatewayProcess]:
    """One gateway with one slot, which keeps no large result."""
    with gateway_type({"SLOTS": "1", "RESULT_KEEP_BYTES": "1000000"}) as process:
        yield process


def outbox(gateway: GatewayProcess) -> dict[str, float]:
    found: dict[str, float] = gateway.request("GET", "/v1/status").body["outbox"]
    return found


def test_output_waits_for_the_storage_while_other_jobs_run(gateway: GatewayProcess) -> None:
    port = free_port()
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(gateway.execute, SIMPLE, "waits", output_url=f"http://127.0.0.1:{port}/output")
        deadline = time.monotonic() + 60
        while outbox(gateway)["retries"] < 4:  # more attempts than a fetch has: they took 3 s
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for number in range(10):  # more than there are workspaces
            assert gateway.execute(SIMPLE, f"meanwhile-{number}").status == 200
        state = outbox(gateway)
        assert (state["jobs"], state["bytes"]) == (1, len(b'{"x":1}\n{"x":2}\n'))
        assert state["oldest_seconds"] > 0
        (entry,) = (gateway.state_dir / "s" / "outbox").iterdir()
        assert entry.stat().st_mode & 0o777 == 0o600
        with FaultyServer([answer(200)], port=port) as storage:
            delivered = waiting.result(60)
        assert delivered.status == 200
        assert "sha256" not in delivered.body  # of an uploaded output nobody asks for it
        assert storage.received[-1].body == b'{"x":1}\n{"x":2}\n'
    while outbox(gateway)["jobs"]:
        time.sleep(0.01)
    assert list((gateway.state_dir / "s" / "outbox").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_computed_output_is_delivered_by_the_next_process_and_not_computed_again(
    start_gateway: Callable[..., GatewayProcess], number: signal.Signals
) -> None:
    gateway = start_gateway(DRAIN_SECONDS="0")
    port = free_port()
    script = "import time, pandas as pd\ndef transform():\n    print('once')\n    return pd.DataFrame({'x': [time.time_ns()]})"
    urls = {name: f"http://127.0.0.1:{port}/{name}" for name in ("output_url", "output_manifest_url", "events_url")}
    request = {"code": script, "request_id": "computed", **urls}
    job_id = gateway.request("POST", "/v1/execute", request, headers={"Prefer": "respond-async"}).body["execution_id"]
    deadline = time.monotonic() + 60
    while not outbox(gateway)["retries"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    state_dir = gateway.state_dir / "s"
    note = (state_dir / "outbox" / f"{job_id}.small").read_bytes()
    assert b"127.0.0.1" not in note
    computed = base64.b64decode(json.loads(note)["output"])
    (state_dir / "outbox" / "of-a-job-that-is-not-known").mkdir()
    gateway.process.send_signal(number)
    gateway.process.wait(60)
    again = start_gateway(STATE_DIR=str(state_dir))
    with FaultyServer([answer(200, headers="Connection: close\r\n")], port=port) as storage:
        assert again.wait_for_end(job_id)["code"] == "ok"
    received = {request.target: request.body for request in storage.received}
    assert received["/output_url"] == computed
    assert b'"x"' in received["/output_manifest_url"]
    assert received["/events_url"].count(b'"once"') == 1
    assert b"was computed before the restart" in received["/events_url"]
    while outbox(again)["jobs"]:
        time.sleep(0.01)
    assert list((state_dir / "outbox").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="without root all workspaces have the gateway's own user")
def test_large_output_is_delivered_by_a_process_with_other_groups(
    start_gateway: Callable[..., GatewayProcess],
) -> None:
    # with the network, and with its attempts used up: it must not run again, and need not
    settings = {"ALLOW_NETWORK": "true", "MAX_ATTEMPTS": "1", "DRAIN_SECONDS": "0"}
    gateway = start_gateway(**settings)
    port = free_port()
    request = {"code": LARGE, "request_id": "large", "output_url": f"http://127.0.0.1:{port}/output"}
    job_id = gateway.request("POST", "/v1/execute", request, headers={"Prefer": "respond-async"}).body["execution_id"]
    deadline = time.monotonic() + 60
    while not outbox(gateway)["retries"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    gateway.kill()
    output = gateway.state_dir / "s" / "outbox" / job_id / "output"
    assert FIRST_WORKSPACE_UID <= output.stat().st_uid <= LAST_WORKSPACE_UID
    os.chown(output, LAST_WORKSPACE_UID, LAST_WORKSPACE_UID)
    again = start_gateway(STATE_DIR=str(gateway.state_dir / "s"), **settings)
    with FaultyServer([answer(200)], port=port) as storage:
        job = again.wait_for_end(job_id)
    assert job["code"] == "ok", job
    assert len(storage.received[-1].body) > 2_000_000


def test_number_of_jobs_that_wait_for_the_storage_is_bounded(start_gateway: Callable[..., GatewayProcess]) -> None:
    gateway = start_gateway(MAX_DELIVERIES="2")
    port = free_port()
    request = {"code": SIMPLE, "output_url": f"http://127.0.0.1:{port}/output"}
    waiting = []
    for number in range(2):
        answered = gateway.request(
            "POST", "/v1/execute", request | {"request_id": number}, headers={"Prefer": "respond-async"}
        )
        waiting.append(answered.body["execution_id"])
    deadline = time.monotonic() + 60
    while outbox(gateway)["jobs"] < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    refused = gateway.execute(SIMPLE, "too-many", output_url=request["output_url"])
    assert (refused.status, refused.body["code"], refused.body["retryable"]) == (503, "storage_down", True)
    assert "2 jobs wait for the storage" in refused.body["error"]
    assert int(refused.headers["Retry-After"]) > 0
    assert gateway.execute(SIMPLE, "needs-no-storage").status == 200
    with FaultyServer([answer(200)], port=port):
        assert [gateway.wait_for_end(job_id)["code"] for job_id in waiting] == ["ok", "ok"]
        assert gateway.execute(SIMPLE, "too-many", output_url=request["output_url"]).status == 200


def test_cancel_ends_a_delivery_that_waits_for_the_storage(gateway: GatewayProcess) -> None:
    begun = threading.Event()

    def hang(conversation: Conversation) -> None:
        begun.set()
        conversation.wait_for_close()

    with FaultyServer([hang]) as storage, ThreadPoolExecutor() as pool:
        waiting = pool.submit(gateway.execute, SIMPLE, "cancelled-late", output_url=storage.url())
        assert begun.wait(60)
        assert gateway.request("POST", "/v1/cancel", {"request_id": "cancelled-late"}).status == 200
        found = waiting.result(60)
    assert (found.body["code"], found.body["cancelled"]) == ("cancelled", True)


def test_timeout_bounds_the_fetch_and_names_the_table(gateway: GatewayProcess) -> None:
    with FaultyServer([stall(b'{"n":1}\n')]) as storage:
        found = gateway.execute(READS, "slow-table", timeout=1, table_mapping={"orders": storage.url()})
    assert (found.status, found.body["code"], found.body["timeout"]) == (500, "timeout", True)
    assert found.body["error"].endswith("its limit of 1 s; table 'orders' was still being fetched")
    assert gateway.log("slow-table")[-1]["message"] == f"ERROR: {found.body['error']}"


def test_timeout_counts_the_fetch_and_the_run_together(gateway: GatewayProcess) -> None:
    def answer_late(conversation: Conversation) -> None:
        time.sleep(3)
        conversation.send(200, b'{"n":1}\n')

    script = "import time\ndef transform(orders):\n    time.sleep(4)\n    return orders"
    with FaultyServer([answer_late]) as storage:
        found = gateway.execute(script, "both", timeout=6, table_mapping={"orders": storage.url()})
    assert found.body["code"] == "timeout"
    assert found.body["error"].endswith("; transform() was running")


def test_result_that_cannot_be_kept_is_a_failure(gateway: GatewayProcess) -> None:
    found = gateway.execute(LARGE, "large")
    assert (found.status, found.body["code"], found.body["retryable"]) == (500, "result_not_kept", False)
    assert "RESULT_KEEP_BYTES" in gateway.log("large")[-1]["message"]
    assert gateway.request("GET", "/v1/results/large/output").status == 404


def test_directory_that_cannot_be_used_is_no_fault_of_the_job(start_gateway: Callable[..., GatewayProcess]) -> None:
    gateway = start_gateway()
    for name in ("jobs", "results", "outbox"):
        directory = gateway.state_dir / "s" / name
        moved = directory.rename(gateway.state_dir / "moved")
        directory.write_bytes(b"")  # no directory can be made here, whoever asks
        found = gateway.execute(SIMPLE, f"no-{name}")
        assert (found.status, found.body["code"], found.body["retryable"]) == (503, "store_failed", True)
        assert f"{name} in STATE_DIR cannot be written" in found.body["error"]
        directory.unlink()
        moved.rename(directory)
        assert gateway.execute(SIMPLE, f"has-{name}").status == 200
    shutil.rmtree(gateway.state_dir / "s" / "results")
    assert gateway.stop() == 0
    assert not [line for line in gateway.output if "Traceback" in line]
