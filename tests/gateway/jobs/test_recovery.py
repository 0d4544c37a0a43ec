"""After a restart each job has one verdict: it runs again where that is safe, and says why where it is not."""

from __future__ import annotations

import asyncio
import logging
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.core.errors import FailureCode, ShuttingDown
from gateway.core.job import InputTable, Job, UrlDelivery, UrlSource
from gateway.core.settings import Settings
from gateway.core.uploads import Uploads
from gateway.jobs.service import JobService
from gateway.jobs.store import HistoryQuery, JobRecord, JobStore
from gateway.local.slots import Slots
from tests.gateway.jobs.test_service import HeldRunner, turns


def url(seconds_left: float) -> str:
    signed = datetime.now(UTC) - timedelta(seconds=1000)
    return f"http://s3/x?X-Amz-Date={signed:%Y%m%dT%H%M%SZ}&X-Amz-Expires={int(1000 + seconds_left)}&X-Amz-Signature=y"


def job(request_id: int | str, **fields: Any) -> Job:
    return Job(request_id, fields.pop("code", "code"), 30, fields.pop("delivery", UrlDelivery(url(600))), **fields)


class Gateway:
    """Processes of one gateway, one after another; a kill leaves to the next what is on the disk at that moment."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        (directory / "uploads").mkdir()
        self._store_dir = directory / "store"
        self._store_dir.mkdir()
        self.service: JobService
        self.runner: HeldRunner
        self.ended: list[JobRecord] = []

    def start(self, slots: int = 1, *, computed: bool = False, **settings: Any) -> list[JobRecord]:
        made = Settings(state_dir=self._directory, **settings)
        self.runner, self.ended = HeldRunner(pool=Slots(slots, lambda: True), computed=computed), []
        self.service = JobService(made, self.runner, JobStore(made, self._store_dir), self.ended.append)
        return self.service.recover()

    async def kill(self) -> None:
        await self.service.history(HistoryQuery())  # so that every write is on the disk
        left = self._store_dir.with_name(f"{self._store_dir.name}-next")
        shutil.copytree(self._store_dir, left)
        await self.service.aclose()
        self._store_dir = left


@pytest.fixture
def gateway(tmp_path: Path) -> Gateway:
    return Gateway(tmp_path)


async def submit(gateway: Gateway, *jobs: Job, is_awaited: bool = False) -> list[JobRecord]:
    records = [await gateway.service.submit(each, is_awaited=is_awaited) for each in jobs]
    await turns()
    return records


async def test_unawaited_jobs_run_again_after_a_kill(gateway: Gateway) -> None:
    gateway.start()
    running, queued = await submit(gateway, job(1), job("q"))
    await gateway.kill()
    again = gateway.start()
    assert [r.execution_id for r in again] == [running.execution_id, queued.execution_id]
    await turns()
    for request_id, text in ((1, "runs again (attempt 2 of 2)"), ("q", "is queued again")):
        record = next(r for r in again if r.request_id == request_id)
        assert any(text in line.message for line in record.log.lines())
        gateway.runner.opened[request_id].may_end.set()
        assert (await record.wait()).ok
    assert [r.attempts for r in again] == [2, 1]
    assert gateway.service.counters.recovered == {"run_again": 2, "cancelled": 0, "gateway_restarted": 0}
    assert gateway.service.counters.attempts == {"first": 1, "again": 1}
    await gateway.service.aclose()
    assert gateway.start() == [], "each has its verdict"
    await gateway.service.aclose()


async def test_an_awaited_job_ends_as_gateway_restarted(gateway: Gateway) -> None:
    gateway.start()
    (record,) = await submit(gateway, job(7), is_awaited=True)
    await gateway.kill()
    (again,) = gateway.start()
    verdict = await again.wait()
    assert (verdict.code, verdict.status) == (FailureCode.GATEWAY_RESTARTED, 503)
    assert "its caller waited" in verdict.message
    found = await gateway.service.find(7)
    assert found is not None
    assert found.execution_id == record.execution_id
    assert [line.message for line in found.log.lines()] == [f"ERROR: {verdict.message}"]
    assert gateway.runner.opened == {}
    assert gateway.ended == [again]
    await gateway.service.aclose()


@pytest.mark.parametrize(
    ("fields", "settings", "reason"),
    [
        ({"delivery": UrlDelivery(url(-1))}, {}, "the URL of the output has expired"),
        ({"delivery": UrlDelivery(url(86_400), None, url(-1))}, {}, "the URL of the log has expired"),
        ({"tables": (InputTable("t", UrlSource(url(-5))),)}, {}, "the URL of table 't' has expired"),
        ({}, {"allow_network": True}, "it had access to the network"),
        ({}, {"max_attempts": 1}, "it has begun once, and MAX_ATTEMPTS is 1"),
    ],
)
async def test_a_job_that_must_not_run_again_says_why(
    gateway: Gateway, fields: dict[str, Any], settings: dict[str, Any], reason: str
) -> None:
    gateway.start(**settings)
    await submit(gateway, job(1, **fields))
    await gateway.kill()
    (again,) = gateway.start(**settings)
    verdict = await again.wait()
    assert verdict.code is FailureCode.GATEWAY_RESTARTED
    assert reason in verdict.message
    assert gateway.runner.ran == []
    await gateway.service.aclose()
    assert gateway.start() == []
    await gateway.service.aclose()


async def test_a_table_that_transform_does_not_take_may_have_expired(gateway: Gateway) -> None:
    gateway.start()
    tables = (InputTable("t", UrlSource(url(86_400))), InputTable("unused", UrlSource(url(-5))))
    await submit(gateway, job(1, code="def transform(t): ...", tables=tables))
    await gateway.kill()
    (again,) = gateway.start()
    await turns()
    gateway.runner.opened[1].may_end.set()
    assert (await again.wait()).ok
    await gateway.service.aclose()


async def test_a_computed_output_is_delivered_though_a_second_run_is_forbidden(gateway: Gateway) -> None:
    settings = {"allow_network": True, "max_attempts": 1}
    expired = UrlSource(url(-1))
    gateway.start(**settings)
    await gateway.service.submit(job("a", tables=(InputTable("t", expired),)), is_awaited=False)
    await gateway.service.submit(job("late", delivery=UrlDelivery(url(-1))), is_awaited=False)
    await turns()
    await gateway.kill()
    computed, late = gateway.start(computed=True, **settings)
    await turns()
    gateway.runner.opened["a"].may_end.set()
    assert (await computed.wait()).code is None
    assert "the URL of the output has expired" in (await late.wait()).message
    await gateway.service.aclose()


async def test_an_output_that_is_computed_waits_for_no_other_job(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway.start()
    _, computed = await submit(gateway, job("not"), job("computed"))
    await gateway.kill()
    monkeypatch.setattr(HeldRunner, "has_output", lambda runner, execution_id: execution_id == computed.execution_id)
    gateway.start()
    await turns()
    assert [each.request_id for each in gateway.runner.ran] == ["computed"]
    await gateway.service.aclose()


@pytest.mark.parametrize("is_awaited", [False, True])
async def test_the_log_keeps_the_lines_of_the_first_attempt(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, is_awaited: bool
) -> None:
    monkeypatch.setattr("gateway.jobs.store.running_logs.LOG_SECONDS", 0.01)
    gateway.start()
    (record,) = await submit(gateway, job(1), is_awaited=is_awaited)
    record.log.line("stdout", "step 1 of 9")
    async with asyncio.timeout(60):
        while record.stored_lines == 0:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await gateway.kill()
    (again,) = gateway.start()
    await turns()
    if not is_awaited:
        gateway.runner.opened[1].may_end.set()
    await again.wait()
    first, second, *_ = [line.message for line in again.log.lines()]
    assert first == "step 1 of 9"
    assert "The gateway was restarted" in second
    await gateway.service.aclose()
    gateway.start()
    found = await gateway.service.get(record.execution_id)
    assert [line.message for line in found.log.lines()][:2] == [first, second]
    await gateway.service.aclose()


async def test_a_queued_job_pays_no_attempt_and_needs_no_closed_network(gateway: Gateway) -> None:
    settings = {"allow_network": True, "max_attempts": 1}
    gateway.start(slots=0, **settings)
    await submit(gateway, job(2))
    for slots in (0, 0, 1):
        await gateway.kill()
        gateway.start(slots, **settings)
        await turns()
    assert [j.request_id for j in gateway.runner.ran] == [2]
    gateway.runner.opened[2].may_end.set()
    record = await gateway.service.find(2)
    assert record is not None
    assert (await record.wait()).ok
    await gateway.service.aclose()


async def test_a_drain_leaves_unawaited_jobs_to_the_next_start(gateway: Gateway) -> None:
    gateway.start(drain_seconds=0.05, max_attempts=1)
    running, queued = await submit(gateway, job(1), job(2))
    (awaited,) = await submit(gateway, job(3), is_awaited=True)
    await gateway.service.drain()
    assert (await awaited.wait()).code is FailureCode.SHUTTING_DOWN
    assert [record.verdict for record in (running, queued)] == [None, None]
    for record in (running, queued):
        assert await gateway.service.find(record.request_id) is record, "it was not forgotten"
        assert [line.message for line in record.log.lines()][-1].endswith("this job is left to its next start")
        with pytest.raises(ShuttingDown, match="cancel it then"):
            await gateway.service.cancel(record.request_id)
    await gateway.service.aclose()
    again = gateway.start(max_attempts=1)
    await turns()
    assert [record.request_id for record in again] == [1, 2]
    for record in again:
        gateway.runner.opened[record.request_id].may_end.set()
        assert (await record.wait()).ok
    await gateway.service.aclose()


async def test_a_job_that_is_cancelled_during_a_drain_does_not_run_again(gateway: Gateway) -> None:
    gateway.start(drain_seconds=0)
    (record,) = await submit(gateway, job(1))
    draining = asyncio.create_task(gateway.service.drain())
    while record.stop.cause is None:  # noqa: ASYNC110
        await asyncio.sleep(0)
    await gateway.service.cancel(1)
    await draining
    await gateway.service.aclose()
    assert gateway.start() == []
    await gateway.service.aclose()


@pytest.mark.parametrize("request_id", [1, 2])
async def test_a_cancel_that_was_answered_holds_after_a_kill(
    gateway: Gateway, request_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway.start()
    await submit(gateway, job(1), job(2))  # runs, waits
    with monkeypatch.context() as killed_before_the_end:
        killed_before_the_end.setattr(JobStore, "finish", lambda *_: asyncio.get_running_loop().create_future())
        await gateway.service.cancel(request_id)
        await gateway.kill()
    cancelled = next(record for record in gateway.start() if record.request_id == request_id)
    assert (await cancelled.wait()).code is FailureCode.CANCELLED
    assert gateway.service.counters.recovered == {"run_again": 1, "cancelled": 1, "gateway_restarted": 0}
    assert gateway.runner.opened[request_id].job not in gateway.runner.ran
    await gateway.service.aclose()


async def test_files_that_came_along_survive_and_others_are_removed(gateway: Gateway, tmp_path: Path) -> None:
    gateway.start()
    uploads = Uploads(tmp_path / "uploads" / "a1")
    uploads.directory.mkdir()
    uploads.path("0.table").write_bytes(b"x,y\n")
    await gateway.service.submit(job(1), uploads, is_awaited=False)
    (tmp_path / "uploads" / "stray").mkdir()
    await turns()
    await gateway.kill()
    (again,) = gateway.start()
    assert [path.name for path in (tmp_path / "uploads").iterdir()] == ["a1"]
    assert again.uploads == uploads
    assert uploads.path("0.table").read_bytes() == b"x,y\n"
    await turns()
    gateway.runner.opened[1].may_end.set()
    await again.wait()
    await gateway.service.aclose()
    gateway.start()
    assert list((tmp_path / "uploads").iterdir()) == []
    await gateway.service.aclose()


async def test_a_recovered_job_fails_when_its_files_are_missing(gateway: Gateway, tmp_path: Path) -> None:
    gateway.start()
    uploads = Uploads(tmp_path / "uploads" / "a1")
    uploads.directory.mkdir()
    await gateway.service.submit(job(1), uploads, is_awaited=False)
    await gateway.kill()
    uploads.remove()
    (again,) = gateway.start()
    assert "the files that came with the request are gone" in (await again.wait()).message
    await gateway.service.aclose()


async def test_an_unreadable_request_ends_with_a_verdict(gateway: Gateway) -> None:
    gateway.start()
    await submit(gateway, job(1))
    await gateway.service._store._writer.write(
        lambda connection: connection.execute("UPDATE requests SET job = ?", (b'{"type":"job","version":9}',)) and None
    )
    await gateway.kill()
    (again,) = gateway.start()
    assert "its request cannot be read (the job is of version 9" in (await again.wait()).message
    await gateway.service.aclose()


async def test_the_log_names_each_job_when_it_is_accepted_started_and_found_again(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gateway.jobs.service")
    gateway.start()
    (record,) = await submit(gateway, job("a\nb"))
    await gateway.kill()
    gateway.start()
    await turns()
    lines = [entry.getMessage() for entry in caplog.records]
    assert [f"job 'a\\nb' ({record.execution_id}) {step} call=-" in lines for step in ("accepted", "started")]
    assert f"job 'a\\nb' ({record.execution_id}) was left by an earlier process: it runs again" in lines
    await gateway.service.aclose()
