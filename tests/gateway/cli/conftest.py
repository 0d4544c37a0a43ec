"""A directory with a table and scripts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gateway.cli.commands import SLEEPS, TOTALS


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "orders.csv").write_text("status,amount\npaid,10.5\nopen,3\npaid,4.5\n")
    (tmp_path / "totals.py").write_text(TOTALS)
    (tmp_path / "sleeps.py").write_text(SLEEPS)
    return tmp_path
