"""Large text tables are parsed once for all runs of `run --watch`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gateway.table_files import parsed
from gateway.table_files.parsed import ParsedTables
from transform_shim.core.table_file import TableFile
from transform_shim.reading.frame_kinds import load_table
from transform_shim.reading.table_source import TableSource


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ParsedTables:
    monkeypatch.setattr(parsed, "WORTHWHILE_BYTES", 1)
    (tmp_path / "made").mkdir()
    return ParsedTables(tmp_path / "made")


def cells(path: Path, manifest: Path | None = None) -> list[object]:
    frame = load_table(TableSource(TableFile("t", path, manifest, "arrow")), "pandas").value
    return frame.iloc[:, 0].tolist()  # type: ignore[no-any-return]


def test_a_table_is_parsed_again_only_after_a_change(tmp_path: Path, tables: ParsedTables) -> None:
    (tmp_path / "t.csv").write_text("a\n1\n")
    made = tables.parsed("t", tmp_path / "t.csv", None)
    assert cells(made) == [1]
    made.write_bytes(made.read_bytes() + b"kept")  # a new file would not have it
    assert tables.parsed("t", tmp_path / "t.csv", None).read_bytes().endswith(b"kept")
    (tmp_path / "t.csv").write_text("a\n1\n2\n")
    assert cells(tables.parsed("t", tmp_path / "t.csv", None)) == [1, 2]
    manifest = tmp_path / "m.json"
    manifest.write_text(json.dumps({"fields": [{"name": "a", "base_type": "Text"}]}))
    assert cells(tables.parsed("t", tmp_path / "t.csv", manifest), manifest) == ["1", "2"]
    assert len(list((tmp_path / "made").iterdir())) == 1


@pytest.mark.parametrize("text", ["a,a\n1,2\n", "a;b\n1;2\n"], ids=["error", "warning"])
def test_a_table_with_something_to_say_stays_as_it_is(tmp_path: Path, tables: ParsedTables, text: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    assert tables.parsed("t", tmp_path / "t.csv", None) == tmp_path / "t.csv"
    assert not list((tmp_path / "made").iterdir())


def test_a_table_that_becomes_too_large_to_send_stays_as_it_is(
    tmp_path: Path, tables: ParsedTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.csv").write_text("a\n1\n")
    monkeypatch.setattr(parsed, "MOST_PARSED_BYTES", 100)
    assert tables.parsed("t", tmp_path / "t.csv", None) == tmp_path / "t.csv"
    assert not list((tmp_path / "made").iterdir())


def test_a_small_table_a_huge_one_and_one_with_types_stay_as_they_are(
    tmp_path: Path, tables: ParsedTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    assert tables.parsed("t", tmp_path / "t.parquet", None) == tmp_path / "t.parquet"
    monkeypatch.setattr(parsed, "WORTHWHILE_BYTES", 100)
    (tmp_path / "t.csv").write_text("a\n1\n")
    assert tables.parsed("t", tmp_path / "t.csv", None) == tmp_path / "t.csv"
    monkeypatch.setattr(parsed, "WORTHWHILE_BYTES", 1)
    monkeypatch.setattr(parsed, "MOST_BYTES", 3)
    assert tables.parsed("huge", tmp_path / "t.csv", None) == tmp_path / "t.csv"
    monkeypatch.setattr(parsed, "MOST_BYTES", 4)
    assert tables.parsed("large", tmp_path / "t.csv", None) != tmp_path / "t.csv"
