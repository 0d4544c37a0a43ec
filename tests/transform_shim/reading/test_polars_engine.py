"""Polars as the parser of JSON lines: it is used, and what comes of it is what the exact reader gives.

Polars starts threads, and the other tests here fork: so these run in a process of their own.
"""

from __future__ import annotations

import json
import types
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.transform_shim.jobs import Outcome, allow_data, columns, table
from tests.transform_shim.test_roundtrip import WIRE
from transform_shim.core.base_types import Kind
from transform_shim.core.decimals import arrow_decimal
from transform_shim.core.errors import InputInvalid
from transform_shim.core.manifest import Field
from transform_shim.core.table_file import TableFile
from transform_shim.reading.jsonl import polars_engine
from transform_shim.reading.jsonl.polars_reader import PolarsLines
from transform_shim.reading.jsonl.reader import JsonLines
from transform_shim.reading.values.common_type import cast_to_common_type
from transform_shim.reading.values.temporal import NotTemporal

EXAMPLES = settings(max_examples=400, deadline=None, derandomize=True, database=None,
                    suppress_health_check=list(HealthCheck))  # fmt: skip
#: Values as they may stand in a line, whatever the manifest says of their column.
ODD = ("1.0", "1E3", "1.5", "-0", "9223372036854775808", "123456789012345678901234567890", "0.1234567890123456789",
       '"12"', '"NaN"', '"NULL"', "true", "{}", "[]", '{"k":1}', '{"k":"v"}', '["a"]', "[[1]]", '"\\ud800"',
       '"\\ud83d\\ude00"', '"\\u0022"', '"\\\\\\""', '"{\\"k\\":1}"', '""', "null")  # fmt: skip


def cell(base: str) -> st.SearchStrategy[str]:
    plain = (st.none() | WIRE[base]).map(lambda v: str(v) if isinstance(v, Decimal) else json.dumps(v))
    return plain | plain | plain | st.sampled_from(ODD)


@st.composite
def blocks(draw: st.DrawFn) -> tuple[list[Field], bytes]:
    bases = draw(st.lists(st.sampled_from(sorted(WIRE)), min_size=1, max_size=4))
    fields = [Field(f"c{i}", base) for i, base in enumerate(bases)]
    lines = []
    for _ in range(draw(st.integers(1, 4))):
        cells = [(f.name, draw(cell(f.base_type or ""))) for f in fields]
        match draw(st.integers(0, 12)):
            case 0:
                cells.append((draw(st.sampled_from(["c0", "more", 'q"'])), draw(cell("Text"))))
            case 1:
                cells.pop()
            case 2:
                cells.reverse()
        lines.append("{" + ",".join(f"{json.dumps(k)}:{v}" for k, v in cells) + "}\n")
    data = "".join(lines).encode()
    return fields, data[: -draw(st.integers(1, 9))] if draw(st.integers(0, 9)) == 0 else data


def exact(fields: list[Field], data: bytes) -> list[list[Any]] | None:
    """The reader for odd lines on a block; None where it finds a mistake."""
    reader = JsonLines(TableFile("t", Path(__file__), None), fields)
    try:
        arrays = reader._exact(data, is_first=True)[0]
    except InputInvalid:
        return None
    return [cast_to_common_type([a], f.kind, arrow_decimal).to_pylist() for a, f in zip(arrays, fields, strict=True)]


def repeats_and_misses(data: bytes) -> bool:
    """Whether one row repeats a key and another one lacks one, which the module's docstring names as unseen."""
    rows = [json.loads(line, object_pairs_hook=list) for line in data.splitlines() if line.strip()]
    names = [[name for name, _ in row] for row in rows]
    return any(len(set(row)) < len(row) for row in names) and len({frozenset(row) for row in names}) > 1


def check_as_exact(parsed: list[pa.Array], fields: list[Field], data: bytes) -> None:
    """Check the columns that a parser made of a block against those of the reader for odd lines."""
    try:
        typed = JsonLines(TableFile("t", Path(__file__), None), fields)._typed(parsed)
    except NotTemporal:
        assert exact(fields, data) is None
        return
    found = [cast_to_common_type([a], f.kind, arrow_decimal).to_pylist() for a, f in zip(typed, fields, strict=True)]
    assert found == exact(fields, data), data


def read_as_the_exact_reader_does() -> None:
    taken = 0

    @EXAMPLES
    @given(blocks())
    def check(block: tuple[list[Field], bytes]) -> None:
        nonlocal taken
        fields, data = block
        parsed = PolarsLines(fields).parse(data)
        if parsed is None or repeats_and_misses(data):
            return
        taken += 1
        check_as_exact(parsed, fields, data)

    check()
    assert taken > 50


