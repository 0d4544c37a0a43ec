"""`logs --follow` and `cancel` by either id, also while the gateway stops, and after it is gone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.cli import history, jobs
from gateway.client.client import TransformClient
from tests.gateway.cli.commands import SECONDS, call, environment
from tests.kernel_spec.conftest import wait_until
from tests.support.fake_gateway import Asked, FakeGateway, Handle, Reply
from tests.support.gateway_process import GatewayProcess

WAITS = "import time\ndef transform():\n    print('begun', flush=True)\n    time.sleep(600)\n"
JOB_ID = "c0" * 16


def job_id_of(gateway: GatewayProcess, request_id: str) -> str:
    return str(gateway.request("GET", f"/v1/jobs?request_id={request_id}").body["jobs"][0]["job_id"])


def test_following_says_that_the_gateway_stops_and_goes_on_after_its_restart(
    tmp_path: Path, start_gateway: Callable[..., GatewayProcess]
) -> None:
    settings = {"SLOTS": "1", "DRAIN_SECONDS": "1"}
    gateway = start_gateway(**settings)
    client = TransformClient(gateway.url, gateway.token)
    for name in ("runs", "waits"):
        client.submit(WAITS, request_id=name, timeout=600)
    gateway.wait_for_line("runs", "begun")
    command = [sys.executable, "-m", "gateway", "logs", job_id_of(gateway, "waits"), "--follow"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(gateway), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as following:
        assert following.stdout is not None
        assert following.stderr is not None
        gateway.process.terminate()
        assert following.stderr.readline() == "The gateway is shutting down: this job is left to its next start\n"
        gateway.process.wait(SECONDS)
        assert following.stderr.readline() == (
            f"transform-gateway: no answer from {gateway.url}: Connection refused; waiting 30 s for the gateway to come "
            "back\n"
        )
        again = start_gateway(STATE_DIR=str(gateway.state_dir / "s"), PORT=str(gateway.port), **settings)
        assert following.stderr.readline() == "The gateway was restarted: this job is queued again\n"
        cancelled = call(tmp_path, "cancel", job_id_of(again, "runs"), gateway=again)
        assert (cancelled.returncode, cancelled.stdout[:14]) == (0, "cancelling job")
        assert following.stdout.readline() == "begun\n"
        assert call(tmp_path, "cancel", "waits", gateway=again).returncode == 0
        _, stderr = following.communicate(timeout=SECONDS)
    assert (following.returncode, stderr.splitlines()[-1]) == (0, "job waits failed: cancelled")


def test_followers_see_a_job_end_while_the_gateway_stops(
    tmp_path: Path, start_gateway: Callable[..., GatewayProcess]
) -> None:
    settings = {"SLOTS": "1", "DRAIN_SECONDS": "60"}
    gateway = start_gateway(**settings)
    client = TransformClient(gateway.url, gateway.token)
    client.submit(WAITS, request_id="last", timeout=600)
    gateway.wait_for_line("last", "begun")

    def follow(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "gateway", *arguments, "--follow"], cwd=tmp_path, env=environment(gateway),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    with follow("logs", "last") as log, follow("jobs") as listed:
        assert log.stdout is not None
        assert listed.stdout is not None
        assert listed.stderr is not None
        assert log.stdout.readline() == "begun\n"
        gateway.process.terminate()
        assert wait_until(lambda: bool(client.status().get("draining")))
        client.cancel("last")
        _, stderr = log.communicate(timeout=SECONDS)
        assert (log.returncode, stderr.splitlines()[-1]) == (0, "job last failed: cancelled")
        assert "  last  cancelled  " in listed.stdout.readline()
        assert "waiting 30 s for the gateway to come back" in listed.stderr.readline()
        again = start_gateway(STATE_DIR=str(gateway.state_dir / "s"), PORT=str(gateway.port), **settings)
        TransformClient(again.url, again.token).submit("def transform():\n    return 1\n", request_id="next")
        assert "  next  invalid_return  " in listed.stdout.readline()
        listed.terminate()


def test_following_ends_when_the_gateway_does_not_come_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gateway.client.log_follower.LOST_SECONDS", 0.3)

    def answer(asked: Asked) -> Reply:
        raise ConnectionAbortedError  # the connection breaks without an answer

    job = {"job_id": JOB_ID, "request_id": "r"}
    with FakeGateway(
        {f"GET /v1/jobs/{JOB_ID}": lambda asked: (200, job), f"GET /v1/jobs/{JOB_ID}/logs": answer}
    ) as fake:
        fake._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        assert jobs.main("logs", [JOB_ID, "--follow", "--url", fake.url]) == 3
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"transform-gateway: no answer from {fake.url}: the connection broke; waiting 30 s for the gateway to come back",
        f"transform-gateway: unreachable: no answer from {fake.url}: the connection broke",
    ]


def test_following_all_jobs_says_that_the_gateway_is_gone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gateway.client.job_stream.LOST_SECONDS", 1.0)
    snapshot = b'id: 1\nevent: snapshot\ndata: {"jobs": []}\n\n'
    answers = iter([(200, snapshot)])
    handlers: dict[str, Handle] = {
        "GET /v1/jobs": lambda asked: (200, {"jobs": []}),
        "GET /v1/stream": lambda asked: next(answers),
    }
    with FakeGateway(handlers) as fake:
        fake._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        assert history.main("jobs", ["--follow", "--url", fake.url]) == 3
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(fake.url)[2] for line in said] == [
        ": the connection broke; waiting 30 s for the gateway to come back",
        ": the connection broke",
    ]


@pytest.mark.parametrize("name", ["never-was", JOB_ID])
def test_an_unknown_job_is_not_waited_for(name: str, tmp_path: Path, running_gateway: GatewayProcess) -> None:
    followed = call(tmp_path, "logs", name, "--follow", gateway=running_gateway)
    assert (followed.returncode, f"there is no job with the id {name!r}" in followed.stderr) == (1, True)
    cancelled = call(tmp_path, "cancel", name, gateway=running_gateway)
    assert (cancelled.returncode, "not_found: " in cancelled.stderr) == (1, True)
