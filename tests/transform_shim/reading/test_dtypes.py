"""The dtype of a column follows from its base type and its nulls, never from its values; three exceptions are told.

What loads Polars or DuckDB runs in a process of its own: other tests fork this one.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import io
import tempfile
from collections.abc import Callable
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.transform_shim.reading.test_columnar import arrow, parquet
from tests.transform_shim.reading.test_reading import fields, read
from tests.transform_shim.test_roundtrip import examples
from transform_shim.core.base_types import PARENTS
from transform_shim.core.decimals import arrow_decimal, decimal_array, digits_of, engine_decimal
from transform_shim.core.errors import InputInvalid
from transform_shim.reading.jsonl import blocks, polars_engine, reader, small_blocks

IS_PANDAS_2 = pd.__version__.startswith("2.")
TEXT = "object" if IS_PANDAS_2 else "str"
ORDINARY = {
    "Integer": ("7", "int64"),
    "Number": ("7", "int64"),
    "Float": ("1.5", "float64"),
    "Decimal": ("1.5", "float64"),
    "Boolean": ("true", "bool"),
    "Text": ('"a"', TEXT),
    "Date": ('"2024-01-15"', "datetime64[ns]"),
    "DateTime": ('"2024-01-15T10:30:00"', "datetime64[ns]"),
    "DateTimeWithTZ": ('"2024-01-15T10:30:00Z"', "datetime64[ns, UTC]"),
    "Time": ('"10:30:00"', TEXT),
    "JSON": ('"{}"', TEXT),
}
#: base type, odd value, and the dtype if it is an exception, with words of the line that tells it
ODD: list[tuple[str, str, str | None, str]] = [
    ("Integer", "9223372036854775807", None, ""),
    ("Integer", "5.0", None, ""),
    ("Integer", "9223372036854775808", "object", "integers beyond 64 bits"),
    ("BigInteger", "1" * 30, "object", "integers beyond 64 bits"),
    ("Number", "1E3", None, ""),
    ("Number", "2.5", "float64", "fractions"),
    ("Number", "1" * 30, "object", "integers beyond 64 bits"),
    ("Float", "1e300", None, ""),
    ("Float", '"NaN"', None, ""),
    ("Decimal", "1", None, ""),
    ("Decimal", "12345678901234567.89", None, "1 value rounded to float64"),
    ("Decimal", "1" * 60, None, "1 value rounded to float64"),
    ("Decimal", "0." + "1" * 40, None, "1 value rounded to float64"),
    ("Decimal", "1" * 77, None, "1 value rounded to float64"),
    ("Decimal", "1E-90", None, ""),
    ("Decimal", '"NaN"', None, ""),
    ("Boolean", "0", None, ""),
    ("Text", '"\\ud83d\\ude00"', None, ""),
    ("Text", "1", None, ""),
    ("UUID", '"x"', None, ""),
    ("Date", '"2024-01-15T00:00:00+05:30"', None, ""),
    ("Date", '"9999-12-31"', "datetime64[us]", "years from 2024 to 9999"),
    ("DateTime", '"2024-01-15T10:30:00.123456789"', None, ""),
    ("DateTime", '"2024-01-15"', None, ""),
    ("DateTime", '"9999-12-31T23:59:59.9999999"', "datetime64[us]", "years from 2024 to 9999"),
    ("DateTime", '"1500-01-01T00:00:00"', "datetime64[us]", "years from 1500 to 2024"),
    ("Instant", '"2024-01-15T10:30:00+05:30"', None, ""),
    ("Instant", '"9999-12-31T00:00:00Z"', "datetime64[us, UTC]", "years from 2024 to 9999"),
    ("Time", '"25 o\'clock"', None, ""),
    ("JSON", '{"k":1}', None, ""),
]


def dtype_and_lines(base_type: str, values: list[str], engine: str) -> tuple[str, str]:
    """The dtype of a column as an engine reads it, and what is said about it."""
    polars_engine.WORTHWHILE_BYTES = polars_engine._IMPORT_BYTES = 0 if engine == "polars" else 1 << 40
    small_blocks.SMALL_BYTES = 1 << 40 if engine == "python" else -1
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()) as stderr:
        frame = read(Path(folder), fields(c=base_type), "".join(f'{{"c":{value}}}\n' for value in values))
    return str(frame["c"].dtype), stderr.getvalue()


def ordinary(base_type: str) -> tuple[str, str]:
    """The example of a base type, or of the nearest ancestor that has one."""
    while base_type not in ORDINARY:
        base_type = PARENTS[base_type][0]
    return ORDINARY[base_type]


@pytest.mark.parametrize("engine", ["python", "arrow", "polars"])
def test_ordinary_columns_have_the_dtype_of_their_type(elsewhere: Callable[..., Any], engine: str) -> None:
    for base_type in sorted({*PARENTS, *ORDINARY}):
        value, dtype = ordinary(base_type)
        assert elsewhere(dtype_and_lines, base_type, [value] * 3, engine) == (dtype, ""), base_type


def signs(lines: list[str], engine: str) -> list[float]:
    """The signs of the first column's values."""
    polars_engine.WORTHWHILE_BYTES = polars_engine._IMPORT_BYTES = 0 if engine == "polars" else 1 << 40
    small_blocks.SMALL_BYTES = 1 << 40 if engine == "python" else -1
    with tempfile.TemporaryDirectory() as folder:
        frame = read(Path(folder), fields(c="Float", t="Text"), "".join(f"{line}\n" for line in lines))
    return np.copysign(1, frame["c"]).tolist()


