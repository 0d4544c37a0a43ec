"""A table that was parsed once gives the same frames as its file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from transform_shim.core.errors import InputInvalid
from transform_shim.core.formats import DataFormat
from transform_shim.core.table_file import TableFile
from transform_shim.reading.columnar.parsed_table import MAGIC
from transform_shim.reading.frame_kinds import FrameKind, load_table
from transform_shim.reading.jsonl import reader as jsonl_reader
from transform_shim.reading.parse_table import main
from transform_shim.reading.table_source import TableSource

LINES = (
    '{"i": 1, "n": 2, "d": 1.50, "f": 1e3, "b": true, "t": "ä", "at": "2024-01-15T10:30:00.123456789Z", "j": {"k": 1}}\n'
    '{"i": null, "n": 2.5, "d": 12345678901234567890.125, "f": null, "b": null, "t": null, "at": null, "j": null}\n'
    '{"i": 123456789012345678901, "n": 3, "d": null, "f": 2, "b": false, "t": "007", "at": "0001-01-01T00:00:00Z"}\n'
)
BASE_TYPES = {
    **{"i": "BigInteger", "n": "Number", "d": "Decimal", "f": "Float", "b": "Boolean", "t": "Text"},
    **{"at": "DateTimeWithTZ", "j": "JSON"},
}
MANIFEST = {"fields": [{"name": name, "base_type": kind} for name, kind in BASE_TYPES.items()]}


def frame_of(file: TableFile, kind: FrameKind = "pandas") -> Any:
    return load_table(TableSource(file), kind).value


def parsed_and_plain(
    tmp_path: Path, text: str, data_format: DataFormat, manifest: dict[str, Any] | None
) -> tuple[TableFile, TableFile]:
    data, manifest_path, made = tmp_path / "data", tmp_path / "manifest", tmp_path / "made"
    data.write_text(text)
    manifest_path.write_text(json.dumps(manifest))
    known = None if manifest is None else manifest_path
    assert main([data_format, str(data), str(known or ""), str(made)]) == 0
    return TableFile("orders", made, known, "arrow"), TableFile("orders", data, known, data_format)


@pytest.mark.parametrize("manifest", [None, MANIFEST], ids=["inferred", "manifest"])
@pytest.mark.parametrize(
    ("text", "data_format"),
    [
        (LINES, "jsonl"),
        ("", "jsonl"),
        ("{}\n{}\n", "jsonl"),
        ("i,n,d,f,b,t,at,j\n1,2.5,1.50,1e3,true,007,2024-01-15T10:30:00Z,\n,,,,,,,\n", "csv"),
        ("i,n,d,f,b,t,at,j\n", "csv"),
    ],
    ids=["lines", "no-lines", "no-columns", "csv", "header"],
)
def test_frames_are_the_same(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    data_format: DataFormat,
    manifest: dict[str, Any] | None,
) -> None:
    # a block for each line: blocks of one column differ in type
    monkeypatch.setattr(jsonl_reader, "line_blocks", lambda file: jsonl_line_blocks(file, 8))
    parsed, plain = parsed_and_plain(tmp_path, text, data_format, manifest)
    found, expected = frame_of(parsed), frame_of(plain)
    pd.testing.assert_frame_equal(found, expected)
    assert found.attrs == expected.attrs


jsonl_line_blocks = jsonl_reader.line_blocks


def frames_agree(folder: Path, kind: FrameKind) -> bool:
    import polars  # noqa: F401  # the shim takes it from the script, which has imported it

    lines = '{"i": 1, "d": 1.50, "t": "ä"}\n{"i": null, "d": 12345678901234567890.125, "t": null}\n'
    parsed, plain = (frame_of(file, kind) for file in parsed_and_plain(folder, lines, "jsonl", None))
    return bool(parsed.equals(plain)) and parsed.schema == plain.schema


@pytest.mark.parametrize("kind", ["arrow", "polars"])
def test_other_kinds_of_frames_are_the_same(tmp_path: Path, elsewhere: Callable[..., Any], kind: FrameKind) -> None:
    assert elsewhere(frames_agree, tmp_path, kind)


def mapped_files_with_a_frame(folder: Path) -> str:
    parsed, _ = parsed_and_plain(folder, LINES, "jsonl", None)
    frame = frame_of(parsed, "arrow")
    assert frame.num_rows
    return Path("/proc/self/maps").read_text()


def test_a_frame_counts_as_memory_of_its_job(tmp_path: Path, elsewhere: Callable[..., Any]) -> None:
    # the accounting leaves out the pages of mapped files
    assert str(tmp_path) not in elsewhere(mapped_files_with_a_frame, tmp_path)


def test_a_table_that_cannot_be_read_is_not_parsed(tmp_path: Path) -> None:
    (tmp_path / "data").write_text('{"a": 1}\n{"a"\n')
    assert main(["jsonl", str(tmp_path / "data"), "", str(tmp_path / "made")]) == 1


@pytest.mark.parametrize("cut_bytes", [1, 200])
def test_a_damaged_file_is_an_error_of_the_table(tmp_path: Path, cut_bytes: int) -> None:
    parsed, _ = parsed_and_plain(tmp_path, LINES, "jsonl", None)
    parsed.data_path.write_bytes(parsed.data_path.read_bytes()[:-cut_bytes])
    with pytest.raises(InputInvalid):
        frame_of(parsed)
    parsed.data_path.write_bytes(MAGIC + b"nothing")
    with pytest.raises(InputInvalid):
        frame_of(parsed)
