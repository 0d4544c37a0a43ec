"""Tables that come as CSV, Parquet or Arrow: values that need care, and files that are not what they should be."""

from __future__ import annotations

import datetime as dt
import gzip
import io
import json
import math
import uuid
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest

from tests.transform_shim.jobs import Outcome, table
from tests.transform_shim.reading.test_reading import fields, read
from transform_shim.core.errors import InputInvalid

KOLKATA_MIDNIGHT = pa.array([dt.datetime(2024, 1, 14, 18, 30)], pa.timestamp("us", "Asia/Kolkata"))


def parquet(*columns: Any, names: str = "a") -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(list(columns), names=list(names)), file)
    return file.getvalue()


def arrow(table: pa.Table) -> bytes:
    file = io.BytesIO()
    with pyarrow.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    return file.getvalue()


@pytest.mark.parametrize(
    ("base_type", "texts", "values"),
    [
        ("BigInteger", ["1", "9223372036854775808"], [1, 2**63]),
        ("Integer", ["1", "5.0", "+2", "1e3"], [1, 5, 2, 1000]),
        ("Integer", ["1", '""', "2"], [1, None, 2]),
        ("Decimal", ["0.1", "1" * 50 + ".5"], [Decimal("0.1"), Decimal("1" * 50 + ".5")]),
        ("Boolean", ["true", "0", "FALSE", ""], [True, False, False, None]),
        ("Float", ["1", "-Infinity", ""], [1.0, float("-inf"), None]),
        ("Date", ["2024-01-15", '""'], [dt.date(2024, 1, 15), None]),
    ],
)
def test_csv_value_has_its_declared_type(tmp_path: Path, base_type: str, texts: list[str], values: list[Any]) -> None:
    data = "a,b\n" + "".join(f"{text},x\n" for text in texts)
    found = read(tmp_path, fields(a=base_type, b="Text"), data, data_format="csv", form="arrow")
    assert found.column("a").to_pylist() == values


def test_csv_number_beyond_the_bits_of_any_decimal_does_not_overflow(tmp_path: Path) -> None:
    """As PostgreSQL writes 1e300."""
    data = f"a\n1.5\n1{'0' * 300}\n"
    assert read(tmp_path, fields(a="Decimal"), data, data_format="csv")["a"].tolist() == [1.5, 1e300]


@pytest.mark.parametrize(
    ("entries", "data", "said"),
    [
        (fields(a="Integer", b="Text"), 'a,b\n1,"x\ny"\nz,w\n', ["line 4", "column 'a'", "found 'z'"]),
        (fields(a="Integer"), "a\n1\n2.5\n", ["line 3", "column 'a'", "found 2.5"]),
        (fields(a="Integer"), "a\n1\n0x10\n", ["line 3", "column 'a'", "found '0x10'"]),
        (fields(a="Date", b="Text"), 'a,b\n"",x\ntomorrow,y\n', ["line 3", "column 'a'", "found 'tomorrow'"]),
        (fields(a="Float"), "a\n1\n1e400\n", ["line 3", "column 'a'", "fits a double"]),
        (fields(a="Boolean"), "a\ntrue\nt\n", ["line 3", "column 'a'", "found 't'"]),
        (fields(a="Integer", b="Text"), 'a,b\n1,"x\ny"\n2,y,z\n', ["line 4", "Expected 2 columns"]),
        (fields(a="Text"), "a\nok\né\n".encode("latin1"), ["line 3", "column 'a'", "not valid UTF-8"]),
        (fields(é="Text"), "é\nok\n".encode("latin1"), ["line 1", "header", "0xe9"]),
        (fields(a="Integer"), "a\n1\n".encode("utf-16"), ["line 1", "header", "0xff"]),
        (fields(a="Integer"), gzip.compress(b"a\n1\n", mtime=0), ["compressed with gzip", "Content-Encoding"]),
        (fields(a="Integer", b="Text"), "a;b\n1;x\n", ["line 1", "column 'a'", "no such column", "a;b"]),
        (fields(a="Integer"), "a,a\n1,2\n", ["line 1", "column 'a'", "several columns"]),
        (None, "a,a\n1,2\n", ["column 'a'", "several columns"]),
        (fields(a="Integer", b="Text"), 'a,b\n1,x\n2,"y\n', ["line 3", "column 'b'", "quotation marks"]),
        (fields(a="Integer", b="Text"), 'a,b\n1,x\n2,"', ["line 3", "column 'b'", "quotation marks"]),
    ],
)
def test_csv_error_names_line_and_column(tmp_path: Path, entries: Any, data: str | bytes, said: list[str]) -> None:
    with pytest.raises(InputInvalid) as caught:
        read(tmp_path, entries, data, data_format="csv")
    for words in said:
        assert words in str(caught.value)


