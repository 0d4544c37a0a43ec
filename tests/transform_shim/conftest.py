"""What the tests of the shim share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.transform_shim.jobs import Outcome, run_job
from transform_shim import job as shim


@pytest.fixture(scope="session", autouse=True)
def _warm() -> None:
    shim.warm_up()


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Outcome]:
    """Run jobs in forked children, each in a folder of its own: ``job(code, tables, **options)``."""
    count = 0

    def run(*given: object, **options: object) -> Outcome:
        nonlocal count
        count += 1
        return run_job(tmp_path / str(count), *given, **options)  # type: ignore[arg-type]

    return run
