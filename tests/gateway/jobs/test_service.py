"""Admission, order and answers of the queue, over a runner whose jobs end when the test says so."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.core.cancellation import StopSignal
from gateway.core.errors import (
    BrokerDown,
    Conflict,
    FailureCode,
    JobFailed,
    NotFound,
    QueueFull,
    ShuttingDown,
    StorageDown,
)
from gateway.core.events import JobLog
from gateway.core.job import Job, KeptDelivery, UrlDelivery, Verdict
from gateway.core.settings import Settings
from gateway.core.uploads import Uploads
from gateway.jobs.admission import check_storage
from gateway.jobs.runner import KeptResult, RunnerStatus, SlotCount
from gateway.jobs.service import JobService
from gateway.local.slots import Slots
from gateway.storage import FetchedTable
from gateway.storage.embedded_s3.server import EmbeddedS3, EmbeddedS3Options


@dataclass
class HeldRun:
    """A run that ends when the test says so, or when it is told to stop."""

    job: Job
    stop: StopSignal
    runs: list[Job]
    slots: Slots
    may_end: asyncio.Event = field(default_factory=asyncio.Event)
    verdict: Verdict = field(default_factory=lambda: Verdict(None, "", 0))
    lost_verdict: Verdict | None = None
    inputs: tuple[FetchedTable, ...] = ()
    terminated: asyncio.Event = field(default_factory=asyncio.Event)
    answered: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.terminated.set()

    def take_slot(self) -> bool:
        return self.slots.take()

    def leave_slot(self) -> None:
        self.slots.leave(self.answered, self.terminate)

    async def execute(self) -> None:
        self.runs.append(self.job)
        try:
            await self.stop.guard(self.may_end.wait())
        except JobFailed as failure:
            self.verdict = Verdict(failure.code, failure.message, failure.exit_code)

    async def terminate(self) -> None:
        await self.terminated.wait()

    def fail(self, verdict: Verdict) -> None:
        self.verdict = verdict

    async def deliver(self) -> Verdict:
        return self.verdict

    async def close(self) -> None:
        self.answered.set()


@dataclass
class HeldRunner:
    opened: dict[int | str, HeldRun] = field(default_factory=dict)
    ran: list[Job] = field(default_factory=list)
    pool: Slots = field(default_factory=lambda: Slots(1, lambda: True))
    dropped: list[str] = field(default_factory=list)
    computed: bool = False

    def on_slot_free(self, callback: Callable[[], None]) -> None:
        self.pool.on_free(callback)

    def slots(self) -> SlotCount:
        return self.pool.count()

    def open(self, job: Job, log: JobLog, stop: StopSignal, execution_id: str, uploads: Uploads | None) -> HeldRun:
        self.opened[job.request_id] = HeldRun(job, stop, self.ran, self.pool)
        return self.opened[job.request_id]

    def runs_elsewhere(self, job: Job) -> bool:
        return False

    def has_output(self, execution_id: str) -> bool:
        return self.computed

    def status(self) -> RunnerStatus:
        return RunnerStatus(True, self.slots())

    def kept_result(self, execution_id: str) -> KeptResult | None:
        return None

    def drop_result(self, execution_id: str) -> None:
        self.dropped.append(execution_id)

    async def aclose(self) -> None:
        await self.pool.aclose()


def job(request_id: int | str) -> Job:
    return Job(request_id, "", 30, UrlDelivery("http://localhost/o"))


@pytest.fixture
def runner() -> HeldRunner:
    return HeldRunner()


def make_service(runner: HeldRunner, tmp_path: Path, **settings: float) -> JobService:
    made = Settings(state_dir=tmp_path, **settings)  # type: ignore[arg-type]
    return JobService(made, runner)


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_first_come_first_served(runner: HeldRunner, tmp_path: Path) -> None:
    service = make_service(runner, tmp_path)
    records = [await service.submit(job(n)) for n in range(3)]
    await turns()
    assert [j.request_id for j in runner.ran] == [0]
    assert [r.request_id for r in service.queued()] == [1, 2]
    for n in range(3):
        runner.opened[n].may_end.set()
        await records[n].wait()
    await turns()
    assert [j.request_id for j in runner.ran] == [0, 1, 2]
    assert service.status().busy_slots == 0
    assert all(run.answered.is_set() for run in runner.opened.values())


async def test_the_answer_does_not_wait_for_the_end_of_the_processes_but_the_next_job_does(
    runner: HeldRunner, tmp_path: Path
) -> None:
    service = make_service(runner, tmp_path, queue_length=0)
    first = await service.submit(job(1))
    await turns()
    runner.opened[1].terminated.clear()
    runner.opened[1].may_end.set()
    assert (await first.wait()).ok
    second = await service.submit(job(2))  # with no place to wait in: the slot is as good as free
    await turns()
    assert [j.request_id for j in runner.ran] == [1]
    runner.opened[1].terminated.set()
    runner.opened[2].may_end.set()
    assert (await second.wait()).ok
    await turns()
    assert service.status().busy_slots == 0


async def test_a_full_queue_answers_at_once_with_its_size(runner: HeldRunner, tmp_path: Path) -> None:
    service = make_service(runner, tmp_path, queue_length=1)
    await service.submit(job(1))
    await turns()
    await service.submit(job(2))
    await turns()
    with pytest.raises(QueueFull) as full:
        await service.submit(job(3))
    assert full.value.details["queue_size"] == 1
    assert service.counters.rejected == 1
    await service.aclose()


async def test_a_started_job_takes_no_place_in_the_queue(tmp_path: Path) -> None:
    """From the moment on that a caller has its answer there is room for its next job, however little has gone on."""
    for passed in range(30):
        runner = HeldRunner()
        service = make_service(runner, tmp_path, queue_length=1)
        first, _ = await service.submit(job(1)), await service.submit(job(2))
        await turns()
        runner.opened[1].may_end.set()
        await first.wait()
        await turns(passed)
        await service.submit(job(3))
        await service.aclose()


@pytest.mark.parametrize(("delivering", "is_refused"), [(2, False), (3, True)])
def test_deliveries_of_all_slots_refuse_nothing(delivering: int, is_refused: bool) -> None:
    """With few descriptors the number of deliveries may be below that of the slots."""
    going: Any = SimpleNamespace(log=SimpleNamespace(stage="deliver"))
    store: Any = SimpleNamespace(live=lambda: [going] * delivering)
    request: Any = SimpleNamespace(delivery=UrlDelivery("https://bucket.example/o", None, None, None, None))
    settings = Settings(max_deliveries=1, slots=3)
    with pytest.raises(StorageDown) if is_refused else contextlib.nullcontext():
        check_storage(request, None, store, settings)


async def test_a_job_that_needs_the_embedded_s3_server_is_refused_while_it_does_not_run(
    runner: HeldRunner, tmp_path: Path
) -> None:
    stopped = EmbeddedS3(EmbeddedS3Options(tmp_path / "s3"))
    service = JobService(Settings(state_dir=tmp_path), runner, internal_s3=stopped)
    with pytest.raises(StorageDown):
        await service.submit(job(1))
    await service.submit(Job(2, "", 30, KeptDelivery()))
    await service.aclose()


async def test_an_id_that_runs_is_a_conflict_but_its_json_type_counts(runner: HeldRunner, tmp_path: Path) -> None:
    service = make_service(runner, tmp_path)
    await service.submit(job(7))
    with pytest.raises(Conflict):
        await service.submit(job(7))
    await service.submit(job("7"))
    await service.aclose()


@pytest.mark.parametrize("failing", ["claim", "announce"])
async def test_a_job_that_the_other_gateways_cannot_learn_of_is_not_accepted(
    failing: str, runner: HeldRunner, tmp_path: Path
) -> None:
    done: list[str] = []

    class Claims:
        def check(self, job: Job) -> None: ...

        def new_id(self) -> str:
            return "job"

        async def claim(self, *_: object) -> None:
            await self.step("claim")

        async def announce(self, request_id: int | str, token_name: str | None) -> None:
            await self.step("announce")

        async def withdraw(self, execution_id: str) -> None:
            done.append(f"withdraw {execution_id}")

        async def release(self, execution_id: str) -> None: ...

        async def step(self, name: str) -> None:
            await asyncio.sleep(0)
            done.append(name)
            if name == failing:
                raise BrokerDown("no answer")

    service = JobService(Settings(state_dir=tmp_path), runner, claims=Claims())
    with pytest.raises(BrokerDown):
        await service.submit(job(1))
    assert (done[-2:], service.counters.rejected) == ([failing, "withdraw job"], 1)
    assert (service.queued(), service.running()) == ([], [])
    async with asyncio.timeout(60):
        while service._store.unfinished():  # noqa: ASYNC110 - nobody else waits for that
            await asyncio.sleep(0.01)
    assert all(run.answered.is_set() for run in runner.opened.values())  # closed, and never begun
    assert runner.ran == []
    await service.aclose()


async def test_waiting_too_long_is_a_queue_timeout_and_loses_no_slot(runner: HeldRunner, tmp_path: Path) -> None:
    service = make_service(runner, tmp_path, queue_timeout_seconds=0.05)
    first = await service.submit(job(1))
    await turns()
    verdict = await (await service.submit(job(2))).wait()
    assert (verdict.code, verdict.status) == (FailureCode.QUEUE_TIMEOUT, 504)
    runner.opened[1].may_end.set()
    await first.wait()
    await turns()
    third = await service.submit(job(3))
    runner.opened[3].may_end.set()
    assert (await third.wait()).ok


async def test_cancel_of_a_waiting_job_answers_and_never_runs_it(runner: HeldRunner, tmp_path: Path) -> None:
    service = make_service(runner, tmp_path)
    await service.submit(job(1))
    waiting = await service.submit(job(2))
    await turns()
    await service.cancel(2)
    assert (await waiting.wait()).code is FailureCode.CANCELLED
    with pytest.raises(NotFound):
        await service.cancel(2)
    with pytest.raises(NotFound):
        await service.cancel("1")
    runner.opened[1].may_end.set()
    await (await service.find(1)).wait()  # type: ignore[union-attr]
    assert [j.request_id for j in runner.ran] == [1]


async def test_cancel_around_the_moment_of_the_turn_loses_no_slot(tmp_path: Path) -> None:
    for passed in range(30):
        runner = HeldRunner()
        service = make_service(runner, tmp_path)
        first, second, third = [await service.submit(job(n)) for n in (1, 2, 3)]
        await turns()
        runner.opened[1].may_end.set()
        await first.wait()
        await turns(passed)
        await service.cancel(2)
        await second.wait()
        runner.opened[3].may_end.set()
        assert (await third.wait()).ok
        await turns()
        assert service.status().busy_slots == 0


async def test_drain_refuses_new_jobs_and_ends_the_rest(runner: HeldRunner, tmp_path: Path) -> None:
    service = make_service(runner, tmp_path, drain_seconds=0.05)
    running, waiting = await service.submit(job(1)), await service.submit(job(2))
    await turns()
    draining = asyncio.create_task(service.drain())
    await turns()
    with pytest.raises(ShuttingDown):
        await service.submit(job(3))
    await draining
    assert [(await r.wait()).code for r in (running, waiting)] == [FailureCode.SHUTTING_DOWN] * 2


async def test_a_job_that_the_drain_cannot_end_is_answered_with_the_stop(
    runner: HeldRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def deaf(self: HeldRun) -> None:
        await self.may_end.wait()

    monkeypatch.setattr(HeldRun, "execute", deaf)
    monkeypatch.setattr("gateway.jobs.service.CANCEL_GRACE_SECONDS", 0.05)
    service = make_service(runner, tmp_path, drain_seconds=0.05)
    record = await service.submit(job(1))
    await turns()
    await service.drain()
    await service.aclose()
    assert (await record.wait()).code is FailureCode.SHUTTING_DOWN


async def test_a_fault_of_the_runner_is_an_answer_without_a_stack(
    runner: HeldRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(self: HeldRun) -> None:
        raise ZeroDivisionError("a secret detail")

    monkeypatch.setattr(HeldRun, "execute", broken)
    service = make_service(runner, tmp_path)
    verdict = await (await service.submit(job(1))).wait()
    assert verdict.code is FailureCode.INTERNAL
    assert "secret" not in verdict.message
    await turns()
    assert service.status().busy_slots == 0
