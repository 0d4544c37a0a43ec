"""The command line: what goes in, what comes out where, and which exit code says what."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gateway import cli
from gateway.client import TransformClient
from gateway.commands import common, smoke
from gateway.daemon import describe
from gateway.runfile import Running
from tests.gateway.fake_gateway import FakeGateway
from tests.gateway_process import GatewayProcess, alive, descendants

ROOT = Path(__file__).parents[2]
SECONDS = 90
TOTALS = "def transform(orders):\n    return orders.groupby('status', as_index=False)['amount'].sum()\n"
SLEEPS = "import time\ndef transform():\n    print('started', flush=True)\n    time.sleep(60)\n"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "orders.csv").write_text("status,amount\npaid,10.5\nopen,3\npaid,4.5\n")
    (tmp_path / "totals.py").write_text(TOTALS)
    (tmp_path / "sleeps.py").write_text(SLEEPS)
    return tmp_path


def environment(gateway: GatewayProcess | None = None) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "VIRTUAL_ENV") if name in os.environ}
    kept["PYTHONPATH"] = str(ROOT)
    return kept | ({"TRANSFORM_GATEWAY_URL": gateway.url, "AUTH_TOKEN": gateway.token} if gateway else {})


def call(directory: Path, *arguments: str, gateway: GatewayProcess | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway", *arguments],
        cwd=directory,
        env=environment(gateway),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def own_gateway_of(pid: int) -> tuple[int, Path]:
    """Return the process and the directory of the gateway that a command started for itself."""
    for child in descendants(pid):
        try:
            settings = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        except OSError:
            continue  # a kernel that has ended since
        state = next((Path(os.fsdecode(s[10:])) for s in settings if s.startswith(b"STATE_DIR=")), None)
        if state is not None and (state / "run" / "gateway.json").exists():
            running: int = json.loads((state / "run" / "gateway.json").read_text())["pid"]
            return running, state.parent
    raise AssertionError("the command has started no gateway")


def test_run_writes_the_result_and_passes_the_jobs_output_on(here: Path, running_gateway: GatewayProcess) -> None:
    (here / "talks.py").write_text(
        "import sys, common\n"
        "def transform(orders):\n    print('out')\n    print('err', file=sys.stderr)\n    return orders\n"
    )
    (here / "common.py").write_text("")
    arguments = ("--table", "orders=orders.csv", "--library", "common.py", "--out", "o.csv")
    done = call(here, "run", "talks.py", *arguments, gateway=running_gateway)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "out"
    assert done.stderr.splitlines()[0] == "err"
    assert "3 rows, 2 columns" in done.stderr
    assert (here / "o.csv").read_text().splitlines()[0] == "status,amount"


def test_run_without_out_is_a_filter(here: Path, running_gateway: GatewayProcess) -> None:
    done = call(here, "run", "totals.py", "--table", "orders=orders.csv", "--quiet", gateway=running_gateway)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"status": "open", "amount": 3},
        {"status": "paid", "amount": 15},
    ]


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "arrow", "csv"])
def test_formats_go_in_and_out(ending: str, here: Path, running_gateway: GatewayProcess) -> None:
    (here / "same.py").write_text("def transform(orders):\n    return orders\n")
    out = f"o.{ending}"
    first = call(here, "run", "same.py", "--table", "orders=orders.csv", "--out", out, gateway=running_gateway)
    second = call(here, "run", "totals.py", "--table", f"orders={out}", "--format", "csv", gateway=running_gateway)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert second.stdout.replace(".0", "").split() == ["status,amount", "open,3", "paid,15"]


@pytest.mark.parametrize(
    ("body", "exit_code", "code"),
    [
        ("raise ValueError('no')", 1, "user_error"),
        ("import os; os._exit(7)", 7, "exited"),
        ("return 'text'", 1, "invalid_return"),
    ],
)
def test_failed_job_gives_its_exit_code_and_reason(
    body: str, exit_code: int, code: str, here: Path, running_gateway: GatewayProcess
) -> None:
    (here / "bad.py").write_text(f"def transform():\n    {body}\n")
    done = call(here, "run", "bad.py", "--out", "x.csv", gateway=running_gateway)
    assert done.returncode == exit_code
    assert f"transform-gateway: {code}: " in done.stderr.splitlines()[-1]
    assert done.stdout == ""
    assert not (here / "x.csv").exists()


@pytest.mark.parametrize("code", [-1, 0, 256, 1000])
def test_exit_code_of_a_failed_job_is_never_success(code: int) -> None:
    assert common.exit_code_of(code) == 1
    assert common.exit_code_of(137) == 137


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "gone.py"), "gone.py: No such file"),
        (("run", "totals.py", "--table", "orders"), "expected NAME=FILE"),
        (("run", "totals.py", "--table", "orders=gone.csv"), "gone.csv (table orders): no such file"),
        (("run", "totals.py", "--table", "orders=totals.py"), "'.py' is none of"),
        (("run", "totals.py", "--table", "o=orders.csv", "--table", "o=orders.csv"), "given twice"),
        (("run", "totals.py", "--manifest", "o=orders.csv"), "no --table of this name"),
        (("run", "totals.py", "--timeout", "0"), "seconds above 0"),
        (("run", "totals.py", "--out", "no/where/x.csv"), "no such directory"),
        (("run", "totals.py", "--out", "x.xlsx"), "'.xlsx' is none of"),
        (("run", "totals.py", "--url", "nonsense"), "not a gateway's URL"),
        (("run", "totals.py", "--nonsense"), "unrecognized arguments"),
        (("nonsense",), "unknown command 'nonsense'"),
        (("logs", "--follow"), "needs the id"),
    ],
)
def test_wrong_call_is_told_before_anything_is_started(arguments: tuple[str, ...], said: str, here: Path) -> None:
    done = call(here, *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_unreachable_gateway_and_wrong_token_exit_with_3(here: Path, running_gateway: GatewayProcess) -> None:
    nobody = call(here, "run", "totals.py", "--table", "orders=orders.csv", "--url", "http://127.0.0.1:1")
    assert (nobody.returncode, "unreachable: no answer" in nobody.stderr) == (3, True)
    wrong = call(here, "logs", "--token", "wrong", gateway=running_gateway)
    assert (wrong.returncode, "unauthorized: " in wrong.stderr) == (3, True)


def test_interrupt_cancels_the_job(here: Path, running_gateway: GatewayProcess) -> None:
    command = [sys.executable, "-m", "gateway", "run", "sleeps.py", "--id", "cli-int", "--out", "x.csv"]
    with subprocess.Popen(
        command, cwd=here, env=environment(running_gateway), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    status = running_gateway.request("GET", "/v1/status?request_id=cli-int").body
    assert status["result"]["code"] == "cancelled"


def test_termination_cancels_the_job_and_leaves_nothing(here: Path, running_gateway: GatewayProcess) -> None:
    scratch = here / "tmp"
    scratch.mkdir()
    command = [sys.executable, "-m", "gateway", "run", "sleeps.py", "--id", "cli-term"]
    settings = {**environment(running_gateway), "TMPDIR": str(scratch)}
    with subprocess.Popen(command, cwd=here, env=settings, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "started\n"
        assert list(scratch.iterdir())
        process.terminate()
        _, stderr = process.communicate(timeout=20)
    assert (process.returncode, "Traceback" in stderr) == (143, False)
    assert not list(scratch.iterdir())
    status = running_gateway.request("GET", "/v1/status?request_id=cli-term").body
    assert status["result"]["code"] == "cancelled"


def test_jobs_are_looked_at_and_ended_by_id(here: Path, running_gateway: GatewayProcess) -> None:
    command = [sys.executable, "-m", "gateway", "run", "sleeps.py", "--id", "cli-77", "--out", "x.csv"]
    with subprocess.Popen(
        command, cwd=here, env=environment(running_gateway), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        assert call(here, "logs", "cli-77", gateway=running_gateway).stdout == "started\n"
        assert call(here, "status", "cli-77", gateway=running_gateway).stdout.startswith("cli-77: running")
        assert call(here, "cancel", "cli-77", gateway=running_gateway).returncode == 0
        process.communicate(timeout=20)
    assert process.returncode == 1
    again = call(here, "cancel", "cli-77", gateway=running_gateway)
    assert (again.returncode, "not_found" in again.stderr) == (1, True)
    assert "cancelled" in call(here, "status", "cli-77", gateway=running_gateway).stdout
    followed = call(here, "logs", "cli-77", "--follow", gateway=running_gateway)
    assert (followed.returncode, followed.stdout) == (0, "started\n")


def test_submitted_job_goes_on_by_itself_and_its_result_is_kept(here: Path, running_gateway: GatewayProcess) -> None:
    (here / "later.py").write_text(
        "import time\ndef transform(orders):\n    time.sleep(1)\n    print('done')\n    return orders\n"
    )
    began = time.monotonic()
    done = call(here, "submit", "later.py", "--table", "orders=orders.csv", "--id", "sub-1", gateway=running_gateway)
    assert (done.returncode, done.stdout) == (0, "sub-1\n")
    state = running_gateway.request("GET", "/v1/status?request_id=sub-1").body["state"]
    assert state in ("queued", "running") or time.monotonic() - began > 1
    followed = call(here, "logs", "sub-1", "--follow", gateway=running_gateway)
    assert followed.stdout.splitlines()[0] == "done"
    client = TransformClient(running_gateway.url, running_gateway.token)
    assert client.fetch("sub-1", here / "kept.jsonl").read_text().count("\n") == 3


def test_status_says_how_the_gateway_is(here: Path, running_gateway: GatewayProcess) -> None:
    assert "health    ok" in call(here, "status", gateway=running_gateway).stdout
    whole = json.loads(call(here, "status", "--json", gateway=running_gateway).stdout)
    assert whole["healthy"] is True


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ({"draining": True}, "it was told to stop and lets running jobs end"),
        ({"internal_s3": {"healthy": False, "failure": "the S3 server ended"}}, "the S3 server ended"),
        ({"kernels": {"last_start_failure": "no seat"}}, "kernels do not start: no seat"),
        ({}, "no kernel is ready yet"),
    ],
)
def test_status_says_why_a_gateway_is_not_well(state: dict[str, Any], why: str, here: Path) -> None:
    body = {"healthy": False, "internal_s3": None, "kernels": {"last_start_failure": None}, **state}
    with FakeGateway({"GET /v1/status": lambda asked: (503, body)}) as fake:
        done = call(here, "status", "--url", fake.url)
        described = describe(here, Running.of(os.getpid(), fake.url))
    assert (done.returncode, done.stderr) == (3, "")
    assert f"health    not healthy: {why}\n" in done.stdout
    assert f"health    not healthy: {why}, " in described, "as `make status` says it"


def test_run_without_url_starts_a_gateway_and_leaves_nothing(here: Path) -> None:
    (here / "says.py").write_text(
        "import time\ndef transform(orders):\n    print('started', flush=True)\n    time.sleep(1)\n    return orders\n"
    )
    command = [sys.executable, "-m", "gateway", "run", "says.py", "--table", "orders=orders.csv", "--out", "o.csv"]
    with subprocess.Popen(
        command, cwd=here, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        gateway, directory = own_gateway_of(process.pid)
        _, stderr = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, stderr
    assert (here / "o.csv").read_text().startswith("status,amount")
    assert not alive(gateway)
    assert not directory.exists()


def test_run_is_not_led_astray_by_modules_of_the_users_directory(here: Path) -> None:
    (here / "json.py").write_text("raise SystemExit('not the json that was meant')")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "gateway", "run", "totals.py", "--table", "orders=orders.csv", "--quiet"],
        cwd=here, env=environment(), capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_run_with_internal_s3_starts_a_gateway_with_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(cli, "_start_gateway", lambda arguments: started.append(arguments) or 0)
    assert cli.main(["run", "--internal-s3", "--port=5003"]) == 0
    assert started == [["--enable-internal-s3=true", "--port=5003"]]
    assert cli.main(["run", "totals.py", "--internal-s3"]) == 2


def test_own_gateway_goes_when_the_command_is_killed(here: Path) -> None:
    command = [sys.executable, "-m", "gateway", "run", "sleeps.py", "--out", "x.csv"]
    with subprocess.Popen(command, cwd=here, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        gateway, directory = own_gateway_of(process.pid)
        assert alive(gateway)
        process.kill()
    deadline = time.monotonic() + 60
    while alive(gateway) or directory.exists():
        assert time.monotonic() < deadline, "the gateway outlived the command that started it"
        time.sleep(0.1)


def test_doctor_prints_the_layers(here: Path) -> None:
    done = call(here, "doctor", "--json")
    report = json.loads(done.stdout)
    assert report["tier"] in ("A", "B", "C", "D")
    reached = call(here, "doctor", "--require", report["tier"])
    assert reached.returncode == 0
    assert f"tier {report['tier']}" in reached.stdout


def test_smoke_runs_all_flights_through(here: Path, running_gateway: GatewayProcess) -> None:
    done = call(here, "smoke", gateway=running_gateway)
    assert done.returncode == 0, done.stderr
    assert "336,776 rows" in done.stdout
    assert "16 rows x 5 columns" in done.stdout
    assert "read" in done.stdout


def test_smoke_table_is_written_as_metabase_writes_it(tmp_path: Path) -> None:
    manifest = smoke.write_flights(smoke.flights_file(), tmp_path / "f.jsonl")
    types = {field["name"]: (field["base_type"], field["root_type"]) for field in manifest["fields"]}
    assert (types["dep_time"], types["carrier"], types["time_hour"]) == (
        ("Integer", "Number"),
        ("Text", "Text"),
        ("DateTimeWithTZ", "DateTime"),
    )
    lines = (tmp_path / "f.jsonl").read_text().splitlines()
    assert len(lines) == smoke.ROWS
    cancelled = json.loads(lines[838])
    assert list(cancelled) == [field["name"] for field in manifest["fields"]]
    assert (cancelled["dep_time"], cancelled["tailnum"]) == (None, "N18120")


def test_every_command_explains_itself(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["commands"]) == 0
    overview = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert f"\n  {name}" in overview
        with pytest.raises(SystemExit) as caught:
            cli.main([name, "--help"])
        assert caught.value.code == 0
        assert f"transform-gateway {name}" in capsys.readouterr().out
