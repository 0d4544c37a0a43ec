"""Nothing that a block has started outlives it, and a failure comes out of a group bare."""

from __future__ import annotations

import asyncio

import pytest

from gateway.core.cancellation import StopSignal
from gateway.core.errors import FailureCode, JobFailed
from gateway.core.tasks import first_of, gather_two, started


class Step:
    """A step that never ends by itself and takes a moment to clean up."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.cleaned_up = False

    async def __call__(self) -> None:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            self.cleaned_up = True


async def test_tasks_of_a_block_end_with_it() -> None:
    step = Step()

    async def block() -> None:
        async with started(step(), asyncio.sleep(0)) as (endless, short):
            await first_of(endless, short)
            assert short.done()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await block()
    assert step.cleaned_up


@pytest.mark.parametrize(
    "causes",
    [(FailureCode.SHUTTING_DOWN,), (FailureCode.CANCELLED, FailureCode.SHUTTING_DOWN), (FailureCode.CANCELLED,)],
)
async def test_a_job_that_is_stopped_abandons_its_step_and_says_why(causes: tuple[FailureCode, ...]) -> None:
    step, stop = Step(), StopSignal()
    guarded = asyncio.create_task(stop.guard(step()))
    await step.begun.wait()
    for cause in causes:
        stop.request(cause)
    with pytest.raises(JobFailed) as failure:
        await guarded
    assert failure.value.code is causes[0], "the first cause holds"
    assert step.cleaned_up


def test_a_cancel_replaces_a_stop_until_the_verdict_is_known() -> None:
    stop, decided = StopSignal(), StopSignal()
    assert stop.request(FailureCode.SHUTTING_DOWN)
    assert stop.request(FailureCode.CANCELLED)
    assert stop.cause is FailureCode.CANCELLED
    assert decided.request(FailureCode.SHUTTING_DOWN)
    decided.decide()
    assert not decided.request(FailureCode.CANCELLED)
    assert decided.cause is FailureCode.SHUTTING_DOWN


async def test_a_step_that_is_done_counts_although_the_job_is_stopped() -> None:
    stop = StopSignal()

    async def step() -> int:
        stop.request(FailureCode.CANCELLED)
        return 7

    assert await stop.guard(step()) == 7


async def test_failure_of_one_of_two_comes_bare_and_ends_the_other() -> None:
    step = Step()

    async def fail() -> None:
        await step.begun.wait()
        raise JobFailed(FailureCode.INTERNAL, "one of them failed")

    with pytest.raises(JobFailed):
        await gather_two(step(), fail())
    assert step.cleaned_up
