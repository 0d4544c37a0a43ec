"""The promises of the job store: a job on the disk before it is accepted, no secret after its end, a history in bounds."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sqlite3
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from gateway.core.errors import FailureCode, ShuttingDown
from gateway.core.events import EventLog, Finished
from gateway.core.job import (
    InputTable,
    Job,
    JobState,
    LibraryModule,
    MetabaseSource,
    OutputFacts,
    UrlDelivery,
    UrlSource,
    Verdict,
)
from gateway.core.settings import Settings
from gateway.jobs.store import HistoryQuery, IdempotencyKey, JobRecord, JobStore
from gateway.jobs.store.writer import Writer
from tests.gateway.http.harness import eventually
from tests.gateway.jobs.test_bundles import bundle_of

SECRETS = (b"def transform(): return 'sECRET-code'", b"X-Amz-Signature=sECRET", b"sECRET-key", b"sECRET_library")
DONE = Verdict(None, "", 0, 1.5, output=OutputFacts(7, 1, 70, None, "jsonl"))


def job(request_id: int | str = 1, label: str | None = None) -> Job:
    tables = (
        InputTable("orders", UrlSource("https://s3.test/in?X-Amz-Signature=sECRET-in")),
        InputTable("live", MetabaseSource("https://metabase.test", "sECRET-key", 7)),
    )
    return Job(
        request_id,
        SECRETS[0].decode() + "\n#" + "x" * 3_000,
        30,
        UrlDelivery("https://s3.test/out?X-Amz-Signature=sECRET-out"),
        (LibraryModule("common", "a = 'sECRET_library'" + "y" * 5_000),),
        tables,
        label=label,
    )


def record_of(given: Job, **fields: Any) -> JobRecord:
    record = JobRecord(given.request_id, uuid.uuid4().hex, "v1", given, EventLog(), label=given.label, **fields)
    record.tables = tuple(table.alias for table in given.tables)
    return record


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state_dir=tmp_path)


async def end(store: JobStore, record: JobRecord, verdict: Verdict = DONE) -> None:
    record.finished_at = record.finished_at or time.time()
    done = store.finish(record, verdict)
    record.log.emit(Finished(verdict))
    store.forget_live(record)
    await done


def raw_bytes(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(directory.iterdir()))


async def test_an_accepted_job_is_in_the_file_and_comes_back_after_a_kill(settings: Settings, tmp_path: Path) -> None:
    store = JobStore(settings, tmp_path)
    queued, begun = record_of(job("q", "nightly"), is_awaited=False), record_of(job(2), is_awaited=False)
    awaited = record_of(job(3))
    await asyncio.gather(*[store.accept(record) for record in (queued, begun, awaited)])
    begun.start()
    store.begin(begun, has_network=True)
    await store.page(HistoryQuery())  # takes along what still waits

    again = JobStore(settings, tmp_path)  # the first one is not closed, as after a kill
    left = again.unfinished()
    assert [stored.record.execution_id for stored in left] == [r.execution_id for r in (queued, begun, awaited)]
    assert [stored.record.job for stored in left] == [job("q", "nightly"), job(2), None]
    assert [(stored.had_begun, stored.had_network, stored.record.attempts) for stored in left] == [
        (False, False, 0),
        (True, True, 1),
        (False, False, 0),
    ]
    assert (left[0].record.label, left[0].record.tables) == ("nightly", ("orders", "live"))
    again.close()
    store.close()


async def test_the_store_is_for_the_gateway_alone(settings: Settings, tmp_path: Path) -> None:
    store = JobStore(settings, tmp_path)
    await store.accept(record_of(job()))
    assert {name: (tmp_path / name).stat().st_mode & 0o777 for name in os.listdir(tmp_path)} == {
        "jobs.db": 0o600,
        "jobs.db-wal": 0o600,
        "jobs.db-shm": 0o600,
    }
    store.close()


async def test_no_byte_of_code_urls_and_keys_is_left_after_the_end(settings: Settings, tmp_path: Path) -> None:
    store = JobStore(settings, tmp_path)
    records = [record_of(job(number), is_awaited=False) for number in range(40)]
    for record in records:
        await store.accept(record)
    assert all(secret in raw_bytes(tmp_path) for secret in SECRETS)
    for record in records[::2] + records[1::2]:  # in another order, so that pages are merged
        await end(store, record)
    async with asyncio.timeout(60):
        while any(secret in raw_bytes(tmp_path) for secret in SECRETS):  # noqa: ASYNC110 - a checkpoint tells nobody
            await asyncio.sleep(0.05)
    assert (await store.get(records[0].execution_id)) is not None
    store.close()
    assert not any(secret in raw_bytes(tmp_path) for secret in SECRETS)


async def test_secrets_in_the_wal_of_a_killed_gateway_are_erased_at_the_next_start(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Writer, "_checkpoint", lambda self: True)
    store = JobStore(settings, tmp_path)
    record = record_of(job(), is_awaited=False)
    await store.accept(record)
    await end(store, record)
    assert SECRETS[0] in raw_bytes(tmp_path), "the WAL has it until a checkpoint"
    again = JobStore(settings, tmp_path)
    assert not any(secret in raw_bytes(tmp_path) for secret in SECRETS)
    again.close()
    store.close()


async def test_a_bundle_is_gone_with_its_job(settings: Settings, tmp_path: Path) -> None:
    settings = dataclasses.replace(settings, history_keep_seconds=3600)
    store = JobStore(settings, tmp_path)
    assert store.bundles is not None
    deleted, old, new = (record_of(job()) for _ in range(3))
    for record in (deleted, old, new):
        await store.accept(record)
        store.bundles.keep(record.execution_id, lambda directory: bundle_of(directory.name))
        await end(store, record, Verdict(FailureCode.USER_ERROR, "no", 1))
    assert await store.delete(deleted.execution_id)
    assert store.bundles.job_ids() == [old.execution_id, new.execution_id]
    connection = sqlite3.connect(tmp_path / "jobs.db")
    with connection:
        connection.execute("UPDATE jobs SET finished_at = 1 WHERE job_id = ?", (old.execution_id,))
    connection.close()
    store.close()
    again = JobStore(settings, tmp_path)
    assert again.bundles is not None
    assert again.bundles.job_ids() == [new.execution_id]
    again.close()


async def test_bundles_of_old_jobs_are_removed_while_the_gateway_runs(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.jobs.store.writer.MAINTAIN_SECONDS", 0.05)
    store = JobStore(dataclasses.replace(settings, history_keep_seconds=0), tmp_path)
    assert store.bundles is not None
    record = record_of(job())
    await store.accept(record)
    store.bundles.keep(record.execution_id, lambda directory: bundle_of(directory.name))
    await end(store, record, Verdict(FailureCode.USER_ERROR, "no", 1))
    assert await eventually(lambda: store.bundles is not None and not store.bundles.job_ids())
    store.close()


async def test_a_finished_job_comes_back_as_it_was(settings: Settings, tmp_path: Path) -> None:
    store = JobStore(settings, tmp_path)
    record = record_of(job("a", "label"))
    await store.accept(record)
    record.log = EventLog(cap_bytes=2_000)
    for number in range(100):
        record.log.line("stdout", f"line {number}")
    record.start()
    await end(store, record)
    store.close()
    again = JobStore(settings, tmp_path)
    known = await again.get(record.execution_id)
    assert known is not None
    assert (known.request_id, known.label, known.verdict) == ("a", "label", DONE)
    assert (known.created_at, known.started_at, known.finished_at) == (
        record.created_at,
        record.started_at,
        record.finished_at,
    )
    lines, next_offset = known.log.lines_from(95)
    assert [line.message for line in lines] == [f"line {n}" for n in range(95, 100)]
    assert next_offset == 100
    assert [line.timestamp for line in known.log.lines()] == [line.timestamp for line in record.log.lines()]
    assert again.newest_finished().execution_id == record.execution_id  # type: ignore[union-attr]
    again.close()


async def test_many_jobs_share_a_commit(settings: Settings, tmp_path: Path) -> None:
    commits: list[float] = []
    store = JobStore(settings, tmp_path, commits.append)
    with store._writer._lock:  # the disk is busy while they come
        accepted = [store.accept(record_of(job(number))) for number in range(200)]
        await asyncio.sleep(0.05)
    await asyncio.gather(*accepted)
    assert len(commits) <= 2
    store.close()


async def test_log_lines_are_stored_while_a_job_runs(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.jobs.store.running_logs.LOG_SECONDS", 0.01)
    store = JobStore(settings, tmp_path)
    record, waiting = record_of(job(1)), record_of(job(2))
    for each in (record, waiting):
        await store.accept(each)
    record.start()
    store.begin(record, has_network=False)
    for number in range(3):
        record.log.line("stdout", f"line {number}")
        async with asyncio.timeout(60):
            while _lines_on_disk(store) != [number + 1, None]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    await end(store, record)
    async with asyncio.timeout(60):
        while store._logs._timer is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    finished = await store.page(HistoryQuery(state=JobState.FINISHED))
    assert [entry.job_id for entry in finished.entries] == [record.execution_id]
    store.close()


async def test_a_log_that_another_version_compressed_is_empty_and_its_job_there(
    settings: Settings, tmp_path: Path
) -> None:
    store = JobStore(settings, tmp_path)
    finished, left = record_of(job(1)), record_of(job(2), is_awaited=False)
    for record in (finished, left):
        await store.accept(record)
        record.log.line("stdout", "first")
    store._logs.store(left)
    await end(store, finished)
    store._connection.execute("UPDATE logs SET log = ?", (b"of another version",))
    store.close()
    store = JobStore(settings, tmp_path)
    found = await store.get(finished.execution_id)
    assert found is not None
    assert found.log.json_lines()[0] == []
    assert [each.record.execution_id for each in store.unfinished()] == [left.execution_id]
    store.close()


def _lines_on_disk(store: JobStore) -> list[int | None]:
    return [len(stored.lines.head) if stored.lines is not None else None for stored in store.unfinished()]


async def test_the_key_of_a_suspended_job_is_not_given_to_another(settings: Settings, tmp_path: Path) -> None:
    store = JobStore(settings, tmp_path)
    key = IdempotencyKey(b"k" * 32, b"b" * 32)
    record = record_of(job(), is_awaited=False, key=key)
    await store.accept(record)
    await store.suspend(record)
    with pytest.raises(ShuttingDown):
        await store.find_by_key(key.key)
    store.close()


async def test_a_suspended_job_pays_no_attempt(settings: Settings, tmp_path: Path) -> None:
    store = JobStore(settings, tmp_path)
    record = record_of(job(), is_awaited=False)
    await store.accept(record)
    record.start()
    store.begin(record, has_network=True)
    await store.suspend(record)
    assert store.live() == []
    store.close()
    again = JobStore(settings, tmp_path)
    (stored,) = again.unfinished()
    assert (stored.had_begun, stored.had_network, stored.record.attempts) == (False, False, 0)
    again.close()


async def test_the_memory_store_has_no_file(settings: Settings, tmp_path: Path) -> None:
    store = JobStore(settings)
    record = record_of(job())
    await store.accept(record)
    await end(store, record)
    assert [entry.job_id for entry in (await store.page(HistoryQuery())).entries] == [record.execution_id]
    assert os.listdir(tmp_path) == []
    store.close()
    assert not store._writer._thread.is_alive()
