"""`transform-gateway run` shows, profiles, compares and watches a result."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pexpect
import pytest

from gateway.cli import run
from gateway.client.client import TransformClient
from gateway.table_files.parsed import WORTHWHILE_BYTES, ParsedTables
from tests.gateway.cli.commands import SECONDS, TOTALS, call, environment
from tests.support.gateway_process import GatewayProcess

RUN = ("run", "totals.py", "--table", "orders=orders.csv")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "orders.csv").write_text("status,amount\npaid,10.5\nopen,3\npaid,4.5\n")
    (tmp_path / "totals.py").write_text(TOTALS)
    return tmp_path


def test_terminal_shows_a_table_and_a_pipe_gets_the_data(here: Path, running_gateway: GatewayProcess) -> None:
    terminal = pexpect.spawn(
        sys.executable,
        ["-m", "gateway", *RUN, "--quiet"],
        cwd=str(here),
        env=environment(running_gateway),
        encoding="utf-8",
        timeout=SECONDS,
        dimensions=(40, 100),
    )
    shown = terminal.read()
    terminal.close()
    assert terminal.exitstatus == 0
    assert [line.split() for line in shown.splitlines()[-4:]] == [
        ["status", "amount"],
        ["[text]", "[float]"],
        ["open", "3"],
        ["paid", "15"],
    ]
    piped = call(here, *RUN, "--quiet", gateway=running_gateway).stdout
    assert [json.loads(line) for line in piped.splitlines()] == [
        {"status": "open", "amount": 3},
        {"status": "paid", "amount": 15},
    ]


#: As a follower reports them: what was fetched is reported last, in the answer that reports the next stage first.
LATE = """from gateway.cli.display import Display, RunningJobs
from gateway.core.events import Progress, StateChanged
from gateway.core.job import JobState
with Display() as display:
    for event in (StateChanged(JobState.RUNNING, "execute"), Progress("fetch", "orders", bytes=9), *{more}):
        display(event)
progress = dict(table=None, rows=None, bytes=None, bar=None, description="", done=None, total=None)
with RunningJobs() as running:
    stages = [dict(progress, stage=stage) for stage in ["fetch", *{stages}]]
    running.take([dict(job_id="a", request_id=1, state="running", stage="execute", progress=stages)], is_all=True)
