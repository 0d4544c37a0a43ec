"""What the runner of this machine tells the kernels that it boots."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from gateway.jobs.events import EventLog
from gateway.jobs.local import LocalRunner
from gateway.jobs.model import Job, UrlDelivery
from gateway.jobs.stop import StopSignal
from gateway.kernels.kernel import JobKernel
from gateway.settings import Settings


async def test_a_kernel_knows_whether_a_job_waits_for_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In the queue as well as at the claim: it then leaves out what only pays while nobody waits."""
    asked: list[Callable[[], bool]] = []

    async def boot(_parts: Any, in_demand: Callable[[], bool]) -> JobKernel:
        asked.append(in_demand)
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr("gateway.jobs.local.start_kernel", boot)
    settings = Settings(state_dir=tmp_path)
    (tmp_path / "run").mkdir()
    runner = LocalRunner(settings, cast("Any", None), cast("Any", None))
    runner.start()
    await asyncio.sleep(0)
    assert [in_demand() for in_demand in asked] == [False] * (settings.slots + settings.ready_kernels)
    run = runner.open(Job(1, "", 30, UrlDelivery("http://localhost/o")), EventLog(1, 1), StopSignal(), "x")
    assert asked[0]()
    await run.close()
    assert not asked[0]()
    await runner.aclose()
