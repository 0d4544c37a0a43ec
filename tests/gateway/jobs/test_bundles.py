"""What is kept of the tables of a failed job, and for how long."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.core.errors import FailureCode
from gateway.core.formats import DataFormat
from gateway.core.job import InputTable, LibraryModule, MetabaseSource, TableFacts, UrlSource, Verdict
from gateway.core.settings import Settings
from gateway.jobs.bundles import Bundle, BundledTable, BundleStore
from gateway.jobs.bundles.bundle_store import LEAST_BYTES
from gateway.jobs.bundles.table_data import FIRST_BYTES, FIRST_ROWS, MANIFEST_BYTES, first_rows, keep_tables
from gateway.jobs.failed_jobs import keep_bundle
from gateway.storage import FetchedTable

URL = UrlSource("https://bucket.example/orders?X-Amz-Signature=sECRET")


def bundle_of(job_id: str, tables: tuple[BundledTable, ...] = (), code: str = "def transform(): ...") -> Bundle:
    return Bundle(
        job_id=job_id,
        request_id=7,
        label=None,
        failure_code="user_error",
        message="KeyError: 'b'",
        exit_code=1,
        code=code,
        library=(LibraryModule("helpers", "x = 1"),),
        tables=tables,
        output_format="jsonl",
        output_schema=None,
        timeout_seconds=30.0,
        limits={"memory_bytes": 1 << 30},
        mixed_columns="text",
        official_compatibility=False,
        allow_network=False,
        gateway_version="1",
        python_version="3",
        packages={"pandas": "2.3.3"},
        log=[],
    )


def fetched(directory: Path, alias: str, data: bytes, manifest: Any = None) -> FetchedTable:
    (directory / alias).write_bytes(data)
    manifest_path = None
    if manifest is not None:
        manifest_path = directory / f"{alias}.manifest"
        manifest_path.write_text(manifest if isinstance(manifest, str) else json.dumps(manifest))
    return FetchedTable(alias, directory / alias, manifest_path, "jsonl", None, len(data))


@pytest.fixture
def store(tmp_path: Path) -> BundleStore:
    return BundleStore(tmp_path / "bundles", 10 * LEAST_BYTES)


def keep(store: BundleStore, job_id: str, data: bytes = b"") -> None:
    def fill(directory: Path) -> Bundle:
        (directory / "0.data").write_bytes(data)
        return bundle_of(job_id)

    store.keep(job_id, fill)


# -- tables


def test_tables_that_fit_are_whole_and_the_others_have_their_first_rows(tmp_path: Path) -> None:
    small, large = b'{"a":1}\n' * 10, b'{"a":22}\n' * 1000
    manifest = {"fields": [{"name": "a", "base_type": "type/Integer"}], "table_metadata": {"table_id": 42}}
    files = [fetched(tmp_path, "large", large, manifest), fetched(tmp_path, "small", small)]
    tables = [InputTable(name, URL) for name in ("large", "unused", "small")]
    read = [TableFacts("small", 10, 80, (("a", "Integer"),)), TableFacts("large", 1000, 9000, (("a", "Integer"),))]
    target = tmp_path / "bundle"
    target.mkdir()
    found = keep_tables(tables, {"large", "small"}, files, read, target, 1000)
    assert [(table.alias, table.used, table.kept, table.bytes) for table in found] == [
        ("large", True, "first_rows", 9000),
        ("unused", False, "nothing", None),
        ("small", True, "whole", 80),
    ]
    assert (target / "0.data").read_bytes() == b'{"a":22}\n' * FIRST_ROWS
    assert (target / "2.data").read_bytes() == small
    assert (found[0].table_id, found[0].manifest, found[0].columns) == (42, manifest, ())
    assert found[2].columns == (("a", "Integer"),)
    assert {stat.S_IMODE(path.stat().st_mode) for path in target.iterdir()} == {0o600}


@pytest.mark.parametrize("manifest", ["[1, 2]", "no JSON", {"url": URL.url, "fields": []}])
def test_a_kept_manifest_has_only_documented_members(tmp_path: Path, manifest: Any) -> None:
    (tmp_path / "b").mkdir()
    (found,) = keep_tables(
        [InputTable("t", URL)], {"t"}, [fetched(tmp_path, "t", b"", manifest)], [], tmp_path / "b", 1000
    )
    assert found.manifest == ({"fields": []} if isinstance(manifest, dict) else None)


def test_a_huge_manifest_is_not_kept(tmp_path: Path) -> None:
    """It is no part of the size of a bundle, and each reader of the bundle gets it."""
    (tmp_path / "b").mkdir()
    manifest = {"fields": [{"name": "x" * MANIFEST_BYTES}]}
    given = [fetched(tmp_path, "t", b"", manifest)]
    (found,) = keep_tables([InputTable("t", URL)], {"t"}, given, [], tmp_path / "b", 1000)
    assert found.manifest is None


def test_a_table_of_a_live_metabase_keeps_its_id_and_not_the_key(tmp_path: Path) -> None:
    source = MetabaseSource("https://metabase.example", "mb_SECRET", 42)
    (found,) = keep_tables([InputTable("t", source)], {"t"}, [], [], tmp_path, 1000)
    assert found == BundledTable("t", "jsonl", used=True, table_id=42)


def test_a_file_that_grew_after_the_fetch_is_copied_as_it_was(tmp_path: Path) -> None:
    file = fetched(tmp_path, "t", b"123\n")
    file.data_path.write_bytes(b"123\n456\n")
    (tmp_path / "b").mkdir()
    keep_tables([InputTable("t", URL)], {"t"}, [file], [], tmp_path / "b", 1000)
    assert (tmp_path / "b/0.data").read_bytes() == b"123\n"


@pytest.mark.parametrize(
    ("data", "data_format", "expected"),
    [
        (b'a,b\n1,"x\ny"\n' + b"2,z\n" * 50, "csv", b'a,b\n1,"x\ny"\n' + b"2,z\n" * (FIRST_ROWS - 1)),
        (b'a\n"' + b"x\n" * FIRST_BYTES, "csv", b"a\n"),
        (b'{"a":1}\n{"a":', "jsonl", b'{"a":1}\n'),
        (b"x" * (FIRST_BYTES + 10), "jsonl", b""),
        (b"PAR1\n\n\n", "parquet", b""),
        (b"", "jsonl", b""),
    ],
)
def test_first_rows_are_a_table_of_the_same_format(
    tmp_path: Path, data: bytes, data_format: DataFormat, expected: bytes
) -> None:
    path = tmp_path / "t"
    path.write_bytes(data)
    assert first_rows(path, data_format, None) == expected
    path.write_bytes(gzip.compress(data))
    assert first_rows(path, data_format, "gzip") == expected
    path.write_bytes(b"no gzip\n")
    assert first_rows(path, data_format, "gzip") == b""


# -- the store


def test_a_bundle_is_read_back_also_by_the_next_process(store: BundleStore, tmp_path: Path) -> None:
    keep(store, "a", b"data")
    for each in (store, BundleStore(tmp_path / "bundles", 10 * LEAST_BYTES)):
        assert each.has("a")
        assert each.read("a") == bundle_of("a")
        data = each.open_table("a", 0)
        assert data is not None
        with data:
            assert data.read(100) == b"data"
        assert each.open_table("a", 1) is None
        assert each.read("b") is None
        assert each.open_table("b", 0) is None


def test_only_the_gateway_may_read_them(store: BundleStore, tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        keep(store, "a")
    finally:
        os.umask(old)
    directory = tmp_path / "bundles/a"
    assert stat.S_IMODE(directory.parent.stat().st_mode) == stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((directory / "bundle.json").stat().st_mode) == 0o600


def test_the_oldest_make_room(store: BundleStore, tmp_path: Path) -> None:
    for number in range(10):
        keep(store, str(number))
    keep(store, "large", b"x" * 3 * LEAST_BYTES)
    assert store.job_ids() == ["4", "5", "6", "7", "8", "9", "large"]
    assert sorted(path.name for path in (tmp_path / "bundles").iterdir()) == sorted(store.job_ids())
    again = BundleStore(tmp_path / "bundles", 4 * LEAST_BYTES)
    assert again.job_ids() == ["large"]


def test_a_bundle_that_is_larger_than_the_store_pushes_nothing_out(store: BundleStore, tmp_path: Path) -> None:
    keep(store, "a")
    with pytest.raises(ValueError, match="KEEP_FAILED_BYTES"):
        keep(store, "b", b"x" * 11 * LEAST_BYTES)
    assert [path.name for path in (tmp_path / "bundles").iterdir()] == ["a"] == store.job_ids()


def test_unfinished_bundles_of_a_killed_process_are_removed(store: BundleStore, tmp_path: Path) -> None:
    keep(store, "a")
    (tmp_path / "bundles/.b").mkdir()
    (tmp_path / "bundles/c").mkdir()
    assert BundleStore(tmp_path / "bundles", 10 * LEAST_BYTES).job_ids() == ["a"]
    assert [path.name for path in (tmp_path / "bundles").iterdir()] == ["a"]


def test_a_bundle_that_cannot_be_written_leaves_nothing(store: BundleStore, tmp_path: Path) -> None:
    def fill(directory: Path) -> Bundle:
        (directory / "0.data").write_bytes(b"x")
        return bundle_of("a", code="lone surrogate \ud800")

    with pytest.raises(UnicodeEncodeError):
        store.keep("a", fill)
    assert not store.has("a")
    assert list((tmp_path / "bundles").iterdir()) == []


def test_a_bundle_of_another_version_is_not_read(store: BundleStore, tmp_path: Path) -> None:
    keep(store, "a")
    (tmp_path / "bundles/a/bundle.json").write_text('{"job_id": "a", "new": 1}')
    assert store.read("a") is None


def test_a_dropped_bundle_is_gone_and_one_that_is_open_can_be_read_to_its_end(
    store: BundleStore, tmp_path: Path
) -> None:
    keep(store, "a", b"data")
    data = store.open_table("a", 0)
    assert data is not None
    store.drop(["a", "unknown"])
    assert list((tmp_path / "bundles").iterdir()) == []
    with data:
        assert data.read(100) == b"data"
    assert not store.has("a")


async def test_bundle_that_the_end_of_the_gateway_cuts_off_does_not_cost_the_verdict() -> None:
    class Ending:
        async def packages(self) -> None:
            raise asyncio.CancelledError

    record: Any = SimpleNamespace(job=object(), execution_id="job")
    nothing: Any = None
    ending: Any = Ending()
    await keep_bundle(nothing, record, Verdict(FailureCode.USER_ERROR, "", 1), nothing, ending, Settings())
