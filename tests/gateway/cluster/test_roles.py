"""Members that only accept jobs, and processes that only run them."""

from __future__ import annotations

import re
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from gateway.cli.install.systemd import unit
from gateway.process.daemon import describe
from gateway.process.pidfile import Running
from tests.gateway.cluster.members import OUTPUT, ROWS, SLOW, cluster_of, in_background, urls, wait_for_members
from tests.support.gateway_process import GatewayProcess, descendants, gateway_command
from tests.support.nats_server import NatsServer
from tests.support.ports import free_port
from tests.support.s3 import S3Server

HOST = ("-m", "gateway", "host")


def test_one_accepts_and_another_one_runs(stack: ExitStack, nats_server: NatsServer, storage: S3Server) -> None:
    as_host = {**nats_server.settings("host"), "SLOTS": "1", "READY_KERNELS": "0"}
    front = stack.enter_context(GatewayProcess({**nats_server.settings("acceptor"), "SLOTS": "0"}))
    assert len(descendants(front.pid)) == 0  # no launcher, no kernel
    host = stack.enter_context(GatewayProcess({**as_host, "HOST": "0.0.0.0"}, launch=HOST))
    wait_for_members([front], 2)
    status = front.request("GET", "/v1/status").body
    assert (status["slots"], status["busy_slots"]) == (1, 0)

    prefix = storage.new_prefix()
    answer = front.execute(f"print('hello')\n{OUTPUT}", "job", **urls(storage, prefix))
    assert answer.status == 200, answer.raw
    assert storage.get(f"{prefix}/output") == ROWS
    assert "hello" in [line["message"] for line in front.log("job")]

    places = urls(storage, storage.new_prefix())
    thread, answers = in_background(front, SLOW.format(seconds=50), "long", timeout=60, **places)
    front.wait_for_line("long", "running")
    assert front.request("POST", "/v1/cancel", {"request_id": "long"}).status == 200
    thread.join(60)
    assert answers[0].body["code"] == "cancelled"

    # only a machine of the member that accepted it could run this one
    refused = front.execute(OUTPUT, "kept")
    assert (refused.status, refused.body["code"]) == (400, "bad_request"), refused.raw
    assert "SLOTS=0" in refused.body["error"]

    # the host needs no token, and shows nothing but its health
    assert host.url.startswith("http://127.0.0.1:")
    nobody = {"Authorization": ""}
    assert host.request("GET", "/healthz/ready", headers=nobody).status == 200
    assert b"transform_gateway_launcher_up 1.0" in host.request("GET", "/metrics", headers=nobody).raw
    for path in ("/v1/status", "/v1/execute", "/", "/v1/jobs"):
        assert host.request("GET", path).status == 404, path


def test_a_member_without_slots_is_ready_before_there_is_a_host(
    stack: ExitStack, nats_server: NatsServer, storage: S3Server, tmp_path: Path
) -> None:
    front = stack.enter_context(GatewayProcess({**nats_server.settings("acceptor"), "SLOTS": "0"}))
    prefix = storage.new_prefix()
    thread, answers = in_background(front, OUTPUT, "early", **urls(storage, prefix))
    deadline = time.monotonic() + 60
    while not front.request("GET", "/v1/jobs?state=queued").body["jobs"]:
        assert time.monotonic() < deadline
    assert front.request("GET", "/healthz/ready").status == 200  # a load balancer must still find the job that waits
    shown = gateway_command("status", PORT=str(front.port))
    assert (shown.returncode, "cluster   1 member, no slots\n" in shown.stdout) == (0, True), shown
    by_make = describe(tmp_path, Running.of(front.pid, front.url))
    for text in (shown.stdout, by_make):
        assert "health    ok, but no machine of the cluster runs jobs: accepted ones wait" in text
        assert "sandbox   none: this gateway only accepts jobs (SLOTS=0)\n" in text
    host = stack.enter_context(GatewayProcess({**nats_server.settings("host"), "READY_KERNELS": "0"}, launch=HOST))
    thread.join(60)
    assert "health    ok, " in describe(tmp_path, Running.of(front.pid, front.url))
    assert "role      host of a cluster" in describe(tmp_path, Running.of(host.pid, host.url))
    assert answers[0].status == 200, answers[0].raw
    assert storage.get(f"{prefix}/output") == ROWS

    nats_server.kill()
    deadline = time.monotonic() + 60
    while front.request("GET", "/healthz/ready").status == 200:
        assert time.monotonic() < deadline
    assert "not healthy: no broker of the cluster answers" in gateway_command("status", PORT=str(front.port)).stdout


