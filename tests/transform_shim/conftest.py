"""Fixtures of the tests of the shim."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.transform_shim.jobs import Outcome, run_job
from transform_shim.job.warm_up import convert_every_type
from transform_shim.reading.jsonl import small_blocks
from transform_shim.writing.lines import rows


@pytest.fixture(scope="session", autouse=True)
def _warm() -> None:
    convert_every_type()


@pytest.fixture(params=["small", "large"])
def each_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read and write the small tables of a test in Python, as they are, and with Arrow, as large ones are."""
    if request.param == "large":
        monkeypatch.setattr(small_blocks, "SMALL_BYTES", -1)
        monkeypatch.setattr(rows, "_FEW_CELLS", -1)


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Outcome]:
    """Run jobs in forked children, each in a folder of its own: ``job(code, tables, **options)``."""
    count = 0

    def run(*given: object, **options: object) -> Outcome:
        nonlocal count
        count += 1
        return run_job(tmp_path / str(count), *given, **options)  # type: ignore[arg-type]

    return run