"""


@pytest.mark.parametrize(
    ("more", "stages", "shown"),
    [("()", "()", "execute"), ("(Progress('read', 'orders', rows=1),)", "['read']", "read")],
)
def test_progress_line_does_not_say_that_tables_are_fetched_while_the_script_runs(
    more: str, stages: str, shown: str, here: Path
) -> None:
    terminal = pexpect.spawn(
        sys.executable,
        ["-c", LATE.format(more=more, stages=stages)],
        cwd=str(here),
        env=environment(),
        encoding="utf-8",
        timeout=SECONDS,
    )
    lines = terminal.read()
    terminal.close()
    assert terminal.exitstatus == 0, lines
    assert shown in lines
    assert f"1: {shown}" in lines
    assert "fetch" not in lines


def test_head_and_profile_go_with_a_file(here: Path, running_gateway: GatewayProcess) -> None:
    done = call(here, *RUN, "--out", "o.csv", "--head", "1", "--profile", gateway=running_gateway)
    assert done.returncode == 0, done.stderr
    assert "... 1 more row\n" in done.stdout
    assert ["amount", "Float", "0", "2", "3", "6", "9", "12", "15"] in [
        line.split()[:9] for line in done.stdout.splitlines()
    ], done.stdout
    stages = [line.split()[0] for line in done.stdout.splitlines() if "█" in line and line.endswith(" s")]
    assert stages[-2:] == ["kill", "deliver"]
    assert stages[stages.index("execute") :][1:6] == ["import", "read", "transform", "write", "profile"]
    assert (here / "o.csv").read_text().splitlines()[0] == "status,amount"


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_results_without_rows_are_the_same(ending: str, here: Path, running_gateway: GatewayProcess) -> None:
    (here / "totals.py").write_text("def transform(orders):\n    return orders[orders.amount > 100]\n")
    assert call(here, *RUN, "--out", f"before.{ending}", gateway=running_gateway).returncode == 0
    against = (*RUN, "--against", f"before.{ending}", "--key", "status", "--quiet")
    for out in ((), ("--out", "now.jsonl")):
        same = call(here, *against, *out, gateway=running_gateway)
        assert (same.returncode, same.stdout.splitlines()[-1]) == (
            0, f"same as before.{ending}: columns, types and rows (tolerance 1e-09)",
        ), same.stderr  # fmt: skip


def test_against_an_earlier_result_says_which_cells_changed(here: Path, running_gateway: GatewayProcess) -> None:
    assert call(here, *RUN, "--out", "before.jsonl", gateway=running_gateway).returncode == 0
    against = (*RUN, "--against", "before.jsonl", "--key", "status", "--quiet")
    same = call(here, *against, gateway=running_gateway)
    assert (same.returncode, same.stdout.splitlines()[0][:20]) == (0, "same as before.jsonl")
    (here / "orders.csv").write_text("status,amount\npaid,10.5\nlost,3\npaid,4\n")
    other = call(here, *against, gateway=running_gateway)
    assert other.returncode == 4
    assert "rows: 1 added, 1 removed, 1 changed" in other.stdout
    assert "paid: amount 15 -> 14.5" in other.stdout


def test_result_that_cannot_be_compared_is_shown(here: Path, running_gateway: GatewayProcess) -> None:
    against = ("--against", "orders.csv", "--key", "status", "--quiet")
    done = call(here, *RUN, *against, gateway=running_gateway)
    assert done.returncode == 2
    assert ["paid", "15"] in [line.split() for line in done.stdout.splitlines()]
    said = "not compared with orders.csv: two rows of the earlier result have the same key status: 'paid'"
    assert done.stderr.splitlines()[-1] == f"transform-gateway: {said}"


@pytest.mark.parametrize(
    ("ending", "said"),
    [
        ("csv.gz", "same as before.csv.gz"),
        ("json", "same as before.json"),
        ("xlsx", "same as before.xlsx"),  # which does not tell 15 from 15.0
    ],
)
def test_against_a_file_of_another_kind(ending: str, said: str, here: Path, running_gateway: GatewayProcess) -> None:
    assert call(here, *RUN, "--out", f"before.{ending}", gateway=running_gateway).returncode == 0
    same = call(here, *RUN, "--against", f"before.{ending}", "--key", "status", "--quiet", gateway=running_gateway)
    assert same.returncode == 0, same.stderr
    assert said in same.stdout


KINDS = """
import datetime
from decimal import Decimal

import pandas as pd


def transform(orders):
    values = {
        "date": datetime.date(2024, 1, 15),
        "old": datetime.date(1850, 1, 15),
        "moment": pd.Timestamp("2024-01-15 10:30:00.123456"),
        "instant": pd.Timestamp("2024-01-15 10:30", tz="UTC"),
        "decimal": Decimal("1.10"),
        "large": 1 << 60,
        "text": "=1+1",
    }
    return pd.DataFrame({"k": [1, 2], **{n: [v, None] for n, v in values.items()}, "mixed": [values["date"], values["old"]]})