@pytest.mark.parametrize("data", ['a\nx\n"y ""q"""', 'a\nx\n""', 'a\nx\n5"y\n', 'a\nx\n"y\n"\n'])
def test_csv_whose_quotes_are_closed_is_whole(tmp_path: Path, data: str) -> None:
    assert len(read(tmp_path, fields(a="Text"), data, data_format="csv")) == 2


@pytest.mark.parametrize(
    ("text", "is_told"),
    [("status;amount\npaid;1\n", True), ("status,amount\npaid,1\n", False), ("status\npaid\n", False)],
)
def test_csv_with_another_separator_gives_a_warning_with_the_remedy(
    tmp_path: Path, text: str, is_told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    read(tmp_path, None, text, data_format="csv")
    said = capsys.readouterr().err
    assert ("its separator seems to be ';'" in said) is is_told
    assert said.count("read_csv(FILE, sep=';')") == is_told


@pytest.mark.parametrize("data", ["a,b", "a,b\n", "\ufeffa,b", '"a","b"'])
def test_csv_with_a_header_only_is_a_table_without_rows(tmp_path: Path, data: str) -> None:
    for entries, dtypes in ((None, ("object", "str")), (fields(a="Integer", b="Text"), ("int64",))):
        frame = read(tmp_path, entries, data.encode(), data_format="csv")
        assert (list(frame.columns), len(frame), str(frame["a"].dtype) in dtypes) == (["a", "b"], 0, True)


def test_csv_line_in_a_later_block_is_counted_through(tmp_path: Path) -> None:
    data = "a,b\n" + '1,"xxxx\nxxxx"\n' * 400_000 + "q,w\n"
    with pytest.raises(InputInvalid, match="line 800002, column 'a'"):
        read(tmp_path, fields(a="Integer", b="Text"), data, data_format="csv")


@pytest.mark.parametrize("last", ["3", "q"])
def test_csv_row_larger_than_a_block_is_read(tmp_path: Path, last: str) -> None:
    data = "a,b\n" + "x,1\n" * 1_500_000 + "y" * 6_000_000 + f",2\nz,{last}\n"
    if last == "q":
        with pytest.raises(InputInvalid, match=r"line 1500003, column .b.: .*found .q."):
            read(tmp_path, fields(a="Text", b="Integer"), data, data_format="csv")
        return
    frame = read(tmp_path, fields(a="Text", b="Integer"), data, data_format="csv")
    assert frame["b"].value_counts().to_dict() == {1: 1_500_000, 2: 1, 3: 1}


def test_csv_whose_first_row_is_larger_than_a_block_needs_no_manifest(tmp_path: Path) -> None:
    found = read(tmp_path, None, "a,b\n" + '"' + "x\n" * 6_000_000 + '",1\ny,2\n', data_format="csv")
    assert [len(text) for text in found["a"]] == [12_000_000, 1]
    assert found["b"].tolist() == [1, 2]


@pytest.mark.parametrize(
    "texts", [["2024-13-01"], ["0000-00-00"], ["2024-01-15", "2024-02-30"], ["2024-01-01 25:00:00"]]
)
def test_csv_text_that_only_looks_like_a_date_stays_text(tmp_path: Path, texts: list[str]) -> None:
    assert read(tmp_path, None, "\n".join(["a", *texts, ""]), data_format="csv")["a"].tolist() == texts


@pytest.mark.parametrize(
    ("base_type", "array", "values"),
    [
        ("UUID", pa.array([uuid.UUID(int=5).bytes, None], pa.uuid()), [str(uuid.UUID(int=5)), None]),
        ("JSON", pa.array([{"t": dt.datetime(2024, 1, 1), "d": Decimal("1.10"), "b": b"x"}]),
         ['{"t":"2024-01-01T00:00:00","d":1.10,"b":"eA=="}']),
        ("Text", pa.array([b"ok", None]), ["ok", None]),
        ("Text", pa.array([0.1, math.nan, -math.inf], pa.float32()), ["0.1", None, None]),
        ("Text", pa.array([dt.datetime(2024, 1, 15, 10, 30)]), ["2024-01-15T10:30:00"]),
        ("JSON", pa.array([90, None], pa.duration("s")), ["P0DT0H1M30S", None]),
        ("Time", pa.array([dt.time(10, 30), dt.time(1, 2, 3, 400_000)]), ["10:30:00", "01:02:03.4"]),
        ("Date", KOLKATA_MIDNIGHT, [dt.date(2024, 1, 15)]),
        ("DateTime", KOLKATA_MIDNIGHT, [dt.datetime(2024, 1, 15)]),
        ("Instant", KOLKATA_MIDNIGHT, [dt.datetime(2024, 1, 14, 18, 30, tzinfo=dt.UTC)]),
        ("Instant", KOLKATA_MIDNIGHT.cast(pa.timestamp("us")), [dt.datetime(2024, 1, 14, 18, 30, tzinfo=dt.UTC)]),
        ("Decimal", pa.array([0.1, None]), [Decimal("0.1"), None]),
        ("Number", pa.array([1.0, 2.5]), [Decimal("1"), Decimal("2.5")]),
        ("Integer", pa.array([1.0, None]), [1, None]),
        ("Boolean", pa.array([1.0, 0.0, math.nan]), [True, False, None]),
        ("Boolean", pa.array([1, 0, None], pa.int8()), [True, False, None]),
    ],
)  # fmt: skip
def test_column_of_another_type_keeps_its_values(tmp_path: Path, base_type: str, array: Any, values: Any) -> None:
    table = read(tmp_path, fields(a=base_type), parquet(array), data_format="parquet", form="arrow")
    assert table.column("a").to_pylist() == values


def test_dictionary_of_views_is_read(tmp_path: Path) -> None:
    array = pa.DictionaryArray.from_arrays(pa.array([0, None]), pa.array(["x"], pa.string_view()))
    frame = read(tmp_path, fields(a="Text"), arrow(pa.table({"a": array})), data_format="arrow", form="arrow")
    assert frame.column("a").to_pylist() == ["x", None]


@pytest.mark.parametrize("data_format", ["parquet", "arrow"])
def test_file_without_rows_keeps_its_types(tmp_path: Path, data_format: str) -> None:
    moments = pa.array([], pa.timestamp("us"))
    table = pa.table({"a": pa.array([], pa.int64()), "d": moments, "c": pa.array([], pa.string()).dictionary_encode()})
    data = parquet(*table.columns, names="adc") if data_format == "parquet" else arrow(table)
    found = read(tmp_path, None, data, data_format=data_format, form="arrow").schema
    assert (found.names, found.types[:2]) == (["a", "d", "c"], [pa.int64(), pa.timestamp("us")])
    frame = read(tmp_path, None, data, data_format=data_format)
    assert [str(kind) for kind in frame.dtypes[:2]] == ["int64", "datetime64[ns]"]
    declared = read(tmp_path, fields(a="Float"), data, data_format=data_format)
    assert [str(kind) for kind in declared.dtypes] == ["float64"]


def test_nested_integers_beside_nulls_stay_integers(tmp_path: Path) -> None:
    data = parquet(pa.array([[2**60 + 1, None], None]), pa.array([{"x": 2**60 + 1}, None]), names="ab")
    frame = read(tmp_path, None, data, data_format="parquet")
    assert frame["a"][0] == [2**60 + 1, None]
    assert frame["b"][0] == {"x": 2**60 + 1}


def bad_utf8() -> pa.Array:
    offsets = pa.py_buffer(np.array([0, 2, 4], dtype=np.int32))
    return pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"ok\xff\xfe")])


