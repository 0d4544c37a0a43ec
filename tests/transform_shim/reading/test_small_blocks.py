"""The parser of small blocks gives what the others give, or leaves a block to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from tests.transform_shim.reading.test_polars_engine import EXAMPLES, ODD, blocks, check_as_exact
from transform_shim.core.errors import InputInvalid
from transform_shim.core.manifest import Field
from transform_shim.core.table_file import TableFile
from transform_shim.reading.frame_kinds import load_table
from transform_shim.reading.jsonl import small_blocks
from transform_shim.reading.jsonl.reader import JsonLines
from transform_shim.reading.jsonl.small_blocks import columns_of
from transform_shim.reading.table_source import TableSource

NUMBERS = ("-0", "-0.0", "0", "1", "1.0", "-1e-7", "5e-324", "1e400", "9007199254740993", "9223372036854775808",
           "18446744073709551615", "18446744073709551616", "-9223372036854775809", "NaN", "01", "1.", "-")  # fmt: skip
TEXTS = ('"\\u0000"', '"\\ud83d\\ude00"', '"\\ud800"', '"é"', '"\x01"', '"\x7f\u2028"', '"2024-01-01"')
LINES = ('{"c":1,"c":2}', '{"c":null} ', "{}", "[]", "1", "null", "", "  ", '{"c":1}{"c":2}', '{"c":1,}', '\ufeff{"c":1}',
         '{"c":1}\x0c', '{"c":1}\r', '{"d":1e400,"c":1}', '{"c":1')  # fmt: skip


def test_blocks_are_read_as_the_exact_reader_does() -> None:
    taken = 0

    @EXAMPLES
    @given(blocks())
    def check(block: tuple[list[Field], bytes]) -> None:
        nonlocal taken
        fields, data = block
        parsed = columns_of(data, JsonLines(TableFile("t", Path(__file__)), fields)._schema)
        if parsed is None:
            return
        taken += 1
        check_as_exact(parsed, fields, data)

    check()
    assert taken > 50


def read(folder: Path, base_type: str, lines: list[str]) -> str:
    """What a table comes to: its type and values, with the sign of zeros, or its error."""
    data_path, manifest_path = folder / "data", folder / "manifest"
    data_path.write_bytes("\n".join(lines).encode())
    manifest_path.write_text(json.dumps({"fields": [{"name": "c", "base_type": base_type}]}))
    try:
        table: Any = load_table(TableSource(TableFile("t", data_path, manifest_path)), "pandas").value
    except InputInvalid as error:
        return str(error)
    return f"{table['c'].dtype}: {table['c'].tolist()!r}"


@pytest.mark.parametrize("base_type", ["Integer", "Number", "Float", "Decimal", "Boolean", "Text", "JSON", "DateTime"])
def test_an_odd_value_is_the_same_in_a_small_file_and_in_a_large_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base_type: str
) -> None:
    plain = {"Boolean": "true", "Text": '"a"', "JSON": '"a"', "DateTime": '"2024-01-15T10:30:00Z"'}.get(base_type, "7")
    tables = [[f'{{"c":{plain}}}', line, f'{{"c":{plain}}}'] for line in LINES]
    tables += [[f'{{"c":{plain}}}', f'{{"c":{cell}}}'] for cell in (*ODD, *NUMBERS, *TEXTS)]
    tables += [[table[-2]] for table in tables]
    small = [read(tmp_path, base_type, table) for table in tables]
    monkeypatch.setattr(small_blocks, "SMALL_BYTES", -1)
    large = [read(tmp_path, base_type, table) for table in tables]
    assert dict(zip(map(str, tables), small, strict=True)) == dict(zip(map(str, tables), large, strict=True))


def test_a_small_file_is_parsed_without_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow's parser starts one, which takes longer than all the rest."""
    monkeypatch.setattr(JsonLines, "_by_arrow", None)
    assert read(tmp_path, "Float", ['{"c":1.5}', '{"c":null}', '{"c":2}']) == "float64: [1.5, nan, 2.0]"
