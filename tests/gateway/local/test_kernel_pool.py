"""Ready kernels are handed out once, alive and young, and the refill begins at the claim."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from gateway.core.errors import FailureCode, JobFailed
from gateway.local.kernel_pool import KernelPool
from tests.gateway.http.harness import eventually


@dataclass(eq=False)
class Kernel:
    alive: bool = True
    age_seconds: float = 0.0
    released: bool = False
    started_by: str = "fork"

    async def release(self) -> None:
        self.released = True


@dataclass
class Starter:
    """Starts kernels when the test lets it; fails as often as it is told."""

    failures: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    made: list[Kernel] = field(default_factory=list)

    async def __call__(self) -> Kernel:
        await self.gate.wait()
        if self.failures:
            self.failures -= 1
            raise JobFailed(FailureCode.KERNEL_START_FAILED, "no luck")
        self.made.append(Kernel())
        return self.made[-1]


def pool(starter: Starter, size: int = 2) -> KernelPool:
    return KernelPool(starter, size, max_age_seconds=100)  # type: ignore[arg-type]


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_claim_takes_a_ready_kernel_and_the_refill_begins() -> None:
    starter = Starter()
    starter.gate.set()
    kernels = pool(starter)
    kernels.refill()
    await turns()
    assert kernels.ready == 2
    first, second = await kernels.acquire(), await kernels.acquire()
    assert first is not second
    await turns()
    assert (kernels.ready, len(starter.made)) == (2, 4)
    assert (kernels.counters.hits, kernels.counters.misses) == (2, 0)
    await kernels.aclose()


async def test_the_refill_lets_the_job_go_first_while_another_kernel_is_ready() -> None:
    starter = Starter()
    starter.gate.set()
    kernels = pool(starter)
    kernels.refill()
    await turns()
    await kernels.acquire()
    await turns()
    assert (kernels.ready, kernels.starting) == (1, 0)
    kernels.refill()  # the job is answered
    await turns()
    assert kernels.ready == 2
    await kernels.acquire()
    async with asyncio.timeout(60):  # nobody says that the job is answered
        while kernels.ready < 2:  # noqa: ASYNC110 - a timer of the loop sets no event of ours
            await asyncio.sleep(0.01)
    await kernels.aclose()


async def test_acquire_ends_when_no_kernel_gets_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.local.kernel_pool.ACQUIRE_SECONDS", 0.02)
    starter = Starter()
    kernels = pool(starter, size=1)
    with pytest.raises(JobFailed, match="No kernel was ready within"):
        await kernels.acquire()
    starter.gate.set()
    await turns()
    assert kernels.ready == 1, "the kernel that came too late serves the next one"
    await kernels.aclose()


async def test_a_claim_without_a_ready_kernel_waits_for_the_one_on_its_way() -> None:
    starter = Starter()
    kernels = pool(starter, size=1)
    kernels.refill()
    acquiring = asyncio.create_task(kernels.acquire())
    await turns()
    assert (kernels.starting, acquiring.done()) == (1, False)
    starter.gate.set()
    assert await acquiring is starter.made[0]  # type: ignore[comparison-overlap]
    assert kernels.counters.misses == 1
    await turns()
    assert kernels.ready == 1, "the refill begins after a miss too"
    await kernels.aclose()


async def test_dead_kernels_are_ended_and_not_handed_out() -> None:
    starter = Starter()
    starter.gate.set()
    kernels = pool(starter, size=2)
    kernels.refill()
    await turns()
    bad = starter.made[0]
    bad.alive = False
    assert await kernels.acquire() is starter.made[1]  # type: ignore[comparison-overlap]
    await turns()
    assert bad.released
    assert kernels.counters.discarded == 1
    await kernels.aclose()


async def test_an_idle_pool_replaces_old_kernels_so_that_the_next_job_does_not_wait() -> None:
    starter = Starter()
    starter.gate.set()
    kernels = KernelPool(starter, 2, max_age_seconds=0.01)  # type: ignore[arg-type]
    kernels.refill()
    await turns()
    first = starter.made[0]
    first.age_seconds = 1.0
    assert await eventually(lambda: first.released and kernels.ready == 2)
    assert await kernels.acquire() is not first  # type: ignore[comparison-overlap]
    assert (kernels.counters.hits, kernels.counters.discarded) == (1, 1)
    await kernels.aclose()


async def test_one_failed_start_is_no_failure_of_the_waiting_job() -> None:
    starter = Starter(failures=1)
    starter.gate.set()
    kernels = pool(starter, size=1)
    assert await kernels.acquire() is starter.made[0]  # type: ignore[comparison-overlap]
    assert kernels.counters.start_failures == 1
    await kernels.aclose()


async def test_starts_that_go_on_failing_tell_the_waiting_job_why() -> None:
    starter = Starter(failures=2)
    starter.gate.set()
    kernels = pool(starter, size=1)
    with pytest.raises(JobFailed, match="no luck"):
        await kernels.acquire()
    assert kernels.counters.start_failures == 2
    await kernels.aclose()


async def test_a_claim_that_is_given_up_loses_no_kernel() -> None:
    starter = Starter()
    kernels = pool(starter, size=1)
    acquiring = asyncio.create_task(kernels.acquire())
    await turns()
    acquiring.cancel()
    await turns()
    starter.gate.set()
    await turns()
    assert kernels.ready == 1
    await kernels.aclose()


async def test_closing_ends_every_kernel_and_every_claim() -> None:
    starter = Starter()
    starter.gate.set()
    kernels = pool(starter, size=1)
    kernels.refill()
    await turns()
    starter.gate.clear()
    taken = await kernels.acquire()
    waiting = asyncio.create_task(kernels.acquire())
    await turns()
    await kernels.aclose()
    with pytest.raises(JobFailed):
        await waiting
    assert [kernel.released for kernel in starter.made if kernel is not taken] == [True] * (len(starter.made) - 1)
