"""`jobs` and `result` show what the gateway knows of its jobs, and fetch what it keeps."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.history import described, main
from gateway.client.client import TransformClient
from gateway.client.errors import GatewayRefused
from tests.gateway.cli.commands import ROOT, SECONDS, TOTALS, call, environment
from tests.support.gateway_process import GatewayProcess

JOB: dict[str, Any] = {
    "job_id": "a" * 32,
    "created_at": "2026-01-02T03:04:05.678Z",
    "state": "finished",
    "code": "user_error",
    "request_id": "r\x1b[31m",
    "duration": 1.234,
    "rows": None,
    "label": None,
    "tables": ["orders", "people"],
    "error": "KeyError: 'b'\nmore",
}


def client_of(gateway: GatewayProcess) -> TransformClient:
    return TransformClient(gateway.url, gateway.token)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "orders.csv").write_text("status,amount\npaid,10.5\n")
    (tmp_path / "totals.py").write_text(TOTALS)
    return tmp_path


def test_a_submitted_job_is_listed_and_its_result_fetched_by_either_id(
    here: Path, running_gateway: GatewayProcess
) -> None:
    arguments = ("--table", "orders=orders.csv", "--id", "cli-history")
    assert call(here, "submit", "totals.py", *arguments, gateway=running_gateway).returncode == 0
    listed = call(here, "jobs", "--json", "--limit", "5", gateway=running_gateway)
    job = next(j for j in map(json.loads, listed.stdout.splitlines()) if j["request_id"] == "cli-history")
    running_gateway.wait_for_end(job["job_id"])
    for name in ("cli-history", job["job_id"]):
        done = call(here, "result", name, "--out", "o.jsonl", gateway=running_gateway)
        assert done.returncode == 0, done.stderr
        assert json.loads((here / "o.jsonl").read_text()) == {"status": "paid", "amount": 10.5}
        (here / "o.jsonl").unlink()
    done = call(here, "result", job["job_id"], "--out", "-", gateway=running_gateway)
    assert json.loads(done.stdout) == {"status": "paid", "amount": 10.5}
    assert f"{job['job_id']}  cli-history  ok" in call(here, "jobs", gateway=running_gateway).stdout


def test_failed_jobs_alone_are_listed_with_their_reason(here: Path, running_gateway: GatewayProcess) -> None:
    client = client_of(running_gateway)
    for code, label in (
        ("raise KeyError('nosuch')", "cli-bad"),
        ("return __import__('pandas').DataFrame()", "cli-good"),
    ):
        running_gateway.execute(f"def transform():\n    {code}", label, label=label)
    lines = call(here, "jobs", "--failed", "--label", "cli-", gateway=running_gateway).stdout.splitlines()
    assert [line for line in lines if "cli-bad" in line and "nosuch" in line]
    assert not [line for line in lines if "cli-good" in line]
    assert client.jobs(code="failed", label="cli-bad")["jobs"][0]["label"] == "cli-bad"


def test_log_and_state_of_a_failed_job_are_shown_by_the_id_in_the_list(
    here: Path, running_gateway: GatewayProcess
) -> None:
    (here / "raises.py").write_text("def transform():\n    print('begun')\n    raise ValueError('no luck')\n")
    call(here, "run", "raises.py", "--id", "cli-old", "--out", "x.csv", gateway=running_gateway)
    listed = call(here, "jobs", "--failed", "--json", "--limit", "500", gateway=running_gateway)
    job_id = next(j["job_id"] for j in map(json.loads, listed.stdout.splitlines()) if j["request_id"] == "cli-old")
    told = call(here, "status", job_id, gateway=running_gateway)
    assert (told.returncode, ": finished" in told.stdout) == (0, True), told.stderr
    by_id = call(here, "logs", job_id, gateway=running_gateway)
    assert by_id.returncode == 0, by_id.stderr
    assert by_id.stdout == "begun\n"
    assert "ValueError: no luck" in by_id.stderr
    by_request = call(here, "logs", "cli-old", gateway=running_gateway)
    assert (by_id.stdout, by_id.stderr) == (by_request.stdout, by_request.stderr)


def test_follow_shows_jobs_as_they_finish(here: Path, running_gateway: GatewayProcess) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "gateway", "jobs", "--follow", "--label", "cli-follow"],
        cwd=ROOT,
        env=environment(running_gateway),
        stdout=subprocess.PIPE,
        text=True,
    ) as following:
        assert following.stdout is not None
        try:
            for number in range(2):
                code = "import pandas as pd\ndef transform():\n    return pd.DataFrame({'a': [1]})"
                running_gateway.execute(code, f"f{number}", label=f"cli-follow {number}")
                assert f"cli-follow {number}" in following.stdout.readline()
        finally:
            following.terminate()


def test_follow_begins_with_the_newest_and_shows_what_finishes_after_a_step_back_of_the_clock(
    start_gateway: Callable[..., GatewayProcess],
) -> None:
    code = "import pandas as pd\ndef transform():\n    return pd.DataFrame({'a': [1]})"
    gateway = start_gateway(SLOTS="1")
    gateway.execute(code, "before")
    gateway.process.terminate()
    gateway.process.wait(SECONDS)
    state = str(gateway.state_dir / "s")
    with closing(sqlite3.connect(f"{state}/store/jobs.db")) as store, store:  # 600 jobs of a clock that was ahead
        columns = [name for _, name, *_ in store.execute("PRAGMA table_info(jobs)") if name != "seq"]
        changed = {
            "job_id": "printf('%032x', n)", "request_id": "json_quote('ahead-' || n)", "key": "NULL",
            "created_at": "created_at + 1e5 + n", "finished_at": "finished_at + 1e5 + n",
        }  # fmt: skip
        store.execute(
            "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 600) "
            f"INSERT INTO jobs ({', '.join(columns)}) "
            f"SELECT {', '.join(changed.get(name, name) for name in columns)} FROM jobs, numbers"
        )
    again = start_gateway(STATE_DIR=state, SLOTS="1")
    command = [sys.executable, "-m", "gateway", "jobs", "--follow", "--limit", "2"]
    with subprocess.Popen(command, cwd=ROOT, env=environment(again), stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        try:
            for expected in ("ahead-599", "ahead-600"):
                assert f"  {expected}  ok  " in following.stdout.readline()
            for expected in ("now-1", "now-2"):
                again.execute(code, expected)
                assert f"  {expected}  ok  " in following.stdout.readline()
        finally:
            following.terminate()


def test_an_unknown_id_says_so(here: Path, running_gateway: GatewayProcess) -> None:
    for name in ("no-such-job", "0" * 32):
        for command in (("result", name, "--out", "x"), ("logs", name)):
            done = call(here, *command, gateway=running_gateway)
            assert done.returncode == 1
            assert "there is no job with the id" in done.stderr
    assert not (here / "x").exists()


def test_the_client_removes_a_job(running_gateway: GatewayProcess) -> None:
    client = client_of(running_gateway)
    code = "import pandas as pd\ndef transform():\n    return pd.DataFrame({'a': [1]})"
    job_id = client.run(code, output_format="jsonl", label="to be removed").execution_id
    assert client.job(job_id)["label"] == "to be removed"
    assert client.fetch_job(job_id) == b'{"a":1}\n'
    client.delete_job(job_id)
    with pytest.raises(GatewayRefused):
        client.job(job_id)


def test_a_line_says_why_a_job_failed_and_no_id_reaches_the_terminal() -> None:
    line = described(JOB)
    assert line.endswith(f"  {'a' * 32}  r?[31m  user_error  1.23 s  -  orders, people: KeyError: 'b'")


def test_jobs_that_a_silent_member_keeps_are_said_to_be_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = {"jobs": [JOB], "missing_members": ["node-2\x1b[31m"]}
    monkeypatch.setattr(TransformClient, "jobs", lambda self, **query: page)
    assert main("jobs", ["--url", "http://127.0.0.1:1"]) == 0
    out, err = capsys.readouterr()
    assert "a" * 32 in out
    assert "node-2" in err
    assert "does not answer" in err
    assert "\x1b" not in out + err
