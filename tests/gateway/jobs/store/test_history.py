"""The history of the job store: its pages, its bounds, and the ids and keys that are found in it."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from gateway.core.errors import BadRequest, FailureCode
from gateway.core.job import JobState, OutputFacts, Verdict
from gateway.core.settings import Settings
from gateway.jobs.store import HistoryQuery, IdempotencyKey, JobStore
from gateway.jobs.store.retention import prune
from tests.gateway.jobs.store.test_store import end, job, record_of, settings

__all__ = ["settings"]


async def test_the_sizes_of_history_and_logs_are_added_up_from_an_index(settings: Settings, tmp_path: Path) -> None:
    """From the rows it took half a second of each minute for 100,000 jobs, while no job could be accepted."""
    store = JobStore(settings, tmp_path)
    texts: list[str] = []
    store._connection.set_trace_callback(texts.append)
    prune(settings, store._connection)
    store._connection.set_trace_callback(None)
    plans = [
        store._connection.execute(f"EXPLAIN QUERY PLAN {text}").fetchall()
        for text in texts
        if text.startswith("SELECT")
    ]
    assert len(plans) == 2
    assert all("COVERING INDEX" in plan[0][-1] for plan in plans), plans
    store.close()


async def test_an_id_is_found_while_it_is_live_and_for_ten_minutes(settings: Settings, tmp_path: Path) -> None:
    store = JobStore(settings, tmp_path)
    first, second = record_of(job(7)), record_of(job(7))
    await store.accept(first)
    assert await store.find(7) is first
    assert await store.find("7") is None
    await end(store, first)
    assert await store.find(7) is first
    assert store.find_live(7) is None
    await store.accept(second)
    assert await store.find(7) is second, "never the old one's log"
    await end(store, second)
    store._request_ids.restore(7, None, second.execution_id, time.monotonic() - 601)
    assert await store.find(7) is None
    assert await store.get(second.execution_id) is second, "the history knows it all the same"
    store.close()


async def test_ids_of_jobs_long_over_take_no_memory(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.jobs.store.request_ids.FOUND_BY_REQUEST_ID_SECONDS", -1.0)
    store = JobStore(settings)
    live = record_of(job("live"))
    await store.accept(live)
    for start in range(0, 3000, 500):
        records = [record_of(job(number)) for number in range(start, start + 500)]
        await asyncio.gather(*[store.accept(record) for record in records])
        await asyncio.gather(*[end(store, record) for record in records])
    assert len(store._request_ids._newest) < 1500
    assert store.find_live("live") is live
    store.close()


async def test_ids_of_the_last_ten_minutes_are_found_after_a_restart(settings: Settings, tmp_path: Path) -> None:
    store = JobStore(settings, tmp_path)
    old, new = record_of(job("old")), record_of(job("new"))
    old.finished_at = time.time() - 700
    for record in (old, new):
        await store.accept(record)
        await end(store, record)
    store.close()
    again = JobStore(settings, tmp_path)
    assert await again.find("old") is None
    found = await again.find("new")
    assert found is not None
    assert found.execution_id == new.execution_id
    again.close()


async def test_history_is_filtered_sorted_and_paged_without_gaps(settings: Settings, tmp_path: Path) -> None:
    store = JobStore(settings, tmp_path)
    for number in range(10):
        record = record_of(job(number, f"night {number % 2}"), created_at=1000.0 + number)
        await store.accept(record)
        failed = Verdict(FailureCode.USER_ERROR, "no", 1, float(number))
        facts = OutputFacts(100 - number, 1, 1, None, "jsonl")
        await end(store, record, failed if number % 3 == 0 else Verdict(None, "", 0, float(number), output=facts))
    live = record_of(job("live"), created_at=2000.0)
    live.tables = ("orders", "Umsätze")
    await store.accept(live)

    async def ids(**fields: Any) -> list[int | str]:
        return [entry.request_id for entry in (await store.page(HistoryQuery(**fields))).entries]

    assert await ids() == ["live", 9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert await ids(state=JobState.QUEUED) == ["live"]
    assert await ids(code="failed") == [9, 6, 3, 0]
    assert await ids(code="user_error", descending=False) == [0, 3, 6, 9]
    assert await ids(since=1003.0, until=1005.0) == [4, 3]
    assert await ids(request_ids=(7, "7")) == [7]
    assert await ids(label="Night 1", code="ok") == [7, 5, 1]
    assert await ids(label="UMSätze") == ["live"], "a job without a label is named by its tables"
    assert await ids(min_duration_seconds=8) == [9, 8]
    assert await ids(min_rows=98) == [2, 1]
    assert await ids(sort="rows") == [1, 2, 4, 5, 7, 8, "live", 9, 6, 3, 0]
    for sort in ("created_at", "finished_at", "duration", "rows"):
        for descending in (False, True):
            query = HistoryQuery(sort=sort, descending=descending, limit=3)  # type: ignore[arg-type]
            seen: list[int | str] = []
            while True:
                page = await store.page(query)
                seen += [entry.request_id for entry in page.entries]
                if page.cursor is None:
                    break
                query = dataclasses.replace(query, cursor=page.cursor)
            assert len(seen) == len(set(seen)) == 11
            assert seen == await ids(sort=sort, descending=descending, limit=50)
    store.close()


@pytest.mark.parametrize(
    "cursor",
    [
        *("x", "W10", "WzEsIDJd0", "bnVsbA", "WyJhIiwgMV0", "é"),
        *(base64.urlsafe_b64encode(text).decode() for text in (b"[" * 9000, b"[1%b, 1]" % (b"0" * 400))),
    ],
    ids=range(8),
)
async def test_a_foreign_cursor_is_refused(settings: Settings, tmp_path: Path, cursor: str) -> None:
    store = JobStore(settings, tmp_path)
    with pytest.raises(BadRequest, match="cursor"):
        await store.page(HistoryQuery(cursor=cursor))
    store.close()


async def test_history_and_logs_are_kept_by_time_and_bytes_alone(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.jobs.store.writer.MAINTAIN_SECONDS", 3600.0)
    store = JobStore(settings, tmp_path)
    day, records = 86_400.0, []
    for number in range(300):  # beyond any count
        record = record_of(job(1000 + number), created_at=time.time() - number * day / 10)
        record.finished_at = record.created_at
        record.log.line("stdout", "hello")
        records.append(record)
    await asyncio.gather(*[store.accept(record) for record in records])
    await asyncio.gather(*[end(store, record) for record in records])
    store._recent._jobs.clear()

    async def kept() -> tuple[int, int]:
        found = [await store.get(record.execution_id) for record in records]
        known = [record for record in found if record is not None]
        return len(known), sum(bool(list(record.log.lines())) for record in known)

    assert await kept() == (300, 300)

    def prune_with(**changes: Any) -> None:
        with store._writer._lock:
            prune(dataclasses.replace(settings, **changes), store._connection)

    prune_with()
    assert await kept() == (300, 70)
    prune_with(history_keep_seconds=20 * day, log_keep_seconds=day)
    assert await kept() == (200, 10)
    one = store._connection.execute("SELECT row_bytes FROM jobs LIMIT 1").fetchone()[0]
    prune_with(history_keep_bytes=100 * one, log_keep_bytes=0)
    assert await kept() == (100, 0)  # the oldest are removed
    store.close()


async def test_a_key_belongs_to_one_job_for_a_day(settings: Settings, tmp_path: Path) -> None:
    store = JobStore(settings, tmp_path)
    key = IdempotencyKey(b"k" * 32, b"b" * 32)
    first, second = record_of(job(1), key=key), record_of(job(2), key=key)
    await store.accept(first)
    with pytest.raises(sqlite3.IntegrityError):
        await store.accept(second)
    store.discard(second)
    assert await store.find_by_key(key.key) is first
    await end(store, first)
    store._recent._jobs.clear()
    found = await store.find_by_key(key.key)
    assert found is not None
    assert (found.execution_id, found.key) == (first.execution_id, key)
    store._connection.execute("UPDATE jobs SET created_at = created_at - 86401")
    assert await store.find_by_key(key.key) is None
    await store.accept(second)
    assert await store.find_by_key(key.key) is second
    store.close()


async def test_a_deleted_job_is_gone_with_its_log(settings: Settings, tmp_path: Path) -> None:
    store = JobStore(settings, tmp_path)
    record, live = record_of(job(1)), record_of(job(2))
    record.log.line("stdout", "a line that must vanish")
    for each in (record, live):
        await store.accept(each)
    await end(store, record)
    assert await store.delete(record.execution_id)
    assert not await store.delete(record.execution_id)
    assert not await store.delete(live.execution_id)
    assert await store.get(record.execution_id) is None
    assert await store.find(1) is None
    assert store.newest_finished() is None
    assert store._connection.execute("SELECT COUNT(*) FROM logs").fetchone() == (0,)
    store.close()
