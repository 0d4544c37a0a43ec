"""Members of a cluster as processes: real gateways, a real NATS server, a real S3 server that counts uploads."""

from __future__ import annotations

import json
import shutil
import socket
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from gateway.process.privileges import gateway_user
from tests.gateway.cluster.faults.site import state_of
from tests.gateway.cluster.members import (
    OUTPUT,
    ROWS,
    SLOW,
    cluster_of,
    in_background,
    members,
    urls,
)
from tests.support.gateway_process import GatewayProcess, gateway_command
from tests.support.nats_server import NatsServer
from tests.support.s3 import S3Server

#: tries to reach the broker, and to read what a member shows it
ATTACK = """
import json, os, socket
import pandas as pd

def tried(action):
    try:
        action()
    except OSError as error:
        return type(error).__name__
    return "worked"

def transform():
    seen = {address: tried(lambda: socket.create_connection((address, PORT), 5)) for address in ADDRESSES}
    seen |= {file: tried(lambda: open(file).read()) for file in FILES}
    seen["environment"] = [name for name in os.environ if "CLUSTER" in name]
    return pd.DataFrame({"seen": [json.dumps(seen)]})
"""


def test_a_job_is_answered_and_its_results_are_in_the_storage(pair: list[GatewayProcess], storage: S3Server) -> None:
    one, two = pair
    for number, gateway in enumerate((one, two, one)):
        prefix = storage.new_prefix()
        answer = gateway.execute(f"print('hello {number}')\n{OUTPUT}", number, **urls(storage, prefix))
        assert answer.status == 200, answer.raw
        assert storage.get(f"{prefix}/output") == ROWS
        assert storage.get(f"{prefix}/manifest") is not None
        shown = [line["message"] for line in gateway.log(number)]
        assert f"hello {number}" in shown
        uploaded = (storage.get(f"{prefix}/events") or b"").decode().splitlines()
        assert [json.loads(line)["message"] for line in uploaded] == shown


def test_jobs_of_one_member_run_on_both(pair: list[GatewayProcess], storage: S3Server) -> None:
    one, other = pair
    code = SLOW.format(seconds=50)
    calls = [in_background(one, code, n, timeout=60, **urls(storage, storage.new_prefix())) for n in (21, 22)]
    for number in (21, 22):  # each member has one slot, and neither job ends by itself
        one.wait_for_line(number, "running")
    names = {cluster_of(each)["member"] for each in pair}
    running = {job["request_id"]: job for job in one.request("GET", "/v1/jobs?state=running").body["jobs"]}
    assert {job["host"] for job in running.values()} == names
    for number in (21, 22):
        assert one.request("POST", "/v1/cancel", {"request_id": number}).status == 200
    for thread, answers in calls:
        thread.join(60)
        assert answers[0].body["code"] == "cancelled"
    for job in running.values():  # also when another member is asked
        ended = other.request("GET", f"/v1/jobs/{job['job_id']}").body
        assert (ended["state"], ended["host"], ended["member"]) == ("finished", job["host"], job["member"])


def test_a_job_reaches_neither_the_broker_nor_the_key(pair: list[GatewayProcess], storage: S3Server) -> None:
    settings = pair[0].settings
    port = int(settings["CLUSTER_URL"].rpartition(":")[2])
    addresses = ["127.0.0.1", "localhost", "::1", socket.gethostname(), "0.0.0.0"]
    socket.create_connection(("127.0.0.1", port), 60).close()  # it is there
    key = settings["CLUSTER_TLS_KEY_FILE"]
    facts = f"PORT, ADDRESSES, FILES = {port}, {addresses}, {[key, '/proc/1/environ']}"
    for gateway in pair:
        prefix = storage.new_prefix()
        answer = gateway.execute(facts + ATTACK, "attack", **urls(storage, prefix))
        assert answer.status == 200, answer.raw
        seen = json.loads(json.loads(storage.get(f"{prefix}/output") or b"{}")["seen"])
        assert seen.pop("environment") == []
        assert "worked" not in seen.values(), seen


def test_a_held_kernel_names_its_host(pair: list[GatewayProcess], storage: S3Server) -> None:
    code = "def transform():\n    raise ValueError('no')\n"
    answer = pair[0].execute(code, "held", hold_minutes=1, **urls(storage, storage.new_prefix()))
    assert answer.body["code"] == "user_error", answer.raw
    held = answer.body["held"]
    host = next(each for each in pair if cluster_of(each)["member"] == held["host"])
    assert host.request("POST", "/v1/release", {"id": held["id"]}).status == 200


