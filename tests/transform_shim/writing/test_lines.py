"""Rows of text, however their pieces are joined, equal those of json.dumps and csv.writer."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transform_shim.core.errors import OutputInvalid
from transform_shim.core.progress import Progress
from transform_shim.writing import line_encoders
from transform_shim.writing.frame_source import open_frame
from transform_shim.writing.lines import concat, shared_values
from transform_shim.writing.lines import rows as rows_module
from transform_shim.writing.lines.cell_texts import escape_json
from transform_shim.writing.lines.rows import csv_rows, json_rows
from transform_shim.writing.output import write_output

ODD_TEXTS = ('say "hi"', "a\\b", "\n\r\t\x00\x1f\x7f", "\u2028 é 🎉", "", "null", "1", ",", '"', "x" * 300, "\r")
WHOLE = {"int8": (-(2**7), 2**7 - 1), "uint8": (0, 2**8 - 1), "int16": (-(2**15), 2**15 - 1),
         "int32": (-(2**31), 2**31 - 1), "int64": (-(2**63), 2**63 - 1), "uint64": (0, 2**64 - 1)}  # fmt: skip
DAYS = (dt.date(1, 1, 1).toordinal(), dt.date(9999, 12, 31).toordinal())


def json_lines(names: Sequence[str], columns: Sequence[list[Any]]) -> bytes:
    rows = ({n: v.isoformat() if isinstance(v, dt.date) else v for n, v in zip(names, row, strict=True)}
            for row in zip(*columns, strict=True))  # fmt: skip
    return "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows).encode()


def csv_lines(columns: Sequence[list[Any]]) -> bytes:
    """Line by line: before Python 3.13 the writer quotes "\\r" only where its own line end holds one."""
    lines = []
    for row in zip(*columns, strict=True):
        line = io.StringIO()
        csv.writer(line, lineterminator="\r\n").writerow(row)
        lines.append(line.getvalue().removesuffix("\r\n") + "\n")
    return "".join(lines).encode()


def both(names: Sequence[str], arrays: list[pa.Array]) -> None:
    columns = [array.to_pylist() for array in arrays]
    assert b"".join(json_rows(names, arrays, 0)) == json_lines(names, columns)
    assert b"".join(csv_rows(names, arrays, 0)) == csv_lines(columns)


@st.composite
def near(draw: st.DrawFn, low: int, high: int) -> st.SearchStrategy[int]:
    """Numbers of a range that is narrow or not, somewhere or at either end."""
    width = min(draw(st.sampled_from((0, 1, 3, 10, 200, high - low))), high - low)
    start = draw(st.sampled_from((low, high - width)) | st.integers(low, high - width))
    return st.integers(start, start + width)


@st.composite
def column(draw: st.DrawFn, rows: int) -> pa.Array:
    kind = draw(st.sampled_from((*WHOLE, "date", "float", "bool", "text")))
    values: st.SearchStrategy[Any]
    match kind:
        case "date":
            values, found = draw(near(*DAYS)).map(dt.date.fromordinal), pa.date32()
        case "float":  # quarters: their shortest digits are the same everywhere
            number = draw(near(-(2**20), 2**20)).map(float)
            values, found = draw(st.sampled_from((number, number.map(lambda v: v / 4)))), pa.float64()
        case "bool":
            values, found = st.booleans(), pa.bool_()
        case "text":
            some = st.sampled_from(ODD_TEXTS) | st.text(st.characters(codec="utf-8"), max_size=5)
            values, found = draw(st.sampled_from((some, st.sampled_from(("a", "b")), st.just("c")))), pa.large_string()
        case _:
            values, found = draw(near(*WHOLE[kind])), getattr(pa, kind)()
    values = draw(st.sampled_from((values, values, st.none() | values, st.none())))
    skipped = draw(st.integers(0, 9))  # a slice of a longer array begins within a byte of its validity
    cells = draw(st.lists(values, min_size=rows + skipped, max_size=rows + skipped))
    return pa.array(cells, found).slice(skipped)


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[str], list[pa.Array]]:
    rows = draw(st.integers(1, 40))
    arrays = draw(st.lists(column(rows), min_size=1, max_size=6))
    names = [draw(st.sampled_from(("c", 'q"', "é"))) + str(number) for number in range(len(arrays))]
    return names, arrays


@pytest.mark.parametrize(
    ("few_cells", "fewest_rows", "rows_per_choice", "block_texts"),
    [(1024, 4096, 32, 1 << 17), (0, 4096, 32, 1 << 17), (0, 1, 32, 1), (0, 1, 1, 30)],
)
@pytest.mark.parametrize("count", [50, pytest.param(200, marks=pytest.mark.soak)])
def test_rows_equal_those_of_the_standard_library(
    monkeypatch: pytest.MonkeyPatch,
    few_cells: int,
    fewest_rows: int,
    rows_per_choice: int,
    block_texts: int,
    count: int,
) -> None:
    monkeypatch.setattr(rows_module, "_FEW_CELLS", few_cells)
    monkeypatch.setattr(shared_values, "_FEWEST_ROWS", fewest_rows)
    monkeypatch.setattr(concat, "_ROWS_PER_CHOICE", rows_per_choice)
    monkeypatch.setattr(concat, "_BLOCK_TEXTS", block_texts)

    @settings(
        max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(tables())
    def check(table: tuple[list[str], list[pa.Array]]) -> None:
        both(*table)

    check()


ROWS = 40_000
SHAPES: dict[str, Callable[[np.ndarray[Any, Any]], pa.Array]] = {
    "constant": lambda i: pa.array(i * 0 + 2013),
    "constant_until_a_batch_ends": lambda i: pa.array((i >= 16_384).astype("i8")),
    "nothing": lambda i: pa.array(i, mask=i >= 0),
    "nothing_in_one_batch": lambda i: pa.array(i, mask=i < 20_000),
    "one_value_and_nulls": lambda i: pa.array(i * 0 - 1, mask=i % 3 == 0),
    "few": lambda i: pa.array(i % 7),
    "few_and_nulls": lambda i: pa.array(i % 60 - 30, mask=i % 11 == 0),
    "hundreds": lambda i: pa.array(i * 37 % 900),
    "thousands": lambda i: pa.array(i * 7919 % 8000 - 4000, mask=i % 13 == 0),
    "bytes": lambda i: pa.array((i % 256 - 128).astype("i1")),
    "largest": lambda i: pa.array(np.uint64(2**64 - 1) - (i % 9).astype("u8")),
    "about_the_largest_signed": lambda i: pa.array(np.uint64(2**63 - 5) + (i % 9).astype("u8")),
    "unique": lambda i: pa.array(i * 1_000_003),
    "whole_floats": lambda i: pa.array(i % 500 * 1.0, mask=i % 5 == 0),
    "floats": lambda i: pa.array(i / 8),
    "mixed_floats": lambda i: pa.array(np.where(i % 2 == 0, i, i / 4)),
    "flags": lambda i: pa.array(i % 2 == 0, mask=i % 9 == 0),
    "days": lambda i: pa.array(i % 3000 - 1000, mask=i % 17 == 0).cast(pa.int32()).cast(pa.date32()),
    "few_texts": lambda i: pa.array(np.array(ODD_TEXTS, object)[i % len(ODD_TEXTS)], mask=i % 4 == 0),
    "a_text": lambda i: pa.array(["é"] * len(i)),
    "unique_texts": lambda i: pa.array([f'"{n}"' for n in i], pa.large_string()),
    "ascii_texts": lambda i: pa.array([f"N{n}" for n in i]),
}  # fmt: skip


@pytest.mark.parametrize("data_format", ["jsonl", "csv"])
@pytest.mark.parametrize("frame", ["pandas", "arrow", "reader"])
def test_large_table_equals_that_of_the_standard_library(tmp_path: Path, frame: str, data_format: Any) -> None:
    """Every shape that a column can have, over the borders of batches."""
    numbers = np.arange(ROWS)
    table = pa.table({name: shape(numbers) for name, shape in SHAPES.items()})
    value: Any = table
    if frame == "pandas":
        value = table.to_pandas(types_mapper=lambda kind: pd.Int64Dtype() if kind == pa.int64() else None)
    elif frame == "reader":
        value = pa.RecordBatchReader.from_batches(table.schema, table.to_batches(max_chunksize=30_001))
    write_output(
        open_frame(value, ()), data_format, tmp_path / "output", tmp_path / "m", Progress(None, "write", "output")
    )
    columns = [table.column(name).to_pylist() for name in SHAPES]
    written = (tmp_path / "output").read_bytes()
    if data_format == "jsonl":
        assert written == json_lines(list(SHAPES), columns)
    else:
        assert written == (",".join(SHAPES) + "\n").encode() + csv_lines(columns)


DOUBLES = st.floats() | st.floats(-2e10, 2e10) | st.sampled_from([10.0**power for power in range(-9, 18)])


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(st.lists(st.none() | DOUBLES, min_size=1, max_size=3))
def test_a_double_has_the_same_digits_in_a_small_result_as_in_a_large_one(values: list[float | None]) -> None:
    array = pa.array(values, pa.float64())
    large = pa.concat_arrays([array, pa.nulls(2000, pa.float64())])
    small_lines = b"".join(json_rows(["v"], [array], 0))
    assert b"".join(json_rows(["v"], [large], 0)) == small_lines + b'{"v":null}\n' * 2000


@pytest.mark.parametrize("bound", ["_LINES_CELLS", "_LINES_BYTES"])
def test_wide_and_long_rows_are_written_in_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bound: str) -> None:
    monkeypatch.setattr(line_encoders, bound, 1)
    monkeypatch.setattr(line_encoders, "_FEW_ROWS", 3)
    frame = pd.DataFrame({"i": range(10), "s": ["é"] * 10})
    write_output(open_frame(frame, ()), "jsonl", tmp_path / "output", tmp_path / "m", Progress(None, "write", "output"))
    assert (tmp_path / "output").read_bytes() == json_lines(["i", "s"], [list(range(10)), ["é"] * 10])
    years = pd.DataFrame({"t": np.array(["2024-01-01"] * 7 + ["12024-01-01"], "M8[s]")})
    with pytest.raises(OutputInvalid, match="years 1 to 9999") as caught:
        write_output(open_frame(years, ()), "jsonl", tmp_path / "o", tmp_path / "m", Progress(None, "write", "output"))
    assert caught.value.row == 7


def test_texts_of_a_batch_are_rendered_once_in_however_many_parts_it_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Texts with some nulls share objects, and each part of the batch has the dictionary of all its texts."""
    rendered: list[int] = []

    def counted(texts: pa.Array) -> pa.Array:
        rendered.append(len(texts))
        return escape_json(texts)

    monkeypatch.setattr("transform_shim.writing.lines.rows.escape_json", counted)
    monkeypatch.setattr(line_encoders, "_LINES_BYTES", 1 << 12)
    texts = [None if n % 8 == 0 else f"text {n}" for n in range(4096)]
    frame = pd.DataFrame({"t": texts}, dtype=object)
    write_output(open_frame(frame, ()), "jsonl", tmp_path / "output", tmp_path / "m", Progress(None, "write", "output"))
    assert (tmp_path / "output").read_bytes() == json_lines(["t"], [texts])
    assert len(rendered) > 1
    assert sum(rendered) <= 4096


