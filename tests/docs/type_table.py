"""The table of types in the documentation, rendered from what the code does with examples.

Each row is made by reading or writing a real value, so the table cannot say anything else than the code.
"""

from __future__ import annotations

import datetime as dt
import json
import tempfile
import uuid
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from transform_shim.core.errors import OutputInvalid
from transform_shim.core.table_file import TableFile
from transform_shim.reading.frame_kinds import load_table
from transform_shim.reading.table_source import TableSource
from transform_shim.writing.column_types import base_type_for, facts_of
from transform_shim.writing.from_pandas import plan_column
from transform_shim.writing.lines.rows import json_rows

__all__ = ["READ_EXAMPLES", "WRITE_EXAMPLES", "read_row", "render_markdown", "write_row"]

#: base_type, JSON value on the wire.
READ_EXAMPLES: tuple[tuple[str, str], ...] = (
    ("Integer", "1"),
    ("BigInteger", "9223372036854775807"),
    ("BigInteger", "9223372036854775808"),
    ("Number", "1"),
    ("Number", "2.5"),
    ("Float", "1.5"),
    ("Decimal", "1234.56"),
    ("Decimal", "12345678901234567.89"),
    ("Boolean", "true"),
    ("Text", '"a"'),
    ("UUID", '"550e8400-e29b-41d4-a716-446655440000"'),
    ("Date", '"2024-01-15T00:00:00+05:30"'),
    ("DateTime", '"2024-01-15T10:30:00-05:00"'),
    ("DateTime", '"2024-01-15T10:30:00.123456789Z"'),
    ("DateTime", '"9999-12-31T00:00:00Z"'),
    ("DateTimeWithLocalTZ", '"2024-01-15T10:30:00-05:00"'),
    ("Time", '"\\"10:30:00\\""'),
    ("JSON", '"{\\"k\\":1}"'),
)

_UTC = dt.UTC
#: The common name of a type, and a column of it.
WRITE_EXAMPLES: tuple[tuple[str, Callable[[], Any]], ...] = (
    ("`int64` and smaller", lambda: pd.Series([1])),
    ("`int64`, beyond 32 bits", lambda: pd.Series([2**40])),
    ("`uint64`, beyond 63 bits", lambda: pd.Series([2**63], dtype="uint64")),
    ("`Int64`", lambda: pd.Series([1, None], dtype="Int64")),
    ("`float64`", lambda: pd.Series([0.1 + 0.2, np.nan, np.inf])),
    ("`float32`", lambda: pd.Series([0.1], dtype="float32")),
    ("`bool`, `boolean`", lambda: pd.Series([True, None], dtype="boolean")),
    ("`str`, `string`", lambda: pd.Series(["a", None], dtype="string")),
    ("`datetime64`", lambda: pd.Series(["2024-01-15T10:30:00.5", None], dtype="datetime64[us]")),
    ("`datetime64` with zone", lambda: pd.Series(pd.to_datetime(["2024-01-15 10:30"]).tz_localize("America/New_York"))),
    ("`timedelta64`", lambda: pd.Series(pd.to_timedelta(["1 days 02:00:00"]))),
    ("`period`", lambda: pd.Series(pd.period_range("2024-01", periods=1, freq="M"))),
    ("`interval`", lambda: pd.Series(pd.interval_range(0, 1))),
    ("`category`", lambda: pd.Series(["x", None], dtype="category")),
    ("`Sparse`", lambda: pd.Series(pd.arrays.SparseArray([0, 1]))),
    ("Arrow decimal", lambda: pd.Series([Decimal("1.10")], dtype=pd.ArrowDtype(pa.decimal128(9, 2)))),
    ("objects: `int` beyond 64 bits", lambda: pd.Series([2**70], dtype=object)),
    ("objects: `Decimal`", lambda: pd.Series([Decimal("0.1"), Decimal("1E-40")], dtype=object)),
    ("objects: `date`", lambda: pd.Series([dt.date(2024, 1, 15)], dtype=object)),
    ("objects: `datetime`", lambda: pd.Series([dt.datetime(2024, 1, 15, 10, 30, tzinfo=_UTC)], dtype=object)),
    ("objects: `time`", lambda: pd.Series([dt.time(10, 30)], dtype=object)),
    ("objects: `bytes`", lambda: pd.Series([b"\xff\x00"], dtype=object)),
    ("objects: `UUID`", lambda: pd.Series([uuid.UUID(int=0)], dtype=object)),
    ("objects: `list`, `dict`", lambda: pd.Series([[1, 2], {"k": None}], dtype=object)),
    ("objects: all null", lambda: pd.Series([None, pd.NaT], dtype=object)),
    ("objects: a mixture", lambda: pd.Series([1, "x"], dtype=object)),
    ("`complex`", lambda: pd.Series([1j])),
)


def read_row(base_type: str, value: str) -> tuple[str, str, str, str]:
    """base_type, JSON, Arrow type, and pandas dtype without and with nulls, of one example."""
    arrow_type = _load(base_type, [value], "arrow").schema.field("c").type
    dtypes = [_dtype_text(_load(base_type, values, "pandas")["c"]) for values in ([value], [value, "null"])]
    pandas = f"`{dtypes[0]}`" if dtypes[0] == dtypes[1] else f"`{dtypes[0]}`; with nulls `{dtypes[1]}`"
    return base_type, f"`{value}`", f"`{arrow_type}`", pandas


def write_row(label: str, series: Any) -> tuple[str, str, str, str]:
    """Label, Arrow type, base_type and JSON of one example."""
    try:
        column = plan_column("c", series, None)
        array = column.slice(0, len(series))
    except OutputInvalid as error:
        return label, "", "", f"error: {error.problem}"
    lines = b"".join(json_rows(["c"], [array], 0)).decode().splitlines()
    values = ", ".join("`" + line.removeprefix('{"c":').removesuffix("}") + "`" for line in lines)
    return label, f"`{column.type}`", base_type_for(column.type, facts_of(array, None)), values


def render_markdown() -> str:
    """Both tables, as they stand in the documentation."""
    reading = _table(
        ("base_type", "JSON", "Arrow", "pandas"), [read_row(base_type, value) for base_type, value in READ_EXAMPLES]
    )
    writing = _table(
        ("pandas", "Arrow", "base_type", "JSON"), [write_row(label, make()) for label, make in WRITE_EXAMPLES]
    )
    return f"### What transform() gets\n\n{reading}\n### What is written\n\n{writing}"


def _load(base_type: str, values: list[str], form: Any) -> Any:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data").write_text("".join(f'{{"c":{value}}}\n' for value in values))
        (folder / "manifest").write_text(json.dumps({"fields": [{"name": "c", "base_type": base_type}]}))
        return load_table(TableSource(TableFile("t", folder / "data", folder / "manifest")), form).value


def _dtype_text(series: Any) -> str:
    return str(series.dtype)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
