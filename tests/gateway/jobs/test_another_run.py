"""A job that nobody waits for runs again when the machine fails and not the job, and never without a bound."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gateway.core.cancellation import StopSignal
from gateway.core.errors import DiskFull, FailureCode
from gateway.core.events import JobLog, StateChanged
from gateway.core.job import Job, JobState, Verdict
from gateway.core.settings import Settings
from gateway.core.uploads import Uploads
from gateway.jobs import another_run
from gateway.jobs.service import JobService
from gateway.jobs.store import JobRecord, JobStore
from gateway.local.run import FAULTS_OF_MACHINE
from gateway.storage.state_directory import StateDirectory
from tests.gateway.jobs.test_service import HeldRun, HeldRunner, job, turns

NO_KERNEL = FailureCode.KERNEL_START_FAILED, "claim"
NO_LAUNCHER = FailureCode.LAUNCHER_LOST, "execute"


@dataclass
class LosingRun(HeldRun):
    """A run that the machine loses, with the next of `losses`: the failure, and the stage that the job had reached."""

    log: JobLog = field(kw_only=True)
    losses: list[tuple[FailureCode, str]] = field(kw_only=True)

    async def execute(self) -> None:
        if not self.losses:
            await super().execute()
            return
        code, stage = self.losses.pop(0)
        self.log.emit(StateChanged(JobState.RUNNING, stage))
        self.verdict = Verdict(code, f"lost in {stage}", 1)
        self.lost_verdict = self.verdict if code in FAULTS_OF_MACHINE else None

    def fail(self, verdict: Verdict) -> None:
        self.lost_verdict = None
        super().fail(verdict)


@dataclass
class LosingRunner(HeldRunner):
    losses: list[tuple[FailureCode, str]] = field(default_factory=list)

    def open(self, job: Job, log: JobLog, stop: StopSignal, execution_id: str, uploads: Uploads | None) -> HeldRun:
        run = LosingRun(job, stop, self.ran, self.pool, log=log, losses=self.losses)
        self.opened[job.request_id] = run
        return run


class FullDisk(StateDirectory):
    """Full from the acceptance of the first job on."""

    is_full = True
    asked = 0

    def check(self, incoming_bytes: int = 0) -> None:
        self.asked += 1
        if self.is_full and self.asked > 1:
            raise DiskFull("the disk is full")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(another_run, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(another_run, "LONGEST_PAUSE_SECONDS", 0.001)


def service_of(runner: LosingRunner, tmp_path: Path, **settings: float) -> JobService:
    made = Settings(state_dir=tmp_path, **settings)  # type: ignore[arg-type]
    (tmp_path / "store").mkdir(exist_ok=True)
    return JobService(made, runner, JobStore(made, tmp_path / "store"))


async def until_it_runs(runner: LosingRunner) -> None:
    async with asyncio.timeout(60):
        while not runner.ran:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def lines(record: JobRecord) -> list[str]:
    return [line.message for line in record.log.lines()]


async def test_a_job_that_gets_no_kernel_waits_for_another_one_and_pays_no_attempt(tmp_path: Path) -> None:
    runner = LosingRunner(losses=[NO_KERNEL] * 7)
    service = service_of(runner, tmp_path, max_attempts=1, allow_network=True)
    record = await service.submit(job(1), is_awaited=False)
    await until_it_runs(runner)
    runner.opened[1].may_end.set()
    assert (await record.wait()).ok
    assert record.attempts == 1
    assert lines(record) == ["lost in claim: this job waits for another kernel"], "one line, and not seven"
    assert service.status().busy_slots == 0
    await service.aclose()


async def test_a_job_that_waits_for_another_kernel_is_still_there_after_a_kill(tmp_path: Path) -> None:
    runner = LosingRunner(losses=[NO_KERNEL])
    service = service_of(runner, tmp_path, max_attempts=1, allow_network=True, drain_seconds=0)
    await service.submit(job(1), is_awaited=False)
    await until_it_runs(runner)
    record = service.running()[0]
    assert record.attempts == 1
    await service.drain()
    await service.aclose()
    after = LosingRunner()
    service = service_of(after, tmp_path, max_attempts=1, allow_network=True)
    (again,) = service.recover()
    await until_it_runs(after)
    after.opened[1].may_end.set()
    assert (await again.wait()).ok
    await service.aclose()


async def test_a_job_that_never_gets_a_kernel_ends_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(another_run, "START_RETRY_SECONDS", 0.05)
    runner = LosingRunner(losses=[NO_KERNEL] * 100_000)
    service = service_of(runner, tmp_path)
    record = await service.submit(job(1), is_awaited=False)
    verdict = await record.wait()
    assert verdict.code is FailureCode.KERNEL_START_FAILED
    assert verdict.message == "lost in claim; the job does not run again: no kernel has started for 0.05 s"
    assert runner.ran == []
    await service.aclose()


@pytest.mark.parametrize("code", sorted(FAULTS_OF_MACHINE))
async def test_a_job_whose_code_may_have_run_runs_as_often_as_max_attempts_says(
    tmp_path: Path, code: FailureCode
) -> None:
    runner = LosingRunner(losses=[(code, "execute")] * 2)
    service = service_of(runner, tmp_path, max_attempts=2)
    record = await service.submit(job(1), is_awaited=False)
    verdict = await record.wait()
    assert (verdict.code, record.attempts) == (code, 2)
    assert "it has begun 2 times, and MAX_ATTEMPTS is 2" in verdict.message
    assert "this job runs again (attempt 2 of 2)" in lines(record)[0]
    await service.aclose()


async def test_a_job_that_met_a_full_disk_runs_again_when_there_is_room(tmp_path: Path) -> None:
    """At once, it would meet it again: a full disk took both attempts of all jobs that waited."""
    runner = LosingRunner(losses=[(FailureCode.GATEWAY_DISK_FAILED, "execute")])
    disk = FullDisk(tmp_path, 0)
    made = Settings(state_dir=tmp_path, max_attempts=2)
    service = JobService(made, runner, JobStore(made), state_directory=disk)
    record = await service.submit(job(1), is_awaited=False)
    async with asyncio.timeout(60):
        while disk.asked < 5:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert (runner.ran, service.queued(), service.status().busy_slots) == ([], [record], 0)
    disk.is_full = False
    await until_it_runs(runner)
    runner.opened[1].may_end.set()
    assert ((await record.wait()).ok, record.attempts) == (True, 2)
    await service.aclose()


async def test_a_job_that_may_have_used_the_network_does_not_run_again(tmp_path: Path) -> None:
    runner = LosingRunner(losses=[NO_LAUNCHER])
    service = service_of(runner, tmp_path, allow_network=True)
    record = await service.submit(job(1), is_awaited=False)
    assert "it had access to the network" in (await record.wait()).message
    await service.aclose()


@pytest.mark.parametrize("loss", [NO_KERNEL, NO_LAUNCHER])
async def test_a_caller_that_waits_gets_the_failure_at_once(tmp_path: Path, loss: tuple[FailureCode, str]) -> None:
    runner = LosingRunner(losses=[loss])
    service = service_of(runner, tmp_path)
    record = await service.submit(job(1))
    assert (await record.wait()).code is loss[0]
    assert lines(record) == []
    await service.aclose()


async def test_failures_of_the_job_itself_are_final(tmp_path: Path) -> None:
    runner = LosingRunner(losses=[(FailureCode.INPUT_UNAVAILABLE, "fetch")])
    service = service_of(runner, tmp_path)
    record = await service.submit(job(1), is_awaited=False)
    assert (await record.wait()).code is FailureCode.INPUT_UNAVAILABLE
    await service.aclose()


async def test_a_cancel_and_a_drain_end_the_pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(another_run, "FIRST_PAUSE_SECONDS", 3600.0)
    runner = LosingRunner(losses=[NO_KERNEL, NO_KERNEL])
    service = service_of(runner, tmp_path)
    cancelled = await service.submit(job("cancelled"), is_awaited=False)
    left = await service.submit(job("left"), is_awaited=False)
    await turns()
    assert service.queued() == [cancelled, left], "each waits, and holds no slot"
    await service.cancel("cancelled")
    assert (await cancelled.wait()).code is FailureCode.CANCELLED
    await service.drain()
    assert left.verdict is None
    await service.aclose()
    again = service_of(LosingRunner(), tmp_path).recover()
    assert [(record.request_id, record.attempts) for record in again] == [("left", 0)]