def test_a_host_that_is_stopped_lets_its_job_end(stack: ExitStack, nats_server: NatsServer, storage: S3Server) -> None:
    as_host = {**nats_server.settings("host"), "SLOTS": "1", "READY_KERNELS": "0"}
    front = stack.enter_context(GatewayProcess({**nats_server.settings("acceptor"), "SLOTS": "0"}))
    host = stack.enter_context(GatewayProcess(as_host, launch=HOST))
    wait_for_members([front], 2)
    prefix = storage.new_prefix()
    thread, answers = in_background(front, SLOW.format(seconds=3), "job", timeout=60, **urls(storage, prefix))
    front.wait_for_line("job", "running")
    assert host.stop() == 0
    thread.join(60)
    assert answers[0].status == 200, answers[0].raw
    assert [line["message"] for line in front.log("job")].count("running") == 1
    assert cluster_of(front)["hosts_lost"] == 0


@pytest.mark.parametrize(("command", "slots"), [((), "0"), (("host",), "1")])
def test_a_service_is_started_again_that_finds_no_broker(command: tuple[str, ...], slots: str) -> None:
    """After a loss of power, a member may be up before the broker is."""
    settings = {"CLUSTER_URL": f"nats://127.0.0.1:{free_port()}", "SLOTS": slots, "READY_KERNELS": "0"}
    with tempfile.TemporaryDirectory(prefix="tg-", dir="/tmp") as directory:
        Path(directory).chmod(0o755)  # the gateway drops root
        ended = gateway_command(*command, "--port=0", STATE_DIR=f"{directory}/s", **settings)
    assert "no broker at" in ended.stderr.splitlines()[-1]
    status = re.search(r"^RestartPreventExitStatus=(.*)$", unit(Path("/opt/transform-gateway")), re.MULTILINE)
    assert status is not None
    assert ended.returncode not in {0, *map(int, status[1].split())}


@pytest.mark.parametrize(
    ("command", "settings", "text"),
    [
        ((), {"SLOTS": "0"}, "SLOTS is 0: without CLUSTER_URL no other machine could run a job"),
        (("host",), {}, "CLUSTER_URL is not set: a host gets its jobs from the members of a cluster"),
        (("host",), {"SLOTS": "0", "CLUSTER_URL": "nats://127.0.0.1:9"}, "SLOTS is 0: a host must run jobs"),
    ],
)
def test_what_makes_no_sense_is_refused(
    command: tuple[str, ...], settings: dict[str, str], text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    state = tmp_path_factory.mktemp("tg")
    ended = gateway_command(*command, "--port=0", STATE_DIR=str(state), **settings)
    assert ended.returncode == 2, ended.stderr
    assert text in ended.stderr.splitlines()[-1]


def test_a_kernel_that_a_host_holds_is_shown_and_released_at_any_member(
    stack: ExitStack, nats_server: NatsServer, storage: S3Server
) -> None:
    as_host = {**nats_server.settings("host"), "SLOTS": "1", "READY_KERNELS": "0", "HELD_KERNELS": "1"}
    front = stack.enter_context(GatewayProcess({**nats_server.settings("acceptor"), "SLOTS": "0"}))
    host = stack.enter_context(GatewayProcess(as_host, launch=HOST))
    wait_for_members([front], 2)
    fails = "def transform():\n    raise ValueError('no')\n"
    answer = front.execute(fails, "fails", hold_minutes=5, **urls(storage, storage.new_prefix())).body
    name, attach, path = (answer["held"][each] for each in ("id", "attach", "connection_file"))
    state = {"STATE_DIR": str(front.state_dir / "s")}
    deadline = time.monotonic() + 60
    while (listed := gateway_command("held", **state)).stdout == "no kernel is held\n":
        assert time.monotonic() < deadline
    (host_name,) = [each["name"] for each in cluster_of(front)["members"] if each["slots"]]
    assert f"{name}  job fails: user_error, held on host {host_name} for" in listed.stdout, listed
    assert attach in listed.stdout
    assert b"transform_gateway_held_kernels 1.0" in host.request("GET", "/metrics").raw

    Path(path).unlink()  # as on another machine
    console = gateway_command("console", name, **state)
    assert console.returncode == 2, console
    assert f"held on host {host_name}: run this there" in console.stderr
    assert attach in console.stderr
    fresh = gateway_command("console", "--new", **state)
    assert "run `transform-gateway console` on the machine of a member with slots: there is none" in fresh.stderr

    assert front.request("POST", "/v1/release", {"id": "unknown"}).status == 404
    released = gateway_command("release", "--all", **state)
    assert released.stdout == f"released {name}\n", released
    assert b"transform_gateway_held_kernels 0.0" in host.request("GET", "/metrics").raw
    assert front.request("GET", "/v1/held").body["held"] == []
    assert front.request("POST", "/v1/release", {"id": name}).status == 404
