"""Compressed files, JSON arrays and workbooks: nothing is lost on the way in or out, and a file is read once."""

from __future__ import annotations

import datetime
import gzip
import json
import os
import resource
from decimal import Decimal
from pathlib import Path

import openpyxl
import pyarrow as pa
import pytest
from pyarrow import feather

from gateway.table_files.kinds import FileKind, kind_of
from gateway.table_files.readable import ReadableFiles, UnreadableTable
from gateway.table_files.unpacking import unpack
from gateway.table_files.writing import UnwritableResult, write_as


@pytest.fixture
def files(tmp_path: Path) -> ReadableFiles:
    (tmp_path / "made").mkdir()
    return ReadableFiles(tmp_path / "made")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("t.csv", FileKind("csv")),
        ("t.CSV.GZ", FileKind("csv", "plain", "gzip")),
        ("t.ndjson.zst", FileKind("jsonl", "plain", "zstd")),
        ("t.json", FileKind("jsonl", "array")),
        ("t.xlsx", FileKind("arrow", "workbook")),
    ],
)
def test_name_gives_the_kind(name: str, kind: FileKind) -> None:
    assert kind_of(Path(name)) == kind


@pytest.mark.parametrize("name", ["t", "t.gz", "t.xls", "t.xlsx.gz", "t.csv.bz2"])
def test_unknown_ending_is_answered_with_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match=r"unknown ending .*; expected one of \.jsonl, .*\.xlsx"):
        kind_of(Path(name))


def test_plain_file_is_taken_as_it_is(tmp_path: Path, files: ReadableFiles) -> None:
    (tmp_path / "t.csv").write_text("a\n1\n")
    assert files.readable(tmp_path / "t.csv") == tmp_path / "t.csv"


def test_file_is_converted_again_only_when_it_has_changed(tmp_path: Path, files: ReadableFiles) -> None:
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"a\n1\n"))
    first = files.readable(path)
    written = first.stat()
    assert (first.suffix, first.read_text()) == (".csv", "a\n1\n")
    assert files.readable(path) == first
    assert first.stat() == written
    path.write_bytes(gzip.compress(b"a\n2\n3\n"))
    os.utime(path, (1, 1))
    assert files.readable(path).read_text() == "a\n2\n3\n"
    assert not first.exists()


def test_json_file_may_be_an_array_or_lines(tmp_path: Path, files: ReadableFiles) -> None:
    array_text = '\ufeff[\n {"a": 12345678901234567890.10}, {"a": null}\n]'  # PowerShell writes the byte order mark
    (tmp_path / "array.json").write_text(array_text, encoding="utf-8")
    (tmp_path / "lines.json").write_text('{"a": 1}\n{"a": 2}\n')
    array, lines = files.readable(tmp_path / "array.json"), files.readable(tmp_path / "lines.json")
    assert (array.suffix, array.read_text()) == (".jsonl", '{"a":12345678901234567890.10}\n{"a":null}\n')
    assert (lines.suffix, lines.read_text()) == (".jsonl", '{"a": 1}\n{"a": 2}\n')


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.csv.gz", b"a\n1\n", "not valid gzip"),
        ("t.csv.gz", gzip.compress(b"a\n1\n" * 1000, mtime=0)[:-20], "not valid gzip"),
        ("t.json", b"[1, 2]", "expected a JSON array of objects"),
        ("t.json", b'[{"a": 1}', "not a JSON array of objects"),
        ("t.xlsx", b"a;b", "not an Excel workbook"),
        ("t.xlsx", b"PK\x03\x04", "not a workbook that can be read"),
    ],
)
def test_error_names_a_file_whose_content_does_not_match_its_ending(
    name: str, content: bytes, said: str, tmp_path: Path, files: ReadableFiles
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnreadableTable, match=f"{name}: {said}"):
        files.readable(tmp_path / name)
    assert (tmp_path / name).read_bytes() == content


