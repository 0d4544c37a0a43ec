"""A slot is free when nothing of its job lives, and until then the job's answer may go first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gateway.jobs.runner import SlotCount
from gateway.local.slots import Slots


class Job:
    """A job in a slot: its answer and the end of its processes come when the test says so."""

    def __init__(self) -> None:
        self.answered = asyncio.Event()
        self.terminating = asyncio.Event()
        self.may_end = asyncio.Event()

    async def terminate(self) -> None:
        self.terminating.set()
        await self.may_end.wait()


@asynccontextmanager
async def one_slot(*, is_wanted: bool = False) -> AsyncIterator[tuple[Slots, Job, asyncio.Event]]:
    """Yield a slot, the job that leaves it, and the event that it is free."""
    slots, job, freed = Slots(1, lambda: is_wanted), Job(), asyncio.Event()
    slots.on_free(freed.set)
    assert slots.take()
    assert not slots.take()
    slots.leave(job.answered, job.terminate)
    async with asyncio.timeout(60):
        yield slots, job, freed
    await slots.aclose()


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_slot_is_busy_until_its_job_has_terminated() -> None:
    async with one_slot(is_wanted=True) as (slots, job, freed):
        assert slots.count() == SlotCount(1, busy=1, ending=1), "at once: the caller may have its answer already"
        await job.terminating.wait()
        await turns()
        assert not slots.take()
        job.may_end.set()
        await freed.wait()
        assert slots.count() == SlotCount(1)
        assert slots.take()


async def test_the_answer_goes_before_the_end_of_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.local.slots.ANSWER_FIRST_SECONDS", 60.0)
    async with one_slot() as (_, job, _):
        await turns()
        assert not job.terminating.is_set()
        job.answered.set()
        await job.terminating.wait()


@pytest.mark.parametrize(("patience_seconds", "is_wanted"), [(60.0, True), (0.01, False)], ids=["wanted", "slow"])
async def test_the_end_of_the_processes_does_not_wait_for_a_slow_answer(
    monkeypatch: pytest.MonkeyPatch, patience_seconds: float, is_wanted: bool
) -> None:
    monkeypatch.setattr("gateway.local.slots.ANSWER_FIRST_SECONDS", patience_seconds)
    async with one_slot(is_wanted=is_wanted) as (_, job, _):
        await job.terminating.wait()


@pytest.mark.parametrize("begun", [True, False])
async def test_closing_loses_no_slot(begun: bool) -> None:
    async with one_slot(is_wanted=True) as (slots, job, freed):
        if begun:
            await job.terminating.wait()
        await slots.aclose()
        await freed.wait()
        assert slots.count() == SlotCount(1)