def test_day_that_no_text_can_say_is_named_among_many_near_it() -> None:
    last = (dt.date(9999, 12, 31) - dt.date(1970, 1, 1)).days
    days = pa.array([last - n % 50 for n in range(5000)] + [last + 1], pa.int32()).cast(pa.date32())
    with pytest.raises(OutputInvalid, match="years 1 to 9999") as caught:
        json_rows(["d"], [days], 100)
    assert (caught.value.column, caught.value.row) == ("d", 5100)


def test_bytes_that_are_no_text_are_found_among_many_texts(tmp_path: Path) -> None:
    """A look at all bytes at once is no look at each text: half a character at a text's end is still found."""
    data, offsets = "é".encode() * 3000, np.arange(6001)
    broken = pa.Array.from_buffers(pa.large_string(), 6000, [None, pa.py_buffer(offsets), pa.py_buffer(data)])
    backwards = np.where(np.arange(5001) == 2000, 3, np.arange(5001))
    crossed = pa.Array.from_buffers(pa.large_string(), 5000, [None, pa.py_buffer(backwards), pa.py_buffer(b"x" * 5000)])
    for texts in (broken, crossed):
        with pytest.raises(OutputInvalid, match="not valid"):
            write_output(
                open_frame(pa.table({"t": texts}), ()), "jsonl", tmp_path / "o", tmp_path / "m",
                Progress(None, "write", "output"),
            )  # fmt: skip
