"""`status` and `make status` describe a gateway, and say why it is not well."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from gateway.process.daemon import describe
from gateway.process.pidfile import Running
from tests.gateway.cli.commands import call
from tests.support.fake_gateway import FakeGateway
from tests.support.gateway_process import GatewayProcess


def test_status_says_how_the_gateway_is(tmp_path: Path, running_gateway: GatewayProcess) -> None:
    assert "health    ok" in call(tmp_path, "status", gateway=running_gateway).stdout
    whole = json.loads(call(tmp_path, "status", "--json", gateway=running_gateway).stdout)
    assert whole["healthy"] is True


@pytest.mark.parametrize(
    ("cluster", "said"),
    [
        (None, ""),
        ({"members": [{"name": "a"}, {"name": "b"}], "missing": []}, "cluster   2 members\n"),
        ({"members": [{"name": "a"}], "missing": ["b", "c"]}, "cluster   1 member; missing: b, c\n"),
    ],
)
def test_status_counts_the_members_of_a_cluster(cluster: dict[str, Any] | None, said: str, tmp_path: Path) -> None:
    body = {"healthy": True, "slots": 1, "cluster": cluster, "sandbox": {"tier": "A"}}
    with FakeGateway({"GET /v1/status": lambda asked: (200, body)}) as fake:
        done = call(tmp_path, "status", "--url", fake.url)
    assert (done.returncode, done.stdout.partition("sandbox   tier A\n")[2]) == (0, said)


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ({"draining": True}, "it is stopping and waits for running jobs"),
        ({"internal_s3": {"healthy": False, "failure": "the S3 server ended"}}, "the S3 server ended"),
        ({"kernels": {"last_start_failure": "no workspace"}}, "kernels do not start: no workspace"),
        ({}, "no kernel is ready yet"),
    ],
)
def test_status_says_why_a_gateway_is_not_well(state: dict[str, Any], why: str, tmp_path: Path) -> None:
    body = {"healthy": False, "internal_s3": None, "kernels": {"last_start_failure": None}, **state}
    with FakeGateway({"GET /v1/status": lambda asked: (503, body)}) as fake:
        done = call(tmp_path, "status", "--url", fake.url)
        described = describe(tmp_path, Running.of(os.getpid(), fake.url))
    assert (done.returncode, done.stderr) == (3, "")
    assert f"health    not healthy: {why}\n" in done.stdout
    assert f"health    not healthy: {why}, " in described, "as `make status` says it"


@pytest.mark.parametrize(
    ("fork_server", "said"),
    [
        ({"state": "waiting", "reason": "ended (signal 9)"}, "the fork server ended (signal 9) and is started again; "),
        ({"state": "starting", "reason": "importing"}, None),
        ({"state": "ready", "reason": "imported in 0.48 s"}, None),
        ({"state": "off", "reason": "switched off"}, None),
    ],
)
def test_status_says_that_kernels_start_slowly(fork_server: dict[str, str], said: str | None, tmp_path: Path) -> None:
    with FakeGateway({"GET /v1/status": lambda asked: (200, {"healthy": True, "fork_server": fork_server})}) as fake:
        done = call(tmp_path, "status", "--url", fake.url)
        described = describe(tmp_path, Running.of(os.getpid(), fake.url))
    for text in (done.stdout, described):
        found = [line for line in text.splitlines() if line.startswith("forking ")]
        advice = "until it is ready, each kernel starts as a new Python process"
        assert found == ([f"forking   {said}{advice}"] if said else [])


@pytest.mark.parametrize("command", [("pause",), ("held",), ("release", "--all"), ("console", "--new")])
def test_named_state_directory_counts_before_the_gateway_of_the_environment(
    command: tuple[str, ...], tmp_path: Path, running_gateway: GatewayProcess
) -> None:
    done = call(tmp_path, *command, "--state-dir", str(tmp_path), gateway=running_gateway)
    assert done.returncode == 3
    assert f"no running gateway uses the state directory {tmp_path}" in done.stderr
    assert not running_gateway.request("GET", "/v1/status").body["paused"]


@pytest.mark.parametrize("name", ["none", "file"])
def test_doctor_does_not_call_a_host_insecure_for_want_of_a_directory(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = call(tmp_path, "doctor", "--state-dir", name)
    assert (done.returncode, done.stderr) == (2, f"transform-gateway: --state-dir {name}: there is no such directory\n")


def test_status_of_a_job_sends_a_terminal_no_control_characters(tmp_path: Path) -> None:
    result = {"code": "user_error", "exit_code": 1, "error": "ValueError: \x1b[2Jboo\nsecond"}
    body = {"request_id": "a\x1b[2J", "state": "finished", "result": result}
    with FakeGateway({"GET /v1/status": lambda asked: (200, body)}) as fake:
        done = call(tmp_path, "status", "a", "--url", fake.url)
    assert done.stdout == "a?[2J: finished\nuser_error, exit code 1: ValueError: ?[2Jboo\nsecond\n"