def take_plain_blocks() -> None:
    kinds = [base for base in sorted(WIRE) if base != "Decimal"]
    fields = [Field(base, base) for base in kinds]
    assert {f.kind for f in fields} == set(Kind) - {Kind.DECIMAL, Kind.NUMBER}
    value = {"BigInteger": "-9223372036854775808", "Integer": "1", "Float": "1.0E10", "Boolean": "true"}
    texts = {"Date": '"2024-01-15T00:00:00Z"', "DateTime": '"2024-01-15T10:30:00Z"', "Text": '"q\\"{\\\\é"'}
    row = {base: value.get(base) or texts.get(base, '"2024-01-15T10:30:00+01:00"') for base in kinds}
    data = b"".join(("{" + ",".join(f'"{k}":{v}' for k, v in one.items()) + "}\n").encode()
                    for one in (row, dict.fromkeys(row, "null")))  # fmt: skip
    assert PolarsLines(fields).parse(data) is not None
    for wanted in (fields[:1], fields[5:6]):
        others = [field for field in fields if field not in wanted]
        assert PolarsLines(wanted, others).parse(data) is not None
    assert PolarsLines([Field("a", "Decimal")]).parse(b'{"a":1.5}\n') is None


def leave_what_only_looks_like_a_text() -> None:
    """Polars' text of an object or a list has other digits and blanks than the file."""
    fields = [Field("a", "Text"), Field("b", "JSON")]
    for cell in ('{"k":0.1234567890123456789}', '["x",1E3]', '["x"]', '{"k":{}}', "1E3"):
        assert PolarsLines(fields).parse(b'{"a":"x","b":%s}\n' % cell.encode()) is None, cell
    # one row lacks a key, another has one too many: a key that is not asked for, or that is there twice
    for row in (b'{"a":"x","b":"[]","c":1}', b'{"a":"x","b":"[]","b":1}'):
        assert PolarsLines(fields).parse(b'{"a":"x","b":"[]"}\n%s\n{"a":1E3,"b":"[]"}\n' % row) is None, row
    assert PolarsLines(fields[:1]).parse(b'{"a":1.0,"a":null}\n') is None
    assert PolarsLines(fields[:1]).parse(b'{"a":1.0}\n{"a":null,"a":null}\n') is None
    assert PolarsLines([Field("a:b", "Text")]).parse(b'{"a:b":"x:y"}\n') is not None
    # one column has a value too few, and another that is not asked for has one too many
    assert PolarsLines(fields[:1], fields[1:]).parse(b'{"a":1E3,"b":{"k":"v"}}\n') is None


@pytest.mark.parametrize(
    "check",
    [
        read_as_the_exact_reader_does,
        take_plain_blocks,
        leave_what_only_looks_like_a_text,
    ],
    ids=lambda check: check.__name__,
)
def test_polars_can(check: Callable[[], None], elsewhere: Callable[[Callable[[], None]], None]) -> None:
    elsewhere(check)


@pytest.mark.parametrize("lenient", [lambda data, schema: {"a": [1]}, lambda data, schema: 1 / 0])
def test_a_parser_that_bends_values_is_not_taken(lenient: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = types.SimpleNamespace(
        read_ndjson=lenient, Int64="Int64", exceptions=types.SimpleNamespace(ComputeError=ValueError)
    )
    monkeypatch.setattr(polars_engine.importlib, "import_module", lambda name: found)
    assert polars_engine._load() is None


LARGE = "".join(
    f'{{"n":{i},"f":{i / 7!r},"b":{("true", "null", "false")[i % 3]},"s":"ä\\"\\\\{{","d":"2024-01-15"}}\n'
    for i in range(130_000)
)
LARGE_FIELDS = columns(n="Integer", f="Float", b="Boolean", s="Text", d="Date")
SAYS_WHETHER_IN_USE = """
import sys
def transform(t):
    print(sys.modules["transform_shim.reading.jsonl.polars_engine"]._found is not None)
    return t
"""


def use_at_once() -> None:
    polars_engine._IMPORT_BYTES = polars_engine.WORTHWHILE_BYTES


@pytest.mark.parametrize(("room_mib", "is_used"), [(600, True), (80, False)])
def test_large_table_comes_back_byte_for_byte(job: Callable[..., Outcome], room_mib: int, is_used: bool) -> None:
    """With Polars; and without it where it could break for want of memory."""

    def prepare() -> None:
        use_at_once()
        allow_data(room_mib << 20)()

    assert len(LARGE.encode()) > polars_engine.WORTHWHILE_BYTES
    outcome = job(SAYS_WHETHER_IN_USE, {"t": table(LARGE_FIELDS, LARGE)}, before=prepare)
    assert outcome.stdout == f"{is_used}\n"
    assert outcome.output == LARGE


def test_a_mistake_in_a_large_table_is_named_as_in_a_small_one(job: Callable[..., Outcome]) -> None:
    broken = LARGE.replace('"n":99999,', '"n":"99999",')
    outcome = job(SAYS_WHETHER_IN_USE, {"t": table(LARGE_FIELDS, broken)}, before=use_at_once)
    assert outcome.result["code"] == "input_invalid"
    assert "line 100000" in outcome.result["message"]
    assert "column 'n'" in outcome.result["message"]