@pytest.mark.parametrize("engine", ["python", "arrow", "polars"])
@pytest.mark.parametrize("other", ["7.5", '"Infinity"'])
def test_only_a_zero_with_a_point_has_a_sign(elsewhere: Callable[..., Any], engine: str, other: str) -> None:
    """As in Python's json module; a value beside it that no fast parser takes changes nothing."""
    lines = [f'{{"c":{value},"t":"-0"}}' for value in (-0.0, "-0", other)]
    assert elsewhere(signs, lines, engine) == [-1, 1, 1]


@pytest.mark.parametrize("engine", ["python", "arrow", "polars"])
@pytest.mark.parametrize(("base_type", "odd", "exception", "told"), ODD)
def test_one_odd_value_changes_no_dtype_but_for_the_exceptions(
    elsewhere: Callable[..., Any], base_type: str, odd: str, exception: str | None, told: str, engine: str
) -> None:
    value, dtype = ordinary(base_type)
    found, said = elsewhere(dtype_and_lines, base_type, [value] * 3 + [odd], engine)
    assert found == (exception or dtype)
    if told:
        assert said.count("\n") == 1
        assert said.startswith("WARNING: Table 'orders', column 'c': ")
        assert told in said
    else:
        assert said == ""


def test_rounded_values_are_counted_by_their_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = ["0.1", "123456789.1234567890", "1E-10", "null", "12345678901234567891", "0.30000000000000004"]
    found = read(tmp_path, fields(c="Decimal"), "".join(f'{{"c":{value}}}\n' for value in values))["c"]
    assert found.tolist()[:3] == [0.1, 123456789.123456789, 1e-10]
    rounded = [v for v in values if v != "null" and Decimal(repr(float(v))) != Decimal(v)]
    assert f"{len(rounded)} values rounded" in capsys.readouterr().err
    assert rounded == ["123456789.1234567890", "12345678901234567891"]


def test_nullable_integers_are_ranked_as_those_of_pandas(tmp_path: Path) -> None:
    found = read(tmp_path, fields(c="Integer"), '{"c":0}\n{"c":null}\n{"c":20}\n')["c"]
    pd.testing.assert_series_equal(found.rank(), pd.Series([0, None, 20], dtype="Int64", name="c").rank())


@pytest.mark.parametrize("data_format", ["parquet", "arrow"])
def test_decimals_of_files_become_the_dtype_of_their_type(tmp_path: Path, data_format: Any) -> None:
    array = pa.array([Decimal(7), None], pa.decimal128(38, 0))
    file = parquet(array) if data_format == "parquet" else arrow(pa.table({"a": array}))
    dtypes = {
        base: str(read(tmp_path, fields(a=base), file, data_format=data_format)["a"].dtype)
        for base in ("Integer", "Number", "Decimal")
    }
    assert dtypes == {"Integer": "Int64", "Number": "Int64", "Decimal": "float64"}
    assert str(read(tmp_path, None, file, data_format=data_format)["a"].dtype) == "float64"


