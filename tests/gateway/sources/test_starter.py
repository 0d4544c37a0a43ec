"""What `transform-gateway new` writes runs, is without findings, and its test passes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gateway import cli
from tests.gateway_process import GatewayProcess


def test_new_transform_passes_its_own_test_and_the_check(
    running_gateway: GatewayProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["new", "monthly", "--dir", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["monthly.py", "monthly_orders.csv", "test_monthly.py"]
    capsys.readouterr()
    table = f"orders={tmp_path}/monthly_orders.csv"
    assert cli.main(["check", str(tmp_path / "monthly.py"), "--table", table]) == 0
    assert "nothing found" in capsys.readouterr().out
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_monthly.py"],
        # without the URL it would start a gateway of its own, which takes longer and is tested with `run`
        env={**os.environ, "TRANSFORM_GATEWAY_URL": running_gateway.url, "AUTH_TOKEN": running_gateway.token},
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


def test_nothing_is_overwritten_and_nothing_is_left_half_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "test_monthly.py").write_text("mine")
    assert cli.main(["new", "monthly", "--dir", str(tmp_path)]) == 2
    assert "test_monthly.py is there already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["test_monthly.py"]
    assert (tmp_path / "test_monthly.py").read_text() == "mine"


@pytest.mark.parametrize("name", ["a-b", "../x", "class", "", "a b"])
def test_name_must_be_one_of_a_module(tmp_path: Path, name: str) -> None:
    assert cli.main(["new", name, "--dir", str(tmp_path)]) == 2
    assert list(tmp_path.iterdir()) == []