"""


def test_against_a_workbook_compares_what_a_workbook_keeps(here: Path, running_gateway: GatewayProcess) -> None:
    (here / "totals.py").write_text(KINDS)
    assert call(here, *RUN, "--out", "before.xlsx", gateway=running_gateway).returncode == 0
    arguments = (*RUN, "--against", "before.xlsx", "--key", "k", "--quiet")
    same = call(here, *arguments, gateway=running_gateway)
    assert same.returncode == 0, same.stderr
    assert "same as before.xlsx" in same.stdout
    (here / "totals.py").write_text(KINDS.replace("1.10", "1.20").replace("1850, 1, 15)", "1850, 1, 16)"))
    other = call(here, *arguments, gateway=running_gateway)
    assert other.returncode == 4, other.stderr
    assert (
        "rows: 0 added, 0 removed, 2 changed\n  old: 1 cell changed\n  decimal: 1 cell changed\n  mixed: 1 cell"
        in other.stdout
    )
    frame = pd.DataFrame({"k": [1, 2], "decimal": [1.2, None]})  # a number, as people write it
    frame.to_excel(here / "before.xlsx", index=False)
    number = call(here, *arguments, gateway=running_gateway)
    assert "decimal: " not in number.stdout.replace("type of decimal: float -> decimal", ""), number.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--against", "gone.csv"), "--against gone.csv: no such file"),
        (("--against", "totals.py"), "unknown ending '.py'"),
        (("--key", "status"), "--key: needs --against or --watch"),
        (("--head", "0"), "--head 0: expected a number of rows above 0"),
        (("--tolerance", "2"), "--tolerance 2: expected a number from 0 to below 1"),
        (("--tabel", "x"), "unknown option --tabel; did you mean --table?"),
    ],
)
def test_wrong_option_is_refused_before_anything_runs(arguments: tuple[str, ...], said: str, here: Path) -> None:
    done = call(here, *RUN, *arguments)
    assert done.returncode == 2
    assert said in done.stderr


def test_watch_runs_again_after_a_change_and_survives_a_failure(here: Path, running_gateway: GatewayProcess) -> None:
    watching = pexpect.spawn(
        sys.executable,
        ["-m", "gateway", *RUN, "--watch", "--key", "status"],
        cwd=str(here),
        env=environment(running_gateway),
        encoding="utf-8",
        timeout=SECONDS,
        dimensions=(40, 100),
    )
    watching.expect_exact("watching for changes")
    (here / "totals.py").write_text("def transform(orders):\n    return orders[['amount']]\n")
    watching.expect_exact("not compared with the run before: the key column 'status' is not in both results")
    watching.expect_exact("watching for changes")
    (here / "totals.py").write_text(TOTALS)
    watching.expect_exact("not compared")
    watching.expect_exact("watching for changes")
    (here / "totals.py").write_text("def transform(orders):\n    return orders['gone']\n")
    watching.expect_exact("user_error")
    watching.expect_exact("watching for changes")
    (here / "totals.py").write_text(TOTALS)
    (here / "orders.csv").write_text("status,amount\npaid,10\nopen,3\n")
    watching.expect_exact("paid: amount 15 -> 10")
    watching.expect_exact("watching for changes")
    watching.kill(signal.SIGINT)
    watching.expect(pexpect.EOF)
    watching.close()
    assert watching.exitstatus == 0


def test_watch_notices_a_change_of_a_table_that_it_keeps_parsed(here: Path) -> None:
    with (here / "orders.csv").open("w") as file:
        file.write("status,amount\n")
        file.writelines(f"paid,{number}.5\n" for number in range(800_000))
    assert (here / "orders.csv").stat().st_size > WORTHWHILE_BYTES
    watching = pexpect.spawn(
        sys.executable,
        ["-m", "gateway", *RUN, "--watch", "--key", "status"],
        cwd=str(here),
        env=environment(),
        encoding="utf-8",
        timeout=SECONDS,
        dimensions=(40, 100),
    )
    watching.expect_exact("watching for changes")
    (here / "totals.py").write_text(TOTALS + "\n")
    watching.expect_exact("same as the run before")
    watching.expect_exact("watching for changes")
    (here / "orders.csv").write_text("status,amount\npaid,10\n")
    watching.expect(r"paid: amount \S+ -> 10\b")
    watching.expect_exact("watching for changes")
    watching.kill(signal.SIGINT)
    watching.expect(pexpect.EOF)
    watching.close()
    assert watching.exitstatus == 0


def test_watch_goes_on_while_a_table_is_replaced(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = here / "orders.csv"

    class Removed(ParsedTables):
        """Removes the table between the check of the options and its use, as another process may."""

        def parsed(self, name: str, path: Path, manifest: Path | None) -> Path:
            table.unlink()
            return super().parsed(name, path, manifest)

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.delenv("TRANSFORM_GATEWAY_URL", raising=False)
    monkeypatch.setattr(run, "ParsedTables", Removed)
    monkeypatch.setattr(run, "_client", lambda *_: contextlib.nullcontext(TransformClient("http://127.0.0.1:9")))
    monkeypatch.setattr(run, "time", SimpleNamespace(sleep=interrupt))
    arguments = [str(here / "totals.py"), "--table", f"orders={table}", "--watch"]
    assert run.run(run._options("run", arguments)) == 0
    watching = "watching for changes; Ctrl-C ends"
    assert capsys.readouterr().err.splitlines() == [
        f"transform-gateway: {table}: No such file or directory",
        watching,
        f"transform-gateway: {table} (table orders): no such file",
        watching,
    ]
