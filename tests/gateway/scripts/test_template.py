"""What `transform-gateway new` writes runs, is without findings, and its tests pass."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gateway import cli
from tests.support.gateway_process import GatewayProcess

FILES = [
    "README.md", "monthly_totals.ipynb", "monthly_totals.py", "monthly_totals.schema.yaml", "months.py",
    "tables/orders.csv", "tables/orders.schema.yaml", "test_monthly_totals.py",
]  # fmt: skip


def files_of(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def run_pytest(directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the tests of a project with the plugin alone, wherever the project is installed."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "gateway.testing.plugin"],
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1", **environment},
        cwd=directory, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_new_project_passes_its_own_tests_and_the_check(
    running_gateway: GatewayProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = tmp_path / "sales"
    assert cli.main(["new", str(project)]) == 0
    assert files_of(project) == FILES
    capsys.readouterr()
    options = ["--table", f"orders={project}/tables/orders.csv", "--library", str(project / "months.py")]
    assert cli.main(["check", str(project / "monthly_totals.py"), *options]) == 0
    assert cli.main(["check", str(project / "monthly_totals.ipynb"), *options[:2]]) == 0
    assert capsys.readouterr().out.count("no problems found") == 2
    # without the URL, the fixture starts a gateway of its own, which takes longer and is tested with `run`
    done = run_pytest(project, TRANSFORM_GATEWAY_URL=running_gateway.url, AUTH_TOKEN=running_gateway.token)
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout


def test_wrong_transform_fails_the_tests_with_the_cells_that_differ(
    running_gateway: GatewayProcess, tmp_path: Path
) -> None:
    assert cli.main(["new", str(tmp_path)]) == 0
    script = tmp_path / "monthly_totals.py"
    script.write_text(script.read_text().replace('total="sum"', 'total="max"'))
    done = run_pytest(tmp_path, TRANSFORM_GATEWAY_URL=running_gateway.url, AUTH_TOKEN=running_gateway.token)
    assert done.returncode == 1
    assert "total: 1 cell changed" in done.stdout
    assert "2 passed" in done.stdout


def test_nothing_is_overwritten_and_nothing_is_left_half_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "test_monthly_totals.py").write_text("mine")
    assert cli.main(["new", str(tmp_path)]) == 2
    assert "test_monthly_totals.py already exists" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["test_monthly_totals.py"]
    assert (tmp_path / "test_monthly_totals.py").read_text() == "mine"
