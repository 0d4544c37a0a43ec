"""The command line: input, output, and exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from gateway import cli
from gateway.cli import common, smoke
from gateway.client.client import TransformClient
from tests.gateway.cli.commands import SECONDS, TOTALS, call, environment
from tests.support.gateway_process import GatewayProcess


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


@pytest.mark.parametrize(
    "ending", ["jsonl", "parquet", "arrow", "csv", "csv.gz", "jsonl.zst", "json", "json.gz", "xlsx"]
)
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
    reason = running_gateway.request("GET", "/v1/jobs?limit=1").body["jobs"][0]["error"]
    assert done.stderr.count(reason) == 1
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
        (("run", "totals.py", "--table", "orders=totals.py"), "unknown ending '.py'"),
        (("run", "totals.py", "--table", "o=orders.csv", "--table", "o=orders.csv"), "given twice"),
        (("run", "totals.py", "--manifest", "o=orders.csv"), "no --table of this name"),
        (("run", "totals.py", "--library", "totals.py", "--library", "./totals.py"), "another file of this name"),
        (("run", "totals.py", "--timeout", "0"), "--timeout: expected a duration above 0"),
        (("run", "totals.py", "--timeout", "5x"), "--timeout: expected a number of seconds or a duration"),
        (("run", "totals.py", "--out", "no/where/x.csv"), "no such directory"),
        (("run", "totals.py", "--out", "/dev/null", "--format", "csv"), "--out /dev/null: is not a regular file"),
        (("run", "totals.py", "--table", "orders=."), ". (table orders): is not a regular file"),
        (("run", "totals.py", "--against", "/dev/null"), "--against /dev/null: is not a regular file"),
        (("run", "totals.py", "--url", "http://[::1"), "not a gateway's URL: 'http://[::1': Invalid IPv6 URL"),
        (("run", "totals.py", "--url", "http://h:99999"), "not a gateway's URL: 'http://h:99999': Port out of range"),
        (("run", "totals.py", "--out", "x.xls"), "unknown ending '.xls'"),
        (("run", "totals.py", "--out", "x.csv.gz", "--format", "csv"), "the ending of --out x.csv.gz gives the format"),
        (("run", "totals.py", "--url", "nonsense"), "not a gateway's URL"),
        (("status", "--url", "http://a..b:1"), "not a gateway's URL: 'http://a..b:1'"),
        (("status", "--token", "pass\n"), "the token (AUTH_TOKEN) has a line break"),
        (("run", "totals.py", "--nonsense"), "unknown option --nonsense"),
        (("nonsense",), "unknown command 'nonsense'"),
    ],
)
def test_wrong_call_is_refused_before_anything_is_started(arguments: tuple[str, ...], said: str, here: Path) -> None:
    done = call(here, *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_removed_current_directory_is_named(here: Path) -> None:
    (here / "gone").mkdir()
    code = "import os, sys; os.rmdir(os.getcwd()); from gateway.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, "packages"],
        cwd=here / "gone",
        env=environment(),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    said = "transform-gateway: the current directory: No such file or directory\n"
    assert (done.returncode, done.stderr) == (2, said)


def test_workbook_that_cannot_be_written_is_refused_before_anything_is_started(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(here)
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    assert cli.main(["run", "totals.py", "--url", "http://127.0.0.1:1", "--out", "x.xlsx"]) == 2
    assert "--out x.xlsx: a workbook needs the package openpyxl" in capsys.readouterr().err


def test_unreachable_gateway_and_wrong_token_exit_with_3(here: Path, running_gateway: GatewayProcess) -> None:
    nobody = call(here, "run", "totals.py", "--table", "orders=orders.csv", "--url", "http://127.0.0.1:1")
    assert (nobody.returncode, "unreachable: no answer" in nobody.stderr) == (3, True)
    wrong = call(here, "logs", "--token", "wrong", gateway=running_gateway)
    assert (wrong.returncode, "unauthorized: " in wrong.stderr) == (3, True)
    assert wrong.stderr.endswith("; set AUTH_TOKEN to a token of this gateway\n")


def test_unreachable_gateway_names_the_address_of_the_one_that_runs_with_this_state_directory(
    here: Path, running_gateway: GatewayProcess
) -> None:
    elsewhere = environment() | {"STATE_DIR": str(running_gateway.state_dir / "s"), "PORT": "1"}
    command = [sys.executable, "-m", "gateway", "jobs"]
    done = subprocess.run(
        command, cwd=here, env=elsewhere, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert (done.returncode, f" is at {running_gateway.url} (TRANSFORM_GATEWAY_URL" in done.stderr) == (3, True)


def test_result_that_the_disk_does_not_take_names_the_file(here: Path, running_gateway: GatewayProcess) -> None:
    script = "import os, pandas as pd\ndef transform():\n    return pd.DataFrame({'a': [os.urandom(9).hex() for _ in range(500)]})\n"
    (here / "many.py").write_text(script)
    (here / "x.jsonl").write_text("kept")
    run = 'ulimit -f 1; exec "$0" -m gateway run many.py --out x.jsonl'
    done = subprocess.run(
        ["sh", "-c", run, sys.executable],
        cwd=here,
        env=environment(running_gateway) | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1] == "transform-gateway: x.jsonl: File too large"
    assert [path.name for path in here.glob("*x.jsonl*")] == ["x.jsonl"]
    assert (here / "x.jsonl").read_text() == "kept"


@pytest.mark.parametrize(
    ("redirection", "code", "said"),
    [
        (">/dev/full", 2, "transform-gateway: standard output: No space left on device"),
        (">&-", 0, "2 rows, 2 columns"),
        ("2>&-", 0, ""),
    ],
)
def test_output_that_cannot_be_written_is_told_once(
    redirection: str, code: int, said: str, here: Path, running_gateway: GatewayProcess
) -> None:
    run = f'exec "$0" -m gateway run totals.py --table orders=orders.csv {redirection}'
    done = subprocess.run(
        ["sh", "-c", run, sys.executable],
        cwd=here,
        env=environment(running_gateway),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert [line for line in done.stderr.splitlines() if said in line] == done.stderr.splitlines()[-1:]


def test_kept_result_that_the_disk_does_not_take_is_a_failure(here: Path, running_gateway: GatewayProcess) -> None:
    script = ("run", "totals.py", "--table", "orders=orders.csv", "--id", "cli-full", "--out", "o.csv")
    assert call(here, *script, gateway=running_gateway).returncode == 0
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -m gateway result cli-full --out - >/dev/full', sys.executable],
        cwd=here,
        env=environment(running_gateway),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (2, "transform-gateway: standard output: No space left on device\n")


def test_output_that_the_terminal_cannot_show_does_not_cancel_the_job(
    here: Path, running_gateway: GatewayProcess
) -> None:
    (here / "czech.py").write_text(f"{TOTALS}print('\u017elu\u0165')\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "run", "czech.py", "--table", "orders=orders.csv", "--out", "o.csv"],
        cwd=here,
        env=environment(running_gateway) | {"PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout.splitlines()[:1]) == (0, ["\\u017elu\\u0165"]), done.stderr
    assert (here / "o.csv").exists()


def test_interrupt_during_the_imports_is_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "interrupted_import.py").write_text("raise KeyboardInterrupt\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(cli.COMMANDS, "status", ("interrupted_import", ""))
    assert (cli.main(["status"]), capsys.readouterr().err) == (130, "transform-gateway: interrupted\n")


def test_interrupt_cancels_the_job(here: Path, running_gateway: GatewayProcess) -> None:
    command = [sys.executable, "-m", "gateway", "run", "sleeps.py", "--id", "cli-int", "--out", "x.csv"]
    with subprocess.Popen(
        command, cwd=here, env=environment(running_gateway), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=SECONDS)
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
        _, stderr = process.communicate(timeout=SECONDS)
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
        cancelled = call(here, "cancel", "cli-77", gateway=running_gateway)
        assert (cancelled.returncode, cancelled.stdout) == (0, "cancelling job cli-77\n")
        process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    again = call(here, "cancel", "cli-77", gateway=running_gateway)
    assert (again.returncode, "not_found" in again.stderr) == (1, True)
    first, second = call(here, "status", "cli-77", gateway=running_gateway).stdout.splitlines()
    assert (first, second.partition(",")[0]) == ("cli-77: finished", "cancelled")
    followed = call(here, "logs", "cli-77", "--follow", gateway=running_gateway)
    assert (followed.returncode, followed.stdout) == (0, "started\n")
    assert followed.stderr.splitlines()[-1] == "job cli-77 failed: cancelled"
    listed = json.loads(call(here, "jobs", "--json", "--limit", "1", gateway=running_gateway).stdout)
    followed = call(here, "logs", listed["job_id"], "--follow", gateway=running_gateway)
    assert (followed.returncode, followed.stdout) == (0, "started\n")
    unknown = call(here, "logs", "no-such-job", "--follow", gateway=running_gateway)
    assert (unknown.returncode, "there is no job with the id 'no-such-job'" in unknown.stderr) == (1, True)


def test_submitted_job_outlives_the_command_and_its_result_is_kept(here: Path, running_gateway: GatewayProcess) -> None:
    (here / "later.py").write_text(
        "import time\ndef transform(orders):\n    time.sleep(1)\n    print('done')\n    return orders\n"
    )
    began = time.monotonic()
    done = call(here, "submit", "later.py", "--table", "orders=orders.csv", "--id", "sub-1", gateway=running_gateway)
    assert (done.returncode, done.stdout) == (0, "sub-1\n")
    assert "`transform-gateway result sub-1 --out FILE`" in done.stderr
    state = running_gateway.request("GET", "/v1/status?request_id=sub-1").body["state"]
    assert state in ("queued", "running") or time.monotonic() - began > 1
    followed = call(here, "logs", "--follow", gateway=running_gateway)
    assert followed.stdout.splitlines()[0] == "done"
    told = followed.stderr.splitlines()
    assert (told[0], told[-1]) == ("following job sub-1", "job sub-1 succeeded: 3 rows")
    client = TransformClient(running_gateway.url, running_gateway.token)
    assert client.fetch("sub-1", here / "kept.jsonl").read_text().count("\n") == 3
    for name in ("o.jsonl", "o.json", "o.jsonl.gz"):
        fetched = call(here, "result", "sub-1", "--out", name, gateway=running_gateway)
        assert (fetched.returncode, fetched.stderr[:18]) == (0, "3 rows, 2 columns,"), fetched.stderr
    assert len(json.loads((here / "o.json").read_text())) == 3
    other = call(here, "result", "sub-1", "--out", "o.csv", gateway=running_gateway)
    assert (other.returncode, (here / "o.csv").exists()) == (2, False)
    assert "the result is jsonl, so the name must end in .jsonl" in other.stderr


def test_doctor_prints_the_layers(here: Path) -> None:
    done = call(here, "doctor", "--json")
    report = json.loads(done.stdout)
    assert report["tier"] in ("A", "B", "C", "D")
    assert (report["host"]["cores"], report["host"]["warnings"]) == (os.cpu_count(), [])
    reached = call(here, "doctor", "--require", report["tier"])
    assert reached.returncode == 0
    assert f"tier {report['tier']}" in reached.stdout
    assert f"This host: {os.cpu_count()} cores" in reached.stdout


@pytest.mark.parametrize("command", [(), ("doctor",)], ids=["gateway", "doctor"])
def test_doctor_refuses_a_state_directory_that_jobs_could_read_as_the_gateway_does(command: tuple[str, ...]) -> None:
    done = call(Path(sys.prefix), *command, "--state-dir=state")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"transform-gateway: STATE_DIR is {sys.prefix}/state, but every job can read ")
    assert done.stderr.count("\n") == 1


def test_doctor_takes_a_state_directory_by_a_relative_path() -> None:
    with tempfile.TemporaryDirectory(prefix="tg-") as name:
        Path(name).chmod(0o755)  # for the user of the workspace
        (Path(name) / "state").mkdir()
        reports = [
            json.loads(call(Path(name), "doctor", "--json", "--state-dir", path).stdout)
            for path in ("state", f"{name}/state")
        ]
    assert reports[0]["layers"] == reports[1]["layers"]
    assert reports[0]["tier"] == reports[1]["tier"]


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


def test_packages_lists_those_that_a_job_can_import(here: Path, running_gateway: GatewayProcess) -> None:
    (here / "versions.py").write_text(
        "import sys\nfrom importlib import metadata\nimport pandas as pd\nimported = set(sys.modules)\n"
        "def transform():\n"
        "    found = {each.metadata['Name']: each.version for each in metadata.distributions()}\n"
        "    rows = [(name, version, name in imported) for name, version in found.items()]\n"
        "    return pd.DataFrame(rows, columns=['name', 'version', 'imported'])\n"
    )
    ran = call(here, "run", "versions.py", "--quiet", gateway=running_gateway)
    in_a_job = {row["name"]: row for row in map(json.loads, ran.stdout.splitlines())}
    listed = {
        each["name"]: each for each in json.loads(call(here, "packages", "--json", gateway=running_gateway).stdout)
    }
    assert {name: each["version"] for name, each in listed.items()} == {
        name: row["version"] for name, row in in_a_job.items()
    }
    assert in_a_job["pandas"]["imported"]
    assert (listed["pandas"]["preloaded"], listed["scipy"]["preloaded"]) == (True, False)
    here_only = call(here, "packages", "scip")
    assert here_only.stdout == f"scipy {listed['scipy']['version']}\n"
    assert call(here, "packages", "no-such-package").returncode == 1
