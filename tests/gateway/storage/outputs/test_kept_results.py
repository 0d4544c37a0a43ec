"""Results without a URL are kept within their time and bytes, and nothing of them stays behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.core.errors import FailureCode, JobFailed
from gateway.core.job import ResultPart
from gateway.core.settings import Settings
from gateway.storage.outputs.job_files import OpenOutput, open_output
from gateway.storage.outputs.kept_results import KeptFiles, KeptResultStore


def opened(directory: Path, content: bytes) -> OpenOutput:
    path = directory / "output"
    path.write_bytes(content)
    return open_output(path, owner_uid=None, max_bytes=1 << 30)


def files_below(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


async def read(kept: KeptFiles | None, part: ResultPart) -> bytes | None:
    assert kept is not None
    async with kept.open(part) as reader:
        return None if reader is None else b"".join([block async for block in reader.blocks()])


async def test_kept_result_is_a_copy_that_only_the_gateway_reads(settings: Settings, tmp_path: Path) -> None:
    store = KeptResultStore(settings)
    with opened(tmp_path, b"data") as output:
        kept = await store.keep("a1", output, b"{}", b"log")
    (tmp_path / "output").write_bytes(b"else")
    assert store.get("a1") == kept
    assert [await read(kept, part) for part in ("output", "manifest", "events")] == [b"data", b"{}", b"log"]
    assert (kept.part_bytes, kept.total_bytes) == ({"output": 4, "manifest": 2, "events": 3}, 9)
    assert kept.directory.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in kept.directory.iterdir()} == {0o600}
    assert store.get("a2") is None
    store.close()


async def test_failed_job_keeps_its_log_only(settings: Settings) -> None:
    store = KeptResultStore(settings)
    kept = await store.keep("a1", None, None, b"log")
    assert kept.part_bytes == {"events": 3}
    assert [await read(kept, part) for part in ("output", "manifest", "events")] == [None, None, b"log"]
    store.close()


async def test_oldest_results_make_room(settings: Settings, tmp_path: Path) -> None:
    store = KeptResultStore(replace(settings, result_keep_bytes=25))
    with opened(tmp_path, b"x" * 10) as output:
        for name in ("a1", "a2", "a3"):
            await store.keep(name, output, b"", b"")
    assert [store.get(name) is not None for name in ("a1", "a2", "a3")] == [False, True, True]
    assert sum(path.stat().st_size for path in files_below(settings.state_dir)) == 20
    store.close()


async def test_result_larger_than_the_store_is_refused_and_evicts_nothing(settings: Settings, tmp_path: Path) -> None:
    store = KeptResultStore(replace(settings, result_keep_bytes=25))
    with opened(tmp_path, b"x" * 10) as output:
        await store.keep("a1", output, b"", b"")
    with opened(tmp_path, b"x" * 26) as output, pytest.raises(JobFailed, match="26 bytes; at most 25") as caught:
        await store.keep("a2", output, b"", b"")
    assert caught.value.code is FailureCode.RESULT_NOT_KEPT
    assert store.get("a1") is not None
    store.close()


async def test_results_expire_by_themselves_but_an_open_file_stays_readable(settings: Settings) -> None:
    store = KeptResultStore(replace(settings, result_keep_seconds=0.1))
    kept = await store.keep("a1", None, b"{}", b"log")
    async with kept.open("events") as reader:
        async with asyncio.timeout(60):
            while files_below(settings.state_dir):  # noqa: ASYNC110 - the store tells nobody when it expires
                await asyncio.sleep(0.02)
        assert reader is not None
        assert [block async for block in reader.blocks()] == [b"log"]
    assert store.get("a1") is None
    assert await read(kept, "events") is None
    store.close()


async def test_a_dropped_result_is_gone_and_others_stay_when_the_store_is_closed(settings: Settings) -> None:
    store = KeptResultStore(settings)
    await store.keep("a1", None, b"{}", b"log")
    await store.keep("a2", None, b"{}", b"log")
    store.drop("a1")
    store.drop("a1")
    assert store.get("a1") is None
    assert {path.parent.name for path in files_below(settings.state_dir)} == {"a2"}
    store.close()
    again = KeptResultStore(settings)
    assert (again.get("a1"), again.get("a2") is not None) == (None, True)
    again.close()


async def test_results_survive_a_restart_with_their_time_and_bytes(settings: Settings, tmp_path: Path) -> None:
    settings = replace(settings, result_keep_seconds=100)
    store = KeptResultStore(settings)
    with opened(tmp_path, b"data") as output:
        kept = [await store.keep(name, output, b"{}", b"log") for name in ("a1", "a2")]
        failed = await store.keep("a3", None, None, b"log")
    store.close()
    for number, result in enumerate((*kept, failed)):
        moment = time.time() - 150 + 60 * number
        os.utime(result.directory, (moment, moment))
    again = KeptResultStore(settings)
    assert [again.get(name) is not None for name in ("a1", "a2", "a3")] == [False, True, True]
    assert replace(kept[1], expires_at=0) == replace(again.get("a2"), expires_at=0)  # type: ignore[type-var]
    assert again.get("a2").expires_at - time.monotonic() < 11  # type: ignore[union-attr]
    assert again.get("a3").part_bytes == {"events": 3}  # type: ignore[union-attr]
    again.close()
    smaller = KeptResultStore(replace(settings, result_keep_bytes=4))
    assert [smaller.get(name) is not None for name in ("a2", "a3")] == [False, True]
    smaller.close()


async def test_another_attempt_replaces_the_result_of_the_first(settings: Settings, tmp_path: Path) -> None:
    store = KeptResultStore(settings)
    for content in (b"first", b"second attempt"):
        with opened(tmp_path, content) as output:
            await store.keep("a1", output, b"{}", b"log")
    assert await read(store.get("a1"), "output") == b"second attempt"
    assert len(files_below(settings.state_dir)) == 3
    store.close()


async def test_unfinished_results_of_an_earlier_process_are_removed(settings: Settings) -> None:
    for name in (".a1", "empty"):
        (settings.state_dir / "results" / name).mkdir(parents=True)
        (settings.state_dir / "results" / name / "output").write_bytes(b"x")
    (settings.state_dir / "results" / ".a1" / "events.jsonl").write_bytes(b"x")
    KeptResultStore(settings)
    assert files_below(settings.state_dir) == []


async def test_the_loop_runs_while_a_slow_disk_removes_a_large_result(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, loop_ran, remove = KeptResultStore(settings), threading.Event(), shutil.rmtree

    def slow_remove(path: Path) -> None:
        assert loop_ran.wait(60), "the loop waits for the disk"
        remove(path)

    monkeypatch.setattr("gateway.core.directories.shutil.rmtree", slow_remove)
    with opened(tmp_path, bytes(2 << 20)) as output:
        kept = await store.keep("a1", output, b"", b"log")
        store.drop("a1")
        assert store.get("a1") is None
        assert await read(kept, "events") is None
        following = asyncio.create_task(store.keep("a1", output, b"", b"other log"))
        await asyncio.sleep(0)
        assert not following.done()
        loop_ran.set()
        async with asyncio.timeout(60):
            assert await read(await following, "events") == b"other log"
    assert [path.name for path in (settings.state_dir / "results").iterdir()] == ["a1"]
    store.close()


async def test_failed_copy_leaves_nothing_and_frees_its_bytes(settings: Settings, tmp_path: Path) -> None:
    store = KeptResultStore(replace(settings, result_keep_bytes=25))
    with opened(tmp_path, b"x" * 20) as output:
        (tmp_path / "output").write_bytes(b"")  # shorter than it was when it was opened
        with pytest.raises(JobFailed, match="could not be kept"):
            await store.keep("a1", output, b"", b"")
    assert files_below(settings.state_dir) == []
    with opened(tmp_path, b"x" * 10) as output:
        await store.keep("a2", output, b"", b"")
        await store.keep("a3", output, b"", b"")
    assert store.get("a2") is not None  # 20 of 25 bytes are taken, and not 40
    store.close()