def test_times_of_files_are_cut_to_the_microseconds_of_python(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    array = pa.array([1_000, 1_001, None], pa.time64("ns"))
    assert read(tmp_path, None, parquet(array), data_format="parquet")["a"].tolist() == [dt.time(0, 0, 0, 1)] * 2 + [
        None
    ]
    assert capsys.readouterr().err == "WARNING: Table 'orders', column 'a': 1 value cut to microseconds\n"


@pytest.mark.parametrize("data", ["", '{"c":null}\n'])
def test_decimal_column_without_values_has_one_type(tmp_path: Path, data: str) -> None:
    for form in ("arrow", "arrow_reader"):
        assert read(tmp_path, fields(c="Decimal"), data, form=form).schema.field("c").type == pa.decimal128(18, 10)


@pytest.mark.parametrize("value", ["1" * 77, "1E-77", "1E+300", "0." + "3" * 80])
def test_numbers_of_more_digits_than_any_decimal_are_doubles_in_pandas_alone(
    tmp_path: Path, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = f'{{"c":1.5}}\n{{"c":{value}}}\n{{"c":null}}\n'
    found = read(tmp_path, fields(c="Decimal"), data)["c"]
    assert found.tolist()[:2] == [1.5, float(value)]
    assert str(found.dtype) == "float64"
    assert ("1 value rounded to float64\n" in capsys.readouterr().err) == (
        Decimal(repr(float(value))) != Decimal(value)
    )
    csv = read(tmp_path, fields(c="Decimal"), f"c\n1.5\n{value}\n", data_format="csv")["c"]
    assert csv.tolist() == [1.5, float(value)]
    for form in ("arrow", "arrow_reader"):
        with pytest.raises(InputInvalid, match=r"column 'c': the numbers need more than 76 digits, .* pd\.DataFrame"):
            read(tmp_path, fields(c="Decimal"), data, form=form)


def test_number_beyond_the_range_of_doubles_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputInvalid, match=r"column 'c': 1E\+4400 is beyond the range of float64"):
        read(tmp_path, fields(c="Decimal"), '{"c":1E4400}\n')


@pytest.mark.parametrize("base_type", ["BigInteger", "Number"])
def test_integers_of_any_number_of_digits_are_python_integers(tmp_path: Path, base_type: str) -> None:
    whole = "7" * 400
    data = f'{{"c":1}}\n{{"c":{whole}}}\n{{"c":1E80}}\n{{"c":null}}\n'
    assert read(tmp_path, fields(c=base_type), data)["c"].tolist() == [1, int(whole), 10**80, None]
    csv = f"c,d\n1,\n{whole},\n1E80,\n,x\n"
    found = read(tmp_path, fields(c=base_type, d="Text"), csv, data_format="csv")["c"]
    assert found.tolist() == [1, int(whole), 10**80, None]


def test_csv_number_of_more_digits_than_python_converts_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputInvalid, match="line 2, column 'c': the manifest says a whole number"):
        read(tmp_path, fields(c="Integer"), f"c\n{'1' * 5000}\n", data_format="csv")
    with pytest.raises(InputInvalid, match=r"column 'c': 1{80}… is beyond the range of float64"):
        read(tmp_path, fields(c="Decimal"), f"c\n{'1' * 5000}\n", data_format="csv")


