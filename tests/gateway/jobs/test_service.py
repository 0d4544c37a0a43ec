"""Admission, order and answers of the queue, over a runner that is told when to end."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gateway.errors import Conflict, FailureCode, JobFailed, NotFound, QueueFull, ShuttingDown
from gateway.jobs.events import EventLog
from gateway.jobs.model import Job, UrlDelivery, Verdict
from gateway.jobs.runner import RunnerStatus
from gateway.jobs.service import JobService
from gateway.jobs.stop import StopSignal
from gateway.settings import Settings
from gateway.storage import ResultStore


@dataclass
class HeldRun:
    """A run that ends when the test says so, or when it is told to stop."""

    job: Job
    stop: StopSignal
    runs: list[Job]
    may_end: asyncio.Event = field(default_factory=asyncio.Event)
    verdict: Verdict = field(default_factory=lambda: Verdict(None, "", 0))
    may_deliver: asyncio.Event = field(default_factory=asyncio.Event)
    settling: asyncio.Event = field(default_factory=asyncio.Event)
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    closed: bool = False

    def __post_init__(self) -> None:
        self.may_deliver.set()
        self.settled.set()

    async def execute(self) -> None:
        self.runs.append(self.job)
        try:
            await self.stop.guard(self.may_end.wait())
        except JobFailed as failure:
            self.verdict = Verdict(failure.code, failure.message, failure.exit_code)

    async def settle(self) -> None:
        self.settling.set()
        await self.settled.wait()

    def fail(self, verdict: Verdict) -> None:
        self.verdict = verdict

    async def deliver(self) -> Verdict:
        await self.may_deliver.wait()
        return self.verdict

    async def close(self) -> None:
        self.closed = True


@dataclass
class HeldRunner:
    opened: dict[int | str, HeldRun] = field(default_factory=dict)
    ran: list[Job] = field(default_factory=list)

    def open(self, job: Job, log: EventLog, stop: StopSignal, execution_id: str) -> HeldRun:
        self.opened[job.request_id] = HeldRun(job, stop, self.ran)
        return self.opened[job.request_id]

    def status(self) -> RunnerStatus:
        return RunnerStatus(True, {}, {}, {}, {})

    async def aclose(self) -> None:
        pass


def job(request_id: int | str) -> Job:
    return Job(request_id, "", 30, UrlDelivery("http://localhost/o"))


@pytest.fixture
def runner() -> HeldRunner:
    return HeldRunner()


def make_service(runner: HeldRunner, tmp_path: Path, **settings: float) -> JobService:
    made = Settings(state_dir=tmp_path, **settings)  # type: ignore[arg-type]
    return JobService(made, runner, ResultStore(made))


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_first_come_first_served(runner: HeldRunner, tmp_path: Path) -> None:
    service = make_service(runner, tmp_path)
    records = [service.submit(job(n)) for n in range(3)]
    await turns()
    assert [j.request_id for j in runner.ran] == [0]
    assert [r.request_id for r in service.queued()] == [1, 2]
    for n in range(3):
        runner.opened[n].may_end.set()
        await records[n].wait()
    await turns()
    assert [j.request_id for j in runner.ran] == [0, 1, 2]
    assert service.status().busy_slots == 0
    assert all(run.closed for run in runner.opened.values())


async def test_the_answer_does_not_wait_for_the_end_of_the_processes_but_the_next_job_does(
    runner: HeldRunner, tmp_path: Path
) -> None:
    service = make_service(runner, tmp_path, queue_length=0)
    first = service.submit(job(1))
    await turns()
    runner.opened[1].settled.clear()
    runner.opened[1].may_end.set()
    assert (await first.wait()).ok
    second = service.submit(job(2))  # with no place to wait in: the slot is as good as free
    await turns()
    assert [j.request_id for j in runner.ran] == [1]
    runner.opened[1].settled.set()
    runner.opened[2].may_end.set()
    assert (await second.wait()).ok
    await turns()
    assert service.status().busy_slots == 0


async def test_the_answer_goes_before_the_end_of_the_processes(
    runner: HeldRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.jobs.service.ANSWER_FIRST_SECONDS", 60.0)
    service = make_service(runner, tmp_path)
    record = service.submit(job(1))
    await turns()
    run = runner.opened[1]
    run.may_deliver.clear()
    run.may_end.set()
    await turns()
    assert not run.settling.is_set()
    run.may_deliver.set()
    await record.wait()
    await turns()
    assert run.settling.is_set()


@pytest.mark.parametrize(("patience_seconds", "jobs"), [(60.0, 2), (0.01, 1)], ids=["a job waits", "it takes long"])
async def test_the_end_of_the_processes_does_not_wait_for_a_slow_answer(
    runner: HeldRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience_seconds: float, jobs: int
) -> None:
    monkeypatch.setattr("gateway.jobs.service.ANSWER_FIRST_SECONDS", patience_seconds)
    service = make_service(runner, tmp_path)
    for number in range(jobs):
        service.submit(job(number))
    await turns()
    run = runner.opened[0]
    run.may_deliver.clear()
    run.may_end.set()
    async with asyncio.timeout(10):
        await run.settling.wait()
    await service.aclose()


async def test_a_full_queue_answers_at_once_with_its_size(runner: HeldRunner, tmp_path: Path) -> None:
    service = make_service(runner, tmp_path, queue_length=1)
    service.submit(job(1))
    await turns()
    service.submit(job(2))
    await turns()
    with pytest.raises(QueueFull) as full:
        service.submit(job(3))
    assert full.value.details["queue_size"] == 1
    assert service.counters.rejected == 1
    await service.aclose()


async def test_a_job_whose_turn_has_come_takes_no_place_in_the_queue(tmp_path: Path) -> None:
    """From the moment on that a caller has its answer there is room for its next job, however little has gone on."""
    for passed in range(30):
        runner = HeldRunner()
        service = make_service(runner, tmp_path, queue_length=1)
        first, _ = service.submit(job(1)), service.submit(job(2))
        await turns()
        runner.opened[1].may_end.set()
        await first.wait()
        await turns(passed)
        service.submit(job(3))
        await service.aclose()


async def test_an_id_that_runs_is_a_conflict_but_its_json_type_counts(runner: HeldRunner, tmp_path: Path) -> None:
    service = make_service(runner, tmp_path)
    service.submit(job(7))
    with pytest.raises(Conflict):
        service.submit(job(7))
    service.submit(job("7"))
    await service.aclose()


async def test_waiting_too_long_is_a_queue_timeout_and_loses_no_slot(runner: HeldRunner, tmp_path: Path) -> None:
    service = make_service(runner, tmp_path, queue_timeout_seconds=0.05)
    service.submit(job(1))
    await turns()
    verdict = await service.submit(job(2)).wait()
    assert (verdict.code, verdict.status) == (FailureCode.QUEUE_TIMEOUT, 504)
    runner.opened[1].may_end.set()
    third = service.submit(job(3))
    runner.opened[3].may_end.set()
    assert (await third.wait()).ok


async def test_cancel_of_a_waiting_job_answers_and_never_runs_it(runner: HeldRunner, tmp_path: Path) -> None:
    service = make_service(runner, tmp_path)
    service.submit(job(1))
    waiting = service.submit(job(2))
    await turns()
    service.cancel(2)
    assert (await waiting.wait()).code is FailureCode.CANCELLED
    with pytest.raises(NotFound):
        service.cancel(2)
    with pytest.raises(NotFound):
        service.cancel("1")
    runner.opened[1].may_end.set()
    await service.find(1).wait()  # type: ignore[union-attr]
    assert [j.request_id for j in runner.ran] == [1]


async def test_cancel_in_the_moment_of_the_turn_passes_the_slot_on(runner: HeldRunner, tmp_path: Path) -> None:
    service = make_service(runner, tmp_path)
    first, second, third = (service.submit(job(n)) for n in (1, 2, 3))
    await turns()
    runner.opened[1].may_end.set()
    await first.wait()  # the turn of 2 is granted in the same breath
    service.cancel(2)
    await second.wait()
    runner.opened[3].may_end.set()
    assert (await third.wait()).ok
    await turns()
    assert service.status().busy_slots == 0


async def test_drain_refuses_new_jobs_and_ends_the_rest(runner: HeldRunner, tmp_path: Path) -> None:
    service = make_service(runner, tmp_path, drain_seconds=0.05)
    running, waiting = service.submit(job(1)), service.submit(job(2))
    await turns()
    draining = asyncio.create_task(service.drain())
    await turns()
    with pytest.raises(ShuttingDown):
        service.submit(job(3))
    await draining
    assert [(await r.wait()).code for r in (running, waiting)] == [FailureCode.SHUTTING_DOWN] * 2


async def test_a_fault_of_the_runner_is_an_answer_without_a_stack(
    runner: HeldRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(self: HeldRun) -> None:
        raise ZeroDivisionError("a secret detail")

    monkeypatch.setattr(HeldRun, "execute", broken)
    service = make_service(runner, tmp_path)
    verdict = await service.submit(job(1)).wait()
    assert verdict.code is FailureCode.INTERNAL
    assert "secret" not in verdict.message
    await turns()
    assert service.status().busy_slots == 0