@pytest.mark.parametrize(
    ("entries", "data", "said"),
    [
        (fields(a="Integer"), lambda: parquet(pa.array([1.0, 1.5])), ["line 2", "column 'a'", "found 1.5"]),
        (fields(a="Decimal"), lambda: parquet(pa.array([1.0, math.inf])), ["line 2", "column 'a'", "found Infinity"]),
        (fields(a="Boolean"), lambda: parquet(pa.array([1, 2])), ["line 2", "column 'a'", "found 2"]),
        (fields(a="Integer"), lambda: parquet(pa.array([dt.time(1)])), ["line 1", "column 'a'", "time(1, 0)"]),
        (fields(a="Integer"), lambda: parquet(pa.array(["1", "x"])), ["line 2", "column 'a'", "found 'x'"]),
        (
            fields(a="Integer"),
            lambda: parquet(pa.array([2932897], pa.date32())),
            ["line 1", "column 'a'", "10000-01-01"],
        ),
        (fields(a="Text"), lambda: parquet(pa.array([b"ok", b"\xff"])), ["line 2", "column 'a'", "UTF-8"]),
        (fields(a="Text"), lambda: parquet(bad_utf8()), ["line 2", "column 'a'", "UTF8"]),
        (fields(z="Text"), lambda: parquet(pa.array([1])), ["column 'z'", "no such column", "'a'"]),
        (fields(a="Integer"), lambda: parquet(pa.array([1]), pa.array([2]), names="aa"), ["'a'", "several columns"]),
        (fields(a="Integer"), lambda: parquet(pa.array(range(9999)))[:-9] + b"\xff" * 9, ["not readable as parquet"]),
    ],
)
def test_error_of_a_parquet_file_names_row_and_column(
    tmp_path: Path, entries: Any, data: Callable[[], bytes], said: list[str]
) -> None:
    with pytest.raises(InputInvalid) as caught:
        read(tmp_path, entries, data(), data_format="parquet")
    for words in ["Table 'orders'", *said]:
        assert words in str(caught.value)


