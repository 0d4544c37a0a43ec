"""What a store keeps and bounds while months go by and clocks are set."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest

from gateway.core.settings import Settings
from gateway.jobs.store import JobRecord, JobStore
from gateway.telemetry.waterfall import lay_out
from tests.gateway.jobs.store.test_store import end, job, record_of, settings

__all__ = ["settings"]


@pytest.mark.parametrize("hours", [-10, 10])
def test_a_jump_of_the_wall_clock_moves_no_stage_of_a_job(hours: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _has_its_stages_in_order(record_of(job()), hours, monkeypatch)


def test_no_stage_ends_before_its_job_began_where_the_clock_was_set_back_during_a_restart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _has_its_stages_in_order(record_of(job(), created_at=time.time() + 36_000), 0, monkeypatch)


def _has_its_stages_in_order(record: JobRecord, hours: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: record.created_at + 3600 * hours)
    record.start()
    record.end()
    stages = {"queue": record.queue_seconds, "execute": 0.0, "deliver": 0.0}
    spans = lay_out(stages, record.created_at, record.started_at, record.finished_at)
    assert len(spans) == 3
    assert all(0 <= span.begin - record.created_at <= span.end - record.created_at < 3600 for span in spans), spans


async def test_a_job_that_is_not_over_keeps_its_log_however_long_it_prints_nothing(
    settings: Settings, tmp_path: Path
) -> None:
    store = JobStore(settings, tmp_path)
    record = record_of(job(), is_awaited=False)
    await store.accept(record)
    record.log.line("stdout", "the only line")
    await store.suspend(record)
    store.close()

    again = JobStore(dataclasses.replace(settings, log_keep_seconds=0), tmp_path)
    (left,) = again.unfinished()
    assert left.lines is not None
    assert b"the only line" in b"".join(left.lines.head)
    again.resume(left.record)
    left.restore_log()
    await end(again, left.record)
    again.close()

    last = JobStore(dataclasses.replace(settings, log_keep_seconds=0), tmp_path)
    found = await last.get(record.execution_id)
    assert found is not None
    assert not list(found.log.lines())
    last.close()


async def test_after_a_restart_an_id_is_that_of_the_newest_job_though_the_clock_was_set_back(
    settings: Settings, tmp_path: Path
) -> None:
    store = JobStore(settings, tmp_path)
    older, newer = record_of(job(7)), record_of(job(7))
    older.finished_at = time.time() + 36_000
    for record in (older, newer):
        await store.accept(record)
        await end(store, record)
    store.close()
    again = JobStore(settings, tmp_path)
    found = [await again.find(7), again.newest_finished()]
    assert [record.execution_id for record in found if record is not None] == [newer.execution_id] * 2
    again.close()


async def test_the_texts_of_a_caller_count_against_the_size_of_the_history(settings: Settings, tmp_path: Path) -> None:
    store = JobStore(settings, tmp_path)
    records = [record_of(job(f"{number:0200}", "\N{SNOWMAN}" * 200)) for number in range(300)]
    for record in records:
        await store.accept(record)
        await end(store, record)
    (counted_bytes,) = store._connection.execute("SELECT sum(row_bytes) FROM jobs").fetchone()
    store.close()
    assert counted_bytes > 0.7 * (tmp_path / "jobs.db").stat().st_size
