"""The job store on a disk that takes nothing, and with a job that is refused after all."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import uuid
from pathlib import Path

import pytest

from gateway.core.job import JobState
from gateway.core.settings import Settings
from gateway.jobs.store import HistoryQuery, JobStore, recent, writer
from tests.gateway.jobs.store.test_store import DONE, SECRETS, end, job, raw_bytes, record_of


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state_dir=tmp_path)


async def test_a_disk_that_does_not_take_a_job_is_an_error_and_ends_are_tried_again(
    settings: Settings, tmp_path: Path
) -> None:
    store = JobStore(settings, tmp_path)
    first = record_of(job(1), is_awaited=False)
    await store.accept(first)
    pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
    store._connection.execute(f"PRAGMA max_page_count = {pages}")
    second = record_of(job(2, "x" * 100_000), is_awaited=False)
    with pytest.raises(sqlite3.OperationalError, match="full"):
        await store.accept(second)
    store.discard(second)
    assert store.find_live(2) is None
    for number in range(2_000):
        first.log.line("stdout", f"{number} {uuid.uuid4()}")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        await end(store, first)
    assert (await store.get(first.execution_id)) is first
    store._connection.execute("PRAGMA max_page_count = 100000")
    async with asyncio.timeout(60):
        while (await store.page(HistoryQuery())).entries[0].state is not JobState.FINISHED:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    store.close()


async def test_after_a_disk_failure_ended_jobs_leave_the_memory_as_before(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recent, "RECENT_RECORDS", 0)
    store = JobStore(settings, tmp_path)
    record = record_of(job(1), is_awaited=False)
    await store.accept(record)
    store._connection.execute(f"PRAGMA max_page_count = {store._connection.execute('PRAGMA page_count').fetchone()[0]}")
    record.log.line("stdout", os.urandom(30_000).hex())
    with pytest.raises(sqlite3.OperationalError, match="full"):
        await end(store, record)
    (entry,) = (await store.page(HistoryQuery())).entries
    assert entry.state is not JobState.FINISHED, "the history can be read while the disk takes nothing"
    assert list(store._recent._jobs) == [record.execution_id], "it is nowhere else"
    store._connection.execute("PRAGMA max_page_count = 100000")
    async with asyncio.timeout(60):
        while store._recent._jobs:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert store._writer.is_idle
    found = await store.get(record.execution_id)
    assert found is not None
    assert found.verdict == DONE
    store.close()


async def test_a_fault_in_the_upkeep_does_not_end_the_store(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(connection: sqlite3.Connection) -> None:
        raise MemoryError("no memory for the upkeep")

    monkeypatch.setattr(writer, "MAINTAIN_SECONDS", 0.01)
    store = JobStore(settings, tmp_path)
    store._writer._maintain = fail
    for number in range(3):
        record = record_of(job(number))
        async with asyncio.timeout(60):
            await store.accept(record)
            await end(store, record)
            while "no memory for the upkeep" not in caplog.text:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    store.close()


async def test_a_job_that_was_not_accepted_after_all_does_not_run_at_the_next_start(
    settings: Settings, tmp_path: Path
) -> None:
    store = JobStore(settings, tmp_path)
    record = record_of(job(1), is_awaited=False)
    await store.accept(record)
    store.discard(record, is_stored=True)
    store.close()
    again = JobStore(settings, tmp_path)
    assert again.unfinished() == []
    again.close()
    assert not [secret for secret in SECRETS if secret in raw_bytes(tmp_path)]


async def test_a_store_that_another_process_locks_is_closed_without_its_connection_in_use(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite crashed the process when it was closed in the middle of a call."""
    store = JobStore(settings, tmp_path)
    monkeypatch.setattr(writer, "CLOSE_SECONDS", 0.1)
    store._connection.execute("PRAGMA busy_timeout = 500")
    with contextlib.closing(sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        accepted = store.accept(record_of(job(1), is_awaited=False))
        await asyncio.to_thread(store.close)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        await accepted
    await asyncio.to_thread(store._writer._thread.join, 60)
    with contextlib.closing(JobStore(settings, tmp_path)) as again:
        assert again.unfinished() == []