@pytest.mark.parametrize(("base_type", "zone"), [("DateTime", None), ("Instant", "UTC")])
@pytest.mark.parametrize("block_bytes", [64, 1 << 20])
def test_end_of_time_of_sql_server_is_cut_to_microseconds(
    tmp_path: Path,
    base_type: str,
    zone: str | None,
    block_bytes: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In one block with fine values, and each in a block of its own."""
    monkeypatch.setattr(reader, "line_blocks", functools.partial(blocks.line_blocks, block_bytes=block_bytes))
    texts = ["9999-12-31T23:59:59.9999999", "2024-01-15T10:30:00.1234567", "0001-01-01T00:00:00", "2024-01-15T10:30:00"]
    data = "".join(f'{{"c":"{text}"}}\n' for text in texts) + '{"c":null}\n'
    found = read(tmp_path, fields(c=base_type), data)["c"]
    assert found.tolist()[:-1] == [pd.Timestamp(text[:26], tz=zone) for text in texts]
    assert str(found.dtype) == ("datetime64[us]" if zone is None else "datetime64[us, UTC]")
    assert "; 2 values cut to microseconds\n" in capsys.readouterr().err
    with pytest.raises(
        InputInvalid, match=r"column 'c': there are fractions below microseconds and years .* pd\.DataFrame"
    ):
        read(tmp_path, fields(c=base_type), data, form="arrow")


def refusal(form: str) -> str:
    import duckdb  # noqa: F401
    import polars  # noqa: F401

    with tempfile.TemporaryDirectory() as folder, pytest.raises(InputInvalid) as caught:
        read(Path(folder), fields(c="Decimal"), '{"c":' + "1" * 39 + "}\n", form=form)
    return str(caught.value)


@pytest.mark.parametrize("form", ["polars", "polars_lazy", "duckdb"])
def test_numbers_that_an_engine_has_no_decimal_for_are_named(elsewhere: Callable[..., Any], form: str) -> None:
    assert "column 'c': the numbers need 39 digits, and decimals of Polars and DuckDB have at most 38" in elsewhere(
        refusal, form
    )


# -- decimals as handed over compute what Python's Decimal computes ----------------------------------------------------


@st.composite
def decimals(draw: st.DrawFn, most_digits: int) -> list[Decimal]:
    scale = draw(st.integers(0, 12))
    end = 10 ** draw(st.integers(1, most_digits))
    return [Decimal(n).scaleb(-scale) for n in draw(st.lists(st.integers(-end + 1, end - 1), min_size=1, max_size=8))]


def handed_over(values: list[Decimal], choose: Any) -> pa.Array:
    array = decimal_array(list(values))
    whole, scale = digits_of([array.type])
    assume(whole + scale <= 38 or choose is arrow_decimal)
    return array.cast(choose(whole, scale))


def exactly(compute: Callable[[Decimal], Any], values: list[Decimal]) -> list[Any]:
    with localcontext() as context:
        context.prec = 200
        return [compute(value) for value in values]


@examples(300)
@given(decimals(36))
def test_arrow_decimals_compute_exactly(values: list[Decimal]) -> None:
    array = handed_over(values, arrow_decimal)
    total = exactly(lambda _: sum(values), [Decimal()])
    assert [pc.sum(array).as_py()] == total
    assert pc.add(array, array).to_pylist() == exactly(lambda v: v + v, values)
    assert pc.multiply(array, array).to_pylist() == exactly(lambda v: v * v, values)
    assert pc.round(array, 1).to_pylist() == exactly(lambda v: round(v, 1), values)
    assert pc.round(array, -1, round_mode="up").to_pylist() == exactly(
        lambda v: v.quantize(Decimal("1E1"), rounding="ROUND_CEILING"), values
    )
    grouped = pa.table({"k": [1] * len(values), "v": array}).group_by("k").aggregate([("v", "sum")])
    assert grouped["v_sum"].to_pylist() == total


def is_exact_or_overflow(compute: Callable[[], list[Any]], expected: list[Any], errors: Any) -> bool:
    """Whether a computation gives the expected values, or says that they do not fit."""
    try:
        return compute() == expected
    except errors as error:
        return "overflow" in str(error).lower() or "out of range" in str(error).lower()


def compute_in_polars() -> None:
    import polars as pl

    @examples(300)
    @given(decimals(38))
    def check(values: list[Decimal]) -> None:
        series = pl.from_arrow(handed_over(values, engine_decimal))
        for compute, expected in (
            (lambda: [series.sum()], exactly(lambda _: sum(values), [Decimal()])),
            (lambda: (series + series).to_list(), exactly(lambda v: v + v, values)),
            (lambda: (series * 3).to_list(), exactly(lambda v: v * 3, values)),
            (lambda: series.round(1).to_list(), exactly(lambda v: round(v, 1), values)),
        ):
            assert is_exact_or_overflow(compute, expected, pl.exceptions.ComputeError)

    check()


def compute_in_duckdb() -> None:
    import duckdb

    errors = (duckdb.OutOfRangeException, duckdb.ConversionException, duckdb.BinderException)

    @examples(300)
    @given(decimals(38))
    def check(values: list[Decimal]) -> None:
        relation = duckdb.from_arrow(pa.table({"v": handed_over(values, engine_decimal)}))
        for query, expected in (
            (relation.aggregate("sum(v)"), exactly(lambda _: sum(values), [Decimal()])),
            (relation.project("v + v"), exactly(lambda v: v + v, values)),
            (relation.project("v * 3"), exactly(lambda v: v * 3, values)),
            (relation.project("round(v, 1)"), exactly(lambda v: v.quantize(Decimal("0.1"), "ROUND_HALF_UP"), values)),
        ):
            assert is_exact_or_overflow(lambda found=query: [row[0] for row in found.fetchall()], expected, errors)

    check()


@pytest.mark.parametrize("compute", [compute_in_polars, compute_in_duckdb])
def test_decimals_of_engines_compute_exactly_or_fail(
    elsewhere: Callable[..., Any], compute: Callable[[], None]
) -> None:
    elsewhere(compute)
