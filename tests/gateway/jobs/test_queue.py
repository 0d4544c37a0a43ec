"""A slot goes to the job that has waited longest, and to no job that has given up."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from gateway.core.errors import FailureCode, JobFailed
from gateway.jobs.queue import JobQueue


class FewSlots:
    """Stands in for the slots of a runner."""

    def __init__(self, free: int) -> None:
        self.free = free
        self.on_free: Any = None

    def take(self) -> bool:
        self.free -= (taken := self.free > 0)
        return taken

    def release(self) -> None:
        self.free += 1
        self.on_free()


class Run:
    """Stands in for run and record of one job."""

    def __init__(self, slots: FewSlots) -> None:
        self.take_slot = slots.take
        self.leave_slot = slots.release
        self.started_at: float | None = None

    def start(self) -> None:
        self.started_at = 1.0


def queue_of(slots: FewSlots, timeout_seconds: float = 60.0) -> JobQueue:
    queue = JobQueue(timeout_seconds)
    slots.on_free = queue.advance
    return queue


def wait(queue: JobQueue, slots: FewSlots, *, is_again: bool = False) -> tuple[Run, asyncio.Task[None]]:
    run = Run(slots)
    return run, asyncio.create_task(queue.wait_for_slot(cast("Any", run), cast("Any", run), is_again=is_again))


async def test_jobs_get_their_slots_in_order() -> None:
    slots = FewSlots(0)
    queue = queue_of(slots)
    waiting = [wait(queue, slots) for _ in range(3)]
    await asyncio.sleep(0)
    assert len(queue) == 3
    for number in range(3):
        slots.release()
        await waiting[number][1]
        assert [run.started_at is not None for run, _ in waiting] == [True] * (number + 1) + [False] * (2 - number)


async def test_a_job_that_lost_its_slot_comes_before_those_that_wait() -> None:
    slots = FewSlots(0)
    queue = queue_of(slots)
    waits, lost = wait(queue, slots), wait(queue, slots, is_again=True)
    await asyncio.sleep(0)
    slots.release()
    await lost[1]
    assert waits[0].started_at is None
    slots.free = 1  # before anybody was told
    await wait(queue, slots, is_again=True)[1]
    assert len(queue) == 1
    waits[1].cancel()


async def test_a_turn_that_comes_together_with_a_cancel_passes_the_slot_on() -> None:
    slots = FewSlots(0)
    queue = queue_of(slots)
    (first, cancelled), (second, served) = wait(queue, slots), wait(queue, slots)
    await asyncio.sleep(0)
    slots.release()
    assert first.started_at is not None
    cancelled.cancel()
    await asyncio.wait({cancelled})
    await served
    assert (first.started_at, second.started_at is not None) == (None, True)
    assert (slots.free, len(queue)) == (0, 0)


async def test_a_job_that_gave_up_takes_no_slot() -> None:
    slots = FewSlots(0)
    queue = queue_of(slots, timeout_seconds=0.01)
    _, impatient = wait(queue, slots)
    with pytest.raises(JobFailed) as failure:
        await impatient
    assert failure.value.code is FailureCode.QUEUE_TIMEOUT
    slots.release()
    assert (slots.free, len(queue)) == (1, 0)


async def test_one_event_may_free_several_slots() -> None:
    slots = FewSlots(0)
    queue = queue_of(slots)
    waiting = [wait(queue, slots)[1] for _ in range(3)]
    await asyncio.sleep(0)
    slots.free = 1
    slots.release()
    await asyncio.wait(waiting[:2])
    assert (slots.free, len(queue)) == (0, 1)
    waiting[2].cancel()
