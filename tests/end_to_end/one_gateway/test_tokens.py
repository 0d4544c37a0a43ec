"""Tokens of a real gateway: rotation by SIGHUP, names in its log, and a pause over a restart."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.process import privileges
from tests.support.gateway_process import GatewayProcess, gateway_command

OLD, NEW, OPS = "old-0123456789abcdef", "new-0123456789abcdef", "ops-0123456789abcdef"
SIMPLE = "import pandas as pd\ndef transform():\n    return pd.DataFrame({'n': [1]})"


@pytest.fixture(scope="module")
def file() -> Iterator[Path]:
    path = Path(f"/tmp/tg-tokens-{os.getpid()}")
    write(path, f"metabase run {OLD}\nops admin {OPS}\n")
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def gateway(file: Path) -> Iterator[GatewayProcess]:
    settings = {"AUTH_TOKEN": "", "AUTH_TOKEN_FILE": str(file), "LOG_JSON": "true"}
    with GatewayProcess(settings, token=OLD) as gateway:
        yield gateway


def write(path: Path, text: str) -> None:
    """Replace the file as an administrator does: a new one that only the gateway's user can read."""
    draft = path.with_suffix(".new")
    draft.touch(0o600)
    draft.write_text(text)
    if os.geteuid() == 0:
        os.chown(draft, privileges.gateway_user().uid, -1)
    draft.replace(path)


def hang_up(gateway: GatewayProcess, text: str) -> None:
    """Send SIGHUP, and return when the log says so."""
    seen = len(gateway.output)
    os.kill(gateway.pid, signal.SIGHUP)
    assert poll(lambda: any("SIGHUP" in line and text in line for line in gateway.output[seen:])), gateway.output[-5:]


def poll(holds: Callable[[], bool], seconds: float = 60) -> bool:
    """Return whether something came to hold in time."""
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.02)
    return holds()


def status_with(gateway: GatewayProcess, token: str) -> int:
    return gateway.request("GET", "/v1/jobs", headers={"Authorization": f"Bearer {token}"}).status


def test_a_token_is_replaced_while_the_gateway_runs(gateway: GatewayProcess, file: Path) -> None:
    assert [status_with(gateway, token) for token in (OLD, NEW)] == [200, 401]
    write(file, f"metabase run {OLD}\nmetabase run {NEW}\nops admin {OPS}\n")
    hang_up(gateway, "metabase (run), metabase (run), ops (admin)")
    assert [status_with(gateway, token) for token in (OLD, NEW)] == [200, 200]
    write(file, f"metabase ran {NEW}\n")
    hang_up(gateway, "the tokens stay as they were")
    assert [status_with(gateway, token) for token in (OLD, NEW)] == [200, 200]
    write(file, f"metabase run {NEW}\nops admin {OPS}\n")
    hang_up(gateway, "metabase (run), ops (admin)")
    assert [status_with(gateway, token) for token in (OLD, NEW)] == [401, 200]
    gateway.token = NEW
    assert gateway.execute(SIMPLE, 1).status == 200
    assert not [line for line in gateway.output for secret in (OLD, NEW, OPS) if secret in line]


def test_the_lines_of_a_job_name_the_token(gateway: GatewayProcess) -> None:
    gateway.token = OPS
    job_id = gateway.execute(SIMPLE, 2).body["execution_id"]
    # the last line comes after the answer
    assert poll(lambda: len([line for line in gateway.output if job_id in line]) == 3), "accepted, started, finished"
    lines = [json.loads(line) for line in gateway.output if job_id in line]
    assert {line["token_name"] for line in lines} == {"ops"}
    assert gateway.request("GET", f"/v1/jobs/{job_id}").body["token_name"] == "ops"


def test_a_pause_by_the_command_line(gateway: GatewayProcess, file: Path) -> None:
    gateway.token = OPS
    local = {"STATE_DIR": str(gateway.state_dir / "s")}
    assert "paused" in gateway_command("pause", **local).stdout
    assert gateway.execute(SIMPLE, 3).body["code"] == "paused"
    # by its URL, with the token in the file that permits most
    by_url = {"TRANSFORM_GATEWAY_URL": gateway.url, "AUTH_TOKEN_FILE": str(file)}
    shown = gateway_command("status", **by_url)
    assert "it is paused; `transform-gateway resume` ends the pause" in shown.stdout
    assert "resumed" in gateway_command("resume", **by_url).stdout
    assert gateway.execute(SIMPLE, 3).status == 200


@pytest.mark.skipif(os.geteuid() != 0, reason="only a gateway that drops root becomes another user")
def test_a_file_that_only_root_can_read_starts_nothing(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(f"metabase run {OLD}\n")
    (tmp_path / "tokens").chmod(0o600)
    done = gateway_command(STATE_DIR=str(tmp_path / "s"), AUTH_TOKEN_FILE=str(tmp_path / "tokens"))
    assert done.returncode == 2
    assert f"cannot read {tmp_path / 'tokens'} (AUTH_TOKEN_FILE): chown" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "s").exists()