def test_array_and_compression_keep_the_text_of_each_row(tmp_path: Path) -> None:
    lines = '{"a":1.10,"b":"x\\ny"}\n{"a":12345678901234567890,"b":null}\n'
    (tmp_path / "r.jsonl").write_text(lines)
    write_as(tmp_path / "r.jsonl", kind_of(Path("t.json")), tmp_path / "t.json")
    assert json.loads((tmp_path / "t.json").read_text())[1] == {"a": 12345678901234567890, "b": None}
    assert '{"a":1.10,' in (tmp_path / "t.json").read_text()
    write_as(tmp_path / "r.jsonl", kind_of(Path("t.jsonl.gz")), tmp_path / "t.jsonl.gz")
    assert gzip.decompress((tmp_path / "t.jsonl.gz").read_bytes()).decode() == lines
    (tmp_path / "r.jsonl").write_text("")
    write_as(tmp_path / "r.jsonl", kind_of(Path("t.json")), tmp_path / "t.json")
    assert json.loads((tmp_path / "t.json").read_text()) == []


def test_cells_of_a_workbook_keep_their_types(tmp_path: Path, files: ReadableFiles) -> None:
    book = openpyxl.Workbook()
    for row in (
        ("code", "text", "whole", "part", "moment", "time", "mixed"),
        ("007", "NA", 1, 1.5, datetime.datetime(2026, 3, 1, 12), datetime.time(1, 2), 7),
        ("1e5", "null", None, 2, None, None, "x"),
    ):
        book.active.append(row)
    book.save(tmp_path / "t.xlsx")
    table = feather.read_table(files.readable(tmp_path / "t.xlsx"))
    assert table.to_pydict() == {
        "code": ["007", "1e5"],
        "text": ["NA", "null"],
        "whole": [1, None],
        "part": [1.5, 2.0],
        "moment": [datetime.datetime(2026, 3, 1, 12), None],
        "time": [datetime.time(1, 2), None],
        "mixed": ["7", "x"],
    }


def write_workbook(directory: Path, columns: dict[str, list[object]]) -> list[tuple[object, ...]]:
    feather.write_feather(pa.table(columns), directory / "r.arrow", compression="uncompressed")
    write_as(directory / "r.arrow", kind_of(Path("t.xlsx")), directory / "t.xlsx")
    return list(openpyxl.load_workbook(directory / "t.xlsx").active.values)


def test_workbook_has_the_values_of_the_result(tmp_path: Path) -> None:
    noon = datetime.datetime(2026, 3, 1, 12)
    rows = write_workbook(
        tmp_path,
        {
            "text": ["=1+1", None],
            "whole": [1, (1 << 53) + 1],
            "float": [0.5, float("nan")],
            "exact": [Decimal("1.10"), None],
            "yes": [True, False],
            "moment": [noon, datetime.datetime(1500, 1, 1)],
            "zoned": [noon.replace(tzinfo=datetime.UTC), None],
            "list": [[1, 2], None],
        },
    )
    assert rows == [
        ("text", "whole", "float", "exact", "yes", "moment", "zoned", "list"),
        ("=1+1", 1, 0.5, "1.10", True, noon, "2026-03-01T12:00:00+00:00", "[1, 2]"),
        (None, "9007199254740993", None, None, False, "1500-01-01T00:00:00", None, None),
    ]


@pytest.mark.parametrize("text", ["x" * 32_768, "bell \a"])
def test_text_that_no_workbook_can_have_is_refused_and_the_old_file_stays(text: str, tmp_path: Path) -> None:
    (tmp_path / "t.xlsx").write_bytes(b"old")
    with pytest.raises(UnwritableResult, match="a text has"):
        write_workbook(tmp_path, {"a": [text]})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.arrow", "t.xlsx"]
    assert (tmp_path / "t.xlsx").read_bytes() == b"old"


def test_disk_that_is_full_is_not_taken_for_a_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"1\n" * 500_000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            unpack(tmp_path / "t.csv.gz", "gzip", tmp_path / "t.csv")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
