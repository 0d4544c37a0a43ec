"""Fixtures of the tests of the shim."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.transform_shim.jobs import Outcome, run_job
from transform_shim.job.warm_up import convert_every_type


@pytest.fixture(scope="session", autouse=True)
def _warm() -> None:
    convert_every_type()


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Outcome]:
    """Run jobs in forked children, each in a folder of its own: ``job(code, tables, **options)``."""
    count = 0

    def run(*given: object, **options: object) -> Outcome:
        nonlocal count
        count += 1
        return run_job(tmp_path / str(count), *given, **options)  # type: ignore[arg-type]

    return run
