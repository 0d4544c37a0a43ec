"""Results without a URL are kept within their time and bytes, and nothing of them stays behind."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.errors import FailureCode, JobFailed
from gateway.settings import Settings
from gateway.storage.artifacts import OpenOutput, open_output
from gateway.storage.results import ResultStore


def opened(directory: Path, content: bytes) -> OpenOutput:
    path = directory / "output"
    path.write_bytes(content)
    return open_output(path, owner_uid=None, max_bytes=1 << 30)


def files_below(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


async def test_kept_result_is_a_copy_that_only_the_gateway_reads(settings: Settings, tmp_path: Path) -> None:
    store = ResultStore(settings)
    with opened(tmp_path, b"data") as output:
        kept = await store.keep("a1", output, b"{}", b"log")
    (tmp_path / "output").write_bytes(b"else")
    assert store.get("a1") == kept
    assert kept.output_path is not None
    assert kept.manifest_path is not None
    assert kept.output_path.read_bytes() == b"data"
    assert (kept.manifest_path.read_bytes(), kept.events_path.read_bytes()) == (b"{}", b"log")
    assert (kept.output_bytes, kept.total_bytes) == (4, 9)
    assert kept.directory.stat().st_mode & 0o777 == 0o700
    assert kept.output_path.stat().st_mode & 0o777 == 0o600
    assert store.get("a2") is None
    store.close()


async def test_failed_job_keeps_its_log_only(settings: Settings) -> None:
    store = ResultStore(settings)
    kept = await store.keep("a1", None, None, b"log")
    assert (kept.output_path, kept.manifest_path, kept.events_path.read_bytes()) == (None, None, b"log")
    store.close()


async def test_oldest_results_make_room(settings: Settings, tmp_path: Path) -> None:
    store = ResultStore(replace(settings, result_keep_bytes=25))
    with opened(tmp_path, b"x" * 10) as output:
        for name in ("a1", "a2", "a3"):
            await store.keep(name, output, b"", b"")
    assert [store.get(name) is not None for name in ("a1", "a2", "a3")] == [False, True, True]
    assert sum(path.stat().st_size for path in files_below(settings.state_dir)) == 20
    store.close()


async def test_result_larger_than_the_store_is_refused_and_evicts_nothing(settings: Settings, tmp_path: Path) -> None:
    store = ResultStore(replace(settings, result_keep_bytes=25))
    with opened(tmp_path, b"x" * 10) as output:
        await store.keep("a1", output, b"", b"")
    with opened(tmp_path, b"x" * 26) as output, pytest.raises(JobFailed, match="26 bytes; at most 25") as caught:
        await store.keep("a2", output, b"", b"")
    assert caught.value.code is FailureCode.OUTPUT_UPLOAD_FAILED
    assert store.get("a1") is not None
    store.close()


async def test_results_expire_by_themselves_but_an_open_file_stays_readable(settings: Settings) -> None:
    store = ResultStore(replace(settings, result_keep_seconds=0.1))
    kept = await store.keep("a1", None, b"{}", b"log")
    with kept.events_path.open("rb") as file:
        async with asyncio.timeout(5):
            while files_below(settings.state_dir):  # noqa: ASYNC110 - the store tells nobody when it expires
                await asyncio.sleep(0.02)
        assert file.read() == b"log"
    assert store.get("a1") is None
    store.close()


async def test_dropped_and_closed_stores_leave_nothing(settings: Settings) -> None:
    store = ResultStore(settings)
    await store.keep("a1", None, b"{}", b"log")
    await store.keep("a2", None, b"{}", b"log")
    store.drop("a1")
    store.drop("a1")
    assert store.get("a1") is None
    assert {path.parent.name for path in files_below(settings.state_dir)} == {"a2"}
    store.close()
    assert list((settings.state_dir / "results").iterdir()) == []


async def test_leftovers_of_an_earlier_process_are_removed(settings: Settings) -> None:
    (settings.state_dir / "results" / "old").mkdir(parents=True)
    (settings.state_dir / "results" / "old" / "output").write_bytes(b"x")
    ResultStore(settings)
    assert files_below(settings.state_dir) == []


async def test_failed_copy_leaves_nothing_and_frees_its_bytes(settings: Settings, tmp_path: Path) -> None:
    store = ResultStore(replace(settings, result_keep_bytes=25))
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
