"""Values that an engine, or Python itself, hands over differently from what they are."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests.transform_shim.jobs import Outcome, columns, table
from tests.transform_shim.writing.test_writing import cells, text, write
from transform_shim.core.errors import OutputInvalid

Job = Callable[..., Outcome]
FULL = "12345678901234567890123456789012345678.5"
NANOSECOND = pd.Timestamp("2024-01-01 00:00:00.000000001")


def test_decimals_keep_their_digits_beside_small_ones_in_any_context(tmp_path: Path) -> None:
    with localcontext() as context:
        context.prec = 5
        assert cells(tmp_path, [Decimal(FULL), Decimal("1E-10")]) == [FULL, "1E-10"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([np.timedelta64(1, "D"), np.timedelta64("NaT")], ['"P1DT0H0M0S"', "null"]),
        ([np.datetime64("NaT"), dt.date(2024, 1, 1)], ["null", '"2024-01-01T00:00:00"']),
        ([[NANOSECOND, dt.time(1, 2)]], [r'"[\"2024-01-01T00:00:00.000000001\",\"01:02:00\"]"']),
        ([pd.array([2**53 + 1, None], dtype="Int64"), None], ['"[9007199254740993,null]"', "null"]),
        (
            [pd.Categorical(["b", None]), pd.array([NANOSECOND])],
            [r'"[\"b\",null]"', r'"[\"2024-01-01T00:00:00.000000001\"]"'],
        ),
        ([np.array([2**70, [None]], dtype=object)], ['"[1180591620717411303424,[null]]"']),
    ],
)
def test_object_is_written_by_its_own_type(tmp_path: Path, values: list[Any], expected: list[str]) -> None:
    assert cells(tmp_path, values, dtype=object) == expected


@pytest.mark.parametrize(
    ("values", "dtype", "row"),
    [
        ([NANOSECOND, dt.datetime(9999, 1, 1)], object, 1),
        ([np.datetime64("2024-01-01T00:00:00.123456789012", "ps")], object, 0),
        (["x", "\ud800"], pd.StringDtype("python"), 1),
        ([Decimal(5), Decimal(5), Decimal("1E+80")], "category", 2),
    ],
)
def test_value_that_would_change_is_named(tmp_path: Path, values: list[Any], dtype: Any, row: int) -> None:
    frame = pd.DataFrame({"c": pd.Series(values, dtype=dtype)})
    with pytest.raises(OutputInvalid, match=f"column 'c', row {row}: "):
        write(tmp_path, frame)


def test_distinct_texts_of_each_group_are_lists_in_every_pandas(job: Job) -> None:
    code = (
        "import pandas as pd\ndef transform():\n    df = pd.DataFrame({'g': [1, 1, 2], 't': ['a', 'b', None]})\n"
        "    return df.groupby('g')['t'].unique().reset_index()"
    )
    assert job(code).cells("t") == ['["a","b"]', "[null]"]


@pytest.mark.parametrize("frame", ["pd.DataFrame", "pl.DataFrame", "pa.Table"])
@pytest.mark.parametrize("value", ["9223372036854775808", "36893488147419103232"])
def test_numbers_beyond_64_bits_are_decimals_in_every_frame(job: Job, frame: str, value: str) -> None:
    code = f"import pandas as pd, polars as pl, pyarrow as pa\ndef transform(t: {frame}):\n    return t"
    outcome = job(code, {"t": table(columns(c="Number"), f'{{"c":{value}}}\n{{"c":1}}\n')})
    assert outcome.types == {"c": "Decimal"}  # Metabase would make a Number a BIGINT
    assert outcome.output == f'{{"c":{value}}}\n{{"c":1}}\n'


def bad_utf8() -> pa.Array:
    offsets = pa.py_buffer(np.array([0, 2, 4], dtype=np.int32))
    return pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"ok\xff\xfe")])


@pytest.mark.parametrize(
    ("array", "row"),
    [
        (bad_utf8(), 1),
        (pa.array([86_400_000, 1], pa.date64()), 1),
        (pa.array([1, 10**18], pa.duration("s")), 1),
        (pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]), 0),
    ],
)
def test_arrow_value_that_cannot_be_written_is_named(tmp_path: Path, array: pa.Array, row: int) -> None:
    with pytest.raises(OutputInvalid, match=f"column 'c', row {row}: "):
        write(tmp_path, pa.table({"c": array}))


def test_interval_keeps_its_nanoseconds(tmp_path: Path) -> None:
    values = pa.array([(1, 2, 2**53 + 1), (0, 0, -1_500_000_000)], pa.month_day_nano_interval())
    written = text(tmp_path, pa.table({"c": values}))
    assert written == '{"c":"P1M2DT9007199.254740993S"}\n{"c":"P0M0DT-1.5S"}\n'


def test_polars_categories_are_written(job: Job) -> None:
    code = (
        "import polars as pl\ndef transform():\n    categories = [pl.Categorical, pl.Enum(['x', 'y'])]\n"
        "    return pl.DataFrame([pl.Series(str(i), ['x', None], dtype=t) for i, t in enumerate(categories)])"
    )
    assert job(code).rows == [{"0": "x", "1": "x"}, {"0": None, "1": None}]


@pytest.mark.parametrize("lazy", ["", ".lazy()"])
@pytest.mark.parametrize("kind", ["Int128", "Object"])
def test_polars_type_that_arrow_does_not_know_is_named(job: Job, kind: str, lazy: str) -> None:
    code = (
        "import polars as pl\ndef transform():\n"
        f"    return pl.DataFrame({{'c': pl.Series([1], dtype=pl.{kind})}}){lazy}"
    )
    result = job(code).result
    assert result["code"] == "output_invalid"
    assert f"column 'c': the Polars type {kind} cannot be written" in result["message"]


@pytest.mark.parametrize("kind", ["List(pl.Int128)", "Array(pl.Int128, 1)", "Struct({'x': pl.List(pl.Int128)})"])
@pytest.mark.parametrize("lazy", ["", ".lazy()"])
def test_polars_type_within_another_that_arrow_does_not_know_is_named(job: Job, kind: str, lazy: str) -> None:
    code = f"import polars as pl\ndef transform():\n    return pl.DataFrame({{'c': [None]}}, schema={{'c': pl.{kind}}}){lazy}"
    result = job(code).result
    assert result["code"] == "output_invalid"
    assert "column 'c': the Polars type Int128 in " in result["message"]


@pytest.mark.parametrize("within", ["{}", "[{}]", "{{'x': [{}]}}", "map {{1: {}}}", "[{}]::{}[1]"])
@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("(2::uhugeint << 127) - 1", "UHUGEINT"),
        ("1::bignum", "BIGNUM"),
        ("'101'::bit", "BIT"),
        ("timetz '10:20:30+05'", "TIME WITH TIME ZONE"),
        ("1::variant", "VARIANT"),
    ],
)
def test_duckdb_type_that_changes_on_the_way_is_named(job: Job, value: str, kind: str, within: str) -> None:
    query = f"select {within.format(value, kind)} as c"
    result = job(f'import duckdb\ndef transform():\n    return duckdb.sql("{query}")').result
    assert result["code"] == "output_invalid"
    assert f"column 'c': the DuckDB type {kind}" in result["message"]


def test_duckdb_interval_within_a_list_is_written_as_one_of_a_column(job: Job) -> None:
    query = "select interval 1 month a, [a] b, {'x': a} c"
    code = f'import duckdb\ndef transform():\n    return duckdb.sql("{query}")'
    assert job(code).rows == [{"a": "P1M0DT0S", "b": '["P1M0DT0S"]', "c": '{"x":"P1M0DT0S"}'}]


def test_duckdb_intervals_are_written_by_way_of_pandas_too(job: Job) -> None:
    query = "select interval (x) month - interval 3 day + interval 1.5 second a, [a] b from range(2) t(x)"
    code = f'import duckdb\ndef transform():\n    return duckdb.sql("{query}").to_arrow_table(){{}}'
    first, second = "P0M-3DT1.5S", "P1M-3DT1.5S"
    expected = [{"a": first, "b": f'["{first}"]'}, {"a": second, "b": f'["{second}"]'}]
    assert job(code.format(".to_pandas()")).rows == job(code.format("")).rows == expected