def test_a_job_is_cancelled_on_its_host(pair: list[GatewayProcess], storage: S3Server) -> None:
    one, two = pair
    blocker, _ = in_background(one, SLOW.format(seconds=50), "blocker", timeout=60)
    one.wait_for_line("blocker", "running")
    thread, answers = in_background(
        one, SLOW.format(seconds=50), "job", timeout=60, **urls(storage, storage.new_prefix())
    )
    one.wait_for_line("job", "running")
    waiting, waited = in_background(one, OUTPUT, "queued", **urls(storage, storage.new_prefix()))
    deadline = time.monotonic() + 60
    while one.request("GET", "/v1/status?request_id=queued").status != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for request_id in ("queued", "job", "blocker"):
        assert one.request("POST", "/v1/cancel", {"request_id": request_id}).status == 200
    for each in (waiting, thread, blocker):
        each.join(60)
    assert answers[0].body["code"] == waited[0].body["code"] == "cancelled"
    assert two.execute(OUTPUT, "after", **urls(storage, storage.new_prefix())).status == 200


def test_one_request_id_is_one_job_in_the_cluster(pair: list[GatewayProcess], storage: S3Server) -> None:
    one, two = pair
    thread, answers = in_background(
        one, SLOW.format(seconds=50), "same", timeout=60, **urls(storage, storage.new_prefix())
    )
    one.wait_for_line("same", "running")
    refused = two.execute(OUTPUT, "same", **urls(storage, storage.new_prefix()))
    assert refused.status == 409, refused.raw
    assert "is in the cluster, accepted by member" in refused.body["error"]
    assert one.request("POST", "/v1/cancel", {"request_id": "same"}).status == 200
    thread.join(60)
    assert answers[0].body["code"] == "cancelled"
    # free again as soon as the caller knows of the end
    assert two.execute(OUTPUT, "same", **urls(storage, storage.new_prefix())).status == 200


def test_without_the_broker_nothing_is_accepted(stack: ExitStack, nats_server: NatsServer, storage: S3Server) -> None:
    (one,) = members(stack, nats_server, 1)
    nats_server.kill()
    refused = one.execute(OUTPUT, "job", **urls(storage, storage.new_prefix()))
    assert (refused.status, refused.body["code"], refused.body["retryable"]) == (503, "broker_down", True)


def test_a_job_whose_result_is_kept_runs_where_it_was_accepted(pair: list[GatewayProcess]) -> None:
    for gateway in pair:
        answer = gateway.execute(OUTPUT, "kept")
        assert answer.status == 200, answer.raw
        assert gateway.request("GET", "/v1/results/kept/output").raw == ROWS
        newest = gateway.request("GET", "/v1/jobs?limit=1").body["jobs"][0]
        assert newest["host"] == newest["member"] == cluster_of(gateway)["member"]


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("nats://10.0.0.7:4222", "refusing nats:// to 10.0.0.7, where jobs"),
        ("http://127.0.0.1", "is not nats://HOST:PORT or tls://HOST:PORT"),
        ("tls://", "is not nats://HOST:PORT or tls://HOST:PORT"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_in_one_line(url: str, text: str, tmp_path_factory: Any) -> None:
    state = tmp_path_factory.mktemp("tg")
    ended = gateway_command("--port=0", CLUSTER_URL=url, STATE_DIR=str(state))
    assert ended.returncode == 2, ended.stderr
    assert text in ended.stderr.splitlines()[-1]


def test_a_gateway_on_a_copy_of_a_state_directory_does_not_start(pair: list[GatewayProcess]) -> None:
    """The others would ask either of the two about the jobs of the other one, and hear that there is none."""
    one, _ = pair
    with TemporaryDirectory(dir="/tmp") as directory:  # the gateway's user must reach it
        copy = Path(directory) / "state"
        shutil.copytree(Path(state_of(one)) / "store", copy / "store")
        for path in (Path(directory), copy, *copy.rglob("*")):
            shutil.chown(path, gateway_user().uid, gateway_user().gid)
        ended = gateway_command("--port=0", **one.settings | {"STATE_DIR": str(copy)})
    assert ended.returncode == 2, ended.stderr
    name = cluster_of(one)["member"]
    assert f"the cluster has a member {name} already: one has a copy of the STATE_DIR" in ended.stderr
