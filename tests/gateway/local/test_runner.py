"""The options that the local runner gives to the kernels that it boots."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import pytest

from gateway.core.cancellation import StopSignal
from gateway.core.events import EventLog
from gateway.core.job import InputTable, Job, UrlDelivery, UrlSource
from gateway.core.settings import Settings
from gateway.local.kernel import JobKernel
from gateway.local.runner import LocalRunner
from gateway.storage import KeptResultStore, ObjectClient


async def test_a_kernel_is_started_with_the_urgency_of_a_waiting_job(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In the queue as well as at the claim: it then leaves out what only pays while nobody waits."""
    asked: list[Callable[[], bool]] = []

    async def boot(_parts: Any, in_demand: Callable[[], bool]) -> JobKernel:
        asked.append(in_demand)
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr("gateway.local.runner.start_kernel", boot)
    settings = Settings(state_dir=tmp_path)
    (tmp_path / "run").mkdir()
    runner = LocalRunner(settings, cast("Any", Mock()), KeptResultStore(settings), ObjectClient(5.0))
    runner.start()
    await asyncio.sleep(0)
    assert [in_demand() for in_demand in asked] == [False] * (settings.slots + settings.ready_kernels)
    run = runner.open(Job(1, "", 30, UrlDelivery("http://localhost/o")), EventLog(1, 1), StopSignal(), "x")
    assert asked[0]()
    await run.close()
    assert not asked[0]()
    await runner.aclose()


async def test_a_run_is_closed_although_its_inputs_cannot_be_looked_up(tmp_path: Path) -> None:
    """As on a disk with errors; here the names are too long."""
    settings = Settings(state_dir=tmp_path)
    runner = LocalRunner(settings, cast("Any", Mock()), KeptResultStore(settings), ObjectClient(5.0))
    table = InputTable("t", UrlSource("http://localhost/t"), None)
    job = Job(1, "def transform(t): ...", 30, UrlDelivery("http://localhost/o"), tables=(table,))
    run = runner.open(job, EventLog(1, 1), StopSignal(), "x" * 300)
    await asyncio.sleep(0)
    await run.close()
