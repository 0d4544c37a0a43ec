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
from gateway.core.job import Job, UrlDelivery
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