@pytest.mark.parametrize("data_format", ["csv", "arrow"])
@pytest.mark.parametrize("spoil", [lambda packed: packed[: len(packed) // 2], lambda _: b"not packed"])
def test_damaged_packed_file_of_another_format_is_named(
    tmp_path: Path, data_format: str, spoil: Callable[[bytes], bytes]
) -> None:
    data = b"a\n" + b"1\n" * 1000 if data_format == "csv" else arrow(pa.table({"a": range(1000)}))
    with pytest.raises(InputInvalid, match="Table 'orders'"):
        read(tmp_path, fields(a="Integer"), spoil(gzip.compress(data)), data_format=data_format, compression="gzip")


def test_damaged_offsets_are_an_error_and_no_crash(tmp_path: Path) -> None:
    data = bytearray(arrow(pa.table({"a": ["xy"] * 1000})))
    at = data.find(np.arange(0, 200, 2, dtype=np.int32).tobytes())
    data[at + 400 : at + 404] = b"\xff\xff\xff\x70"
    with pytest.raises(InputInvalid, match="column 'a': damaged"):
        read(tmp_path, fields(a="Text"), bytes(data), data_format="arrow")


def test_texts_that_metabase_casts_to_numbers_are_numbers_whatever_the_first_block_has(tmp_path: Path) -> None:
    """Rows without a value, more than one block of them."""
    entries = [{"name": "a", "base_type": "Text", "effective_type": "Float"}]
    data = '{"a":null}\n' * 400_000 + '{"a":1.5}\n{"a":2}\n'
    assert read(tmp_path, entries, data)["a"].sum() == 3.5


@pytest.mark.parametrize("value", [None, 2])
@pytest.mark.parametrize("data_format", ["jsonl", "csv", "parquet", "arrow"])
def test_texts_that_metabase_casts_to_numbers_are_numbers_in_each_format(
    tmp_path: Path, data_format: str, value: float | None
) -> None:
    entries = [{"name": "a", "base_type": "Text", "effective_type": "Float"}, *fields(b="Integer")]
    table = pa.table({"a": pa.array([None, value], pa.float64()), "b": [1, 2]})
    data = {
        "jsonl": f'{{"a":null,"b":1}}\n{{"a":{json.dumps(value)},"b":2}}\n'.encode(),
        "csv": f"a,b\n,1\n{value or ''},2\n".encode(),
        "parquet": parquet(*table.columns, names="ab"),
        "arrow": arrow(table),
    }[data_format]
    found = read(tmp_path, entries, data, data_format=data_format)
    assert found["a"].dtype == "float64"
    assert found["a"].sum() == (value or 0)


@pytest.mark.parametrize("kind", ["DataFrame", "LazyFrame"])
def test_intervals_that_polars_does_not_take_are_named(job: Callable[..., Outcome], kind: str) -> None:
    data = arrow(pa.table({"a": pa.array([(1, 2, 3)], pa.month_day_nano_interval())}))
    code = f"import polars as pl\ndef transform(t: pl.{kind}):\n    return t"
    result = job(code, {"t": table(None, data, data_format="arrow")}).result
    assert result["code"] == "input_invalid"
    assert "column 'a': Polars has no intervals of months" in result["message"]
    assert job(code, {"t": table(fields(a="*"), data, data_format="arrow")}).rows == [{"a": "P1M2DT0.000000003S"}]
