"""The returned frame in the output file and its manifest."""

from __future__ import annotations

import csv
import datetime as dt
import gc
import hashlib
import io
import ipaddress
import json
import math
import pathlib
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest

from transform_shim.core import shared_objects
from transform_shim.core.errors import InvalidReturn, OutputInvalid
from transform_shim.core.progress import Progress
from transform_shim.writing import frame_source
from transform_shim.writing.frame_source import open_frame
from transform_shim.writing.output import Written, write_output

pytestmark = pytest.mark.usefixtures("each_size")

UTC = dt.UTC


def write(tmp_path: Path, frame: Any, data_format: Any = "jsonl", inputs: Any = ()) -> Written:
    progress = Progress(None, "write", "output")
    return write_output(open_frame(frame, inputs), data_format, tmp_path / "output", tmp_path / "manifest", progress)


def text(tmp_path: Path, frame: Any, data_format: Any = "jsonl") -> str:
    write(tmp_path, frame, data_format)
    return (tmp_path / "output").read_bytes().decode()


def cells(tmp_path: Path, values: Any, **options: Any) -> list[str]:
    """The JSON of each value of one column."""
    series = values if isinstance(values, pd.Series) else pd.Series(values, **options)
    lines = text(tmp_path, pd.DataFrame({"c": series})).split("\n")[:-1]  # splitlines() knows more line ends
    return [line.removeprefix('{"c":').removesuffix("}") for line in lines]


def base_type(tmp_path: Path, values: Any, **options: Any) -> str:
    write(tmp_path, pd.DataFrame({"c": pd.Series(values, **options)}))
    return manifest(tmp_path)["fields"][0]["base_type"]


def manifest(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "manifest").read_bytes())


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pd.Series([1, None, 3], dtype="Int64"), ["1", "null", "3"]),
        (pd.Series([2**63 - 1, -(2**63)]), ["9223372036854775807", "-9223372036854775808"]),
        (pd.Series([2**64 - 1], dtype="uint64"), ["18446744073709551615"]),
        (pd.Series([2**70, None], dtype=object), ["1180591620717411303424", "null"]),
        (pd.Series([1, None], dtype="int8[pyarrow]"), ["1", "null"]),
        (pd.Series([0.1 + 0.2, 1e-12, 1.0, -2.5]), ["0.30000000000000004", "1e-12", "1.0", "-2.5"]),
        (pd.Series([1e22, 1e10, 1e9, -0.0, 5e-324]), ["1e+22", "1e+10", "1000000000.0", "-0.0", "5e-324"]),
        (pd.Series([0.0, -0.0, 3.0]), ["0.0", "-0.0", "3.0"]),
        (pd.Series([math.nan, math.inf, -math.inf, 2.0]), ["null", "null", "null", "2.0"]),
        (pd.Series([1.5, math.nan], dtype="float64[pyarrow]"), ["1.5", "null"]),
        (pd.Series([dt.datetime(1936, 1, 1, tzinfo=dt.timezone(dt.timedelta(seconds=1172))), pd.NaT]),
         ['"1935-12-31T23:40:28Z"', "null"]),
        (pd.Series([0.1, 1], dtype="float32"), ["0.1", "1.0"]),
        (pd.Series([123456792, 2**53], dtype="float32"), ["123456792.0", "9.007199254740992e+15"]),
        (pd.Series([123456792, 0.1, math.nan], dtype="float32"), ["123456792.0", "0.1", "null"]),
        (pd.Series([1, 2], dtype="float16"), ["1.0", "2.0"]),
        (pd.Series(np.array([1, -2], dtype=">i4")), ["1", "-2"]),
        (pd.Series(np.array([0.5, math.nan], dtype=">f8")), ["0.5", "null"]),
        (pd.Series([True, None, False], dtype="boolean"), ["true", "null", "false"]),
        (pd.Series([True, None, False], dtype=object), ["true", "null", "false"]),
        (pd.Series(["a", None, ""], dtype="string"), ['"a"', "null", '""']),
        (pd.Series(["a", math.nan], dtype=object), ['"a"', "null"]),
        (pd.Series(['say "hi"', "a\\b/", "\n\r\t\x00\x1f\x7f", "\u2028🎉"]), None),
        (pd.Series([Decimal("0.1"), Decimal("1E-40"), None, Decimal("NaN"), Decimal("1E+3")], dtype=object),
         ["0.1", "1E-40", "null", "null", "1E+3"]),
        (pd.Series([Decimal("100.00"), 5, 0.5], dtype=object), ["100", "5", "0.5"]),
        (pd.Series([Decimal("0E+5"), Decimal("0E-90"), Decimal("1.5")], dtype=object), ["0", "0", "1.5"]),
        (pd.Series([dt.date(1, 1, 1), None, dt.date(9999, 12, 31)], dtype=object),
         ['"0001-01-01"', "null", '"9999-12-31"']),
        (pd.Series(pd.to_datetime(["2024-01-15 10:30:00", None])), ['"2024-01-15T10:30:00"', "null"]),
        (pd.Series(pd.to_datetime(["2024-01-15 10:30:00.120", "2024-01-15"], format="ISO8601")),
         ['"2024-01-15T10:30:00.12"', '"2024-01-15T00:00:00"']),
        (pd.Series(pd.to_datetime(["2024-01-15 10:30:00.123456789"])), ['"2024-01-15T10:30:00.123456789"']),
        (pd.Series(pd.to_datetime(["2024-01-15 10:30"]).tz_localize("America/New_York")), ['"2024-01-15T15:30:00Z"']),
        (pd.Series([dt.datetime(2024, 1, 15, 10, 30, tzinfo=dt.timezone(dt.timedelta(hours=5)))], dtype=object),
         ['"2024-01-15T05:30:00Z"']),
        (pd.Series([dt.date(2024, 1, 15), dt.datetime(2024, 1, 15, 1)], dtype=object),
         ['"2024-01-15T00:00:00"', '"2024-01-15T01:00:00"']),
        (pd.Series([dt.time(10, 30), dt.time(0, 0, 1, 500)], dtype=object), ['"10:30:00"', '"00:00:01.0005"']),
        (pd.Series(pd.to_timedelta(["1 days 02:00:00", None])), ['"P1DT2H0M0S"', "null"]),
        (pd.Series([b"\xff\x00", None], dtype=object), ['"/wA="', "null"]),
        (pd.Series([uuid.UUID(int=1), None], dtype=object), ['"00000000-0000-0000-0000-000000000001"', "null"]),
        (pd.Series([ipaddress.ip_address("::1"), ipaddress.ip_network("10.0.0.0/8"), pathlib.PurePosixPath("/a")]),
         ['"::1"', '"10.0.0.0/8"', '"/a"']),
        (pd.Series(pd.period_range("2024-01", periods=1, freq="M")), ['"2024-01"']),
        (pd.Series(pd.interval_range(0, 1)), ['"(0, 1]"']),
        (pd.Series(["x", None, "y"], dtype="category"), ['"x"', "null", '"y"']),
        (pd.Series([3, None, 3], dtype="category"), None),
        (pd.Series(pd.arrays.SparseArray([0.0, 1.5])), ["0.0", "1.5"]),
        (pd.Series([[1, 2.5, None], {"k": [True]}, (1,), np.array([1])], dtype=object),
         ['"[1,2.5,null]"', '"{\\"k\\":[true]}"', '"[1]"', '"[1]"']),
        (pd.Series([{10, 9}, frozenset("ba"), [{0}]], dtype=object), ['"[9,10]"', '"[\\"a\\",\\"b\\"]"', '"[[0]]"']),
        (pd.Series([{"wei": [2**64, -(2**64)]}], dtype=object),
         ['"{\\"wei\\":[18446744073709551616,-18446744073709551616]}"']),
        (pd.Series([{np.int64(1): 2**64}, {pd.Timestamp("2024-01-15"): {pd.Period("2024-01"): 1}}], dtype=object),
         ['"{\\"1\\":18446744073709551616}"', '"{\\"2024-01-15T00:00:00\\":{\\"2024-01\\":1}}"']),
        (pd.Series([{Decimal("1.10"): 1, np.float64(0.5): 2, 2**64: 3, pd.NA: 4}], dtype=object),
         ['"{\\"1.10\\":1,\\"0.5\\":2,\\"18446744073709551616\\":3,\\"null\\":4}"']),
        (pd.Series([np.datetime64("2024-01-15T10:30:00.123456789"), None], dtype=object),
         ['"2024-01-15T10:30:00.123456789"', "null"]),
        (pd.Series([None, pd.NaT, pd.NA, math.nan], dtype=object), ["null"] * 4),
    ],
)  # fmt: skip
def test_value_is_written_exactly(tmp_path: Path, values: pd.Series, expected: list[str] | None) -> None:
    found = cells(tmp_path, values)
    if expected is None:
        expected = [json.dumps(None if v is None or v != v else v, ensure_ascii=False) for v in values]
        assert [json.loads(cell) for cell in found] == [json.loads(cell) for cell in expected]
    else:
        assert found == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, -(2**31)], "Integer"),
        ([2**31], "BigInteger"),
        ([2**63], "Decimal"),
        ([1.5], "Float"),
        ([True], "Boolean"),
        (["x"], "Text"),
        ([dt.date(2024, 1, 1)], "Date"),
        ([dt.datetime(2024, 1, 1)], "DateTime"),
        ([dt.datetime(2024, 1, 1, tzinfo=UTC)], "DateTimeWithTZ"),
        ([Decimal("1.5")], "Decimal"),
        ([{"a": 1}], "Text"),
    ],
)
def test_base_type_is_inferred_from_the_data(tmp_path: Path, values: list[Any], expected: str) -> None:
    assert base_type(tmp_path, values) == expected


@pytest.mark.parametrize("values", [[], [None, None], [pd.NaT, None]])
def test_column_of_nothing_is_text(tmp_path: Path, values: list[Any]) -> None:
    assert base_type(tmp_path, values, dtype=object) == "Text"


@pytest.mark.parametrize(
    ("values", "row", "word"),
    [
        ([None, object()], 1, "object"),
        ([[1j]], 0, "a value of type complex cannot be written as JSON"),
        ([np.array(5)], 0, "iteration over a 0-d array"),
        ([{(1, 2): 3}], 0, "key that cannot be a text, such as a tuple"),
        (["ok", "\ud800"], 1, "surrogate"),
        ([10**100], 0, "digits"),
        ([Decimal("1e-80")], 0, "digits"),
        ([dt.time(1, tzinfo=UTC)], 0, "time zone"),
    ],
)
def test_value_that_cannot_be_written_is_named_with_column_and_row(
    tmp_path: Path, values: list[Any], row: int, word: str
) -> None:
    with pytest.raises(OutputInvalid, match=word) as caught:
        cells(tmp_path, values, dtype=object)
    assert (caught.value.column, caught.value.row) == ("c", row)
    assert not (tmp_path / "output").exists()


def test_row_is_counted_over_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_source, "_BATCH_ROWS", 10)
    with pytest.raises(OutputInvalid) as caught:
        cells(tmp_path, [*["x"] * 95, "\ud800", *["y"] * 50], dtype=object)
    assert caught.value.row == 95
    years = pd.Series(np.array(["2024-01-01"] * 57 + ["12024-01-01"], dtype="M8[s]"))
    with pytest.raises(OutputInvalid, match="years 1 to 9999") as caught:
        cells(tmp_path, years)
    assert caught.value.row == 57


@pytest.mark.parametrize("nulls", [0, 1500])
def test_batches_are_small_although_large_texts_begin_far_down(monkeypatch: pytest.MonkeyPatch, nulls: int) -> None:
    monkeypatch.setattr(frame_source, "_BATCH_BYTES", 100_000)
    texts = [None] * nulls + [f"{i}{'x' * 1000}" for i in range(2000 - nulls)]
    frame = pd.DataFrame({"c": pd.Series(texts, dtype=object)})
    sizes = [sum(array.nbytes for array in batch.load()) for batch in open_frame(frame, ()).batches]
    assert max(sizes) < 200_000


def test_self_containing_and_hostile_values_are_errors(tmp_path: Path) -> None:
    class Hostile:
        def __repr__(self) -> str:
            raise SystemError("no")

        def __str__(self) -> str:
            return 5  # type: ignore[return-value]

    loop: list[Any] = []
    loop.append(loop)
    for value in (loop, Hostile(), type, len, Hostile):
        with pytest.raises(OutputInvalid, match="row 0"):
            cells(tmp_path, [value], dtype=object)


def test_names_become_texts(tmp_path: Path) -> None:
    frame = pd.DataFrame([[1, 2, 3]], columns=pd.Index(["a", 0, None], dtype=object))
    assert text(tmp_path, frame) == '{"a":1,"0":2,"None":3}\n'
    assert [entry["name"] for entry in manifest(tmp_path)["fields"]] == ["a", "0", "None"]
    levels = pd.MultiIndex.from_tuples([("key", ""), ("price", "mean"), ("price", 1)])
    assert text(tmp_path, pd.DataFrame([[1, 2, 3]], columns=levels)) == '{"key":1,"price_mean":2,"price_1":3}\n'


def test_odd_names_are_escaped(tmp_path: Path) -> None:
    names = ["a\nb", "n\0l", 'q"\\', "", "\u202egnp", "\u2028", "ключ"]
    assert json.loads(text(tmp_path, pd.DataFrame([[1] * 7], columns=names))) == dict.fromkeys(names, 1)


@pytest.mark.parametrize(
    "names", [["a", "a"], [1, "1"], [None, "None"], pd.MultiIndex.from_tuples([("a", "b"), ("a_b", "")])]
)
def test_two_columns_of_one_name_are_an_error(tmp_path: Path, names: Any) -> None:
    frame = pd.DataFrame([[1, 2]])
    frame.columns = pd.Index(names, dtype=object) if isinstance(names, list) else names
    with pytest.raises(OutputInvalid, match="name"):
        write(tmp_path, frame)


def test_index_is_ignored_and_empty_frames_are_empty_files(tmp_path: Path) -> None:
    assert text(tmp_path, pd.DataFrame({"x": [1]}, index=pd.Index(["k"], name="i"))) == '{"x":1}\n'
    for frame, fields in (
        (pd.DataFrame(), 0),
        (pd.DataFrame(columns=["a", "b"]), 2),
        (pd.DataFrame({"k": []}).set_index("k"), 0),
    ):
        assert text(tmp_path, frame) == ""
        assert len(manifest(tmp_path)["fields"]) == fields


def test_subclass_is_a_frame_and_lookalikes_are_not(tmp_path: Path) -> None:
    class Mine(pd.DataFrame):
        pass

    class Everything:
        def __getattr__(self, name: str) -> Any:
            return self

        def __call__(self, *_: Any, **__: Any) -> Any:
            return self

    assert text(tmp_path, Mine({"x": [1]})) == '{"x":1}\n'
    fake = type("D", (), {"to_json": lambda *_, **__: "{}", "columns": [], "dtypes": {}})()
    for value in (None, 1, "x", [1], {"a": 1}, pd.Series([1]), pa.array([1]), pa.chunked_array([[1]]), pd.DataFrame,
                  fake, Everything(), (x for x in ())):  # fmt: skip
        with pytest.raises(InvalidReturn, match=r"must return a pandas DataFrame, got <class '[^']+'>$"):
            write(tmp_path, value)


def test_anything_with_an_arrow_stream_is_a_frame(tmp_path: Path) -> None:
    class Stream:
        def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
            return pa.table({"x": [1, None]}).__arrow_c_stream__(requested_schema)

    class Column:
        def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
            return pa.chunked_array([[1]]).__arrow_c_stream__(requested_schema)

    assert text(tmp_path, Stream()) == '{"x":1}\n{"x":null}\n'
    with pytest.raises(InvalidReturn):
        write(tmp_path, Column())


def test_arrow_types_without_a_pandas_twin_are_written(tmp_path: Path) -> None:
    table = pa.table(
        {
            "dictionary": pa.array(["a", None]).dictionary_encode(),
            "runs": pa.RunEndEncodedArray.from_arrays([2], ["r"]),
            "view": pa.array(["v", None], pa.string_view()),
            "binary": pa.array([b"ab", None], pa.binary_view()),
            "struct": pa.array([{"k": 1}, None]),
            "map": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
            "date64": pa.array([dt.date(2024, 1, 15), None], pa.date64()),
            "time32": pa.array([dt.time(1, 2, 3), None], pa.time32("s")),
            "null": pa.nulls(2),
            "half": pa.array([np.float16(1.5), None], pa.float16()),
            "uuid": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"\0" * 16, None], pa.binary(16))),
            "months": pa.array([pa.MonthDayNano([1, 2, 3_500_000_000]), None]),
            "bytes": pa.ExtensionArray.from_storage(pa.bool8(), pa.array([2, None], pa.int8())),
        }
    )
    first, second = (json.loads(line) for line in text(tmp_path, table).splitlines())
    assert first == {
        "dictionary": "a", "runs": "r", "view": "v", "binary": "YWI=", "struct": '{"k":1}', "map": '[["k",1]]',
        "date64": "2024-01-15", "time32": "01:02:03", "null": None, "half": 1.5,
        "uuid": "00000000-0000-0000-0000-000000000000", "months": "P1M2DT3.5S", "bytes": True,
    }  # fmt: skip
    assert set(second.values()) == {None, "r"}


def test_bytes_of_another_engines_type_are_no_value(tmp_path: Path) -> None:
    hugeint = pa.opaque(pa.binary(16), "hugeint", "DuckDB")
    values = pa.ExtensionArray.from_storage(hugeint, pa.array([b"\1" + bytes(15)], pa.binary(16)))
    with pytest.raises(OutputInvalid, match=r"column 'c': the Arrow type .*hugeint"):
        write(tmp_path, pa.table({"c": values}))


def test_rows_of_huge_text_are_written_in_small_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    whole = frame_source._slices
    monkeypatch.setattr(frame_source, "_slices", lambda c, i, j: (sizes.append(j - i), whole(c, i, j))[1])
    frame = pd.DataFrame({"c": pd.Categorical.from_codes(np.zeros(2000, dtype="i1"), ["x" * 100_000])})
    assert write(tmp_path, frame).output_bytes == 2000 * (100_000 + len('{"c":""}\n'))
    assert max(sizes) <= (16 << 20) / 100_000


@pytest.mark.parametrize("data_format", ["jsonl", "csv", "parquet", "arrow"])
def test_texts_that_share_objects_are_written_as_others(
    tmp_path: Path, data_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = 40_000
    few = ['say "no"', "back\\slash\n", "é,\u2028", "", None, np.nan]
    columns = {
        "few": [few[n % 6] for n in range(rows)],
        "one": ["same"] * rows,
        "many": [f"text {n % 4000}" for n in range(rows)],
        "late": [None] * 20_000 + ["late", pd.NA] * 10_000,
        "id": [str(uuid.UUID(int=n % 7)) if n < 30_000 else "none" for n in range(rows)],
    }
    frame = pd.DataFrame(columns, dtype=object)
    frame.attrs["source_metadata"] = {"fields": [{"name": "id", "base_type": "UUID"}]}

    def outputs() -> tuple[bytes, bytes]:
        write(tmp_path, frame, data_format)
        return (tmp_path / "output").read_bytes(), (tmp_path / "manifest").read_bytes()

    shared = outputs()
    monkeypatch.setattr(shared_objects, "_MOST_DIFFERENT", 0)
    assert shared == outputs()


def test_result_has_rows_bytes_and_digest(tmp_path: Path) -> None:
    written = write(tmp_path, pd.DataFrame({"x": range(100_000)}))
    data = (tmp_path / "output").read_bytes()
    assert written == Written(100_000, (("x", "Integer"),), len(data), hashlib.sha256(data).hexdigest())
    assert data.count(b"\n") == 100_000
    assert data.startswith(b'{"x":0}\n{"x":1}\n')
    assert data.endswith(b'{"x":99999}\n')


def test_no_digest_is_computed_unless_it_is_wanted(tmp_path: Path) -> None:
    frame = open_frame(pd.DataFrame({"x": [1, 2]}), ())
    progress = Progress(None, "write", "output")
    paths = tmp_path / "output", tmp_path / "manifest"
    written = write_output(frame, "jsonl", *paths, progress, checksum=False)
    assert written == Written(2, (("x", "Integer"),), 16, None)
    assert paths[0].read_bytes() == b'{"x":1}\n{"x":2}\n'


def test_csv_is_read_back_by_pandas_and_python(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"s": ['a,"b"\nc', None, "", "x\r"], "i": pd.array([1, None, 3, 4], dtype="Int64"), "b": [True, False, True, False],
         "f": [0.1, math.nan, 1.0, 1e22], "na,me": pd.to_datetime(["2024-01-15"] * 4)}
    )  # fmt: skip
    found = text(tmp_path, frame, "csv")
    assert list(csv.reader(io.StringIO(found, newline=""))) == [
        ["s", "i", "b", "f", "na,me"],
        ['a,"b"\nc', "1", "True", "0.1", "2024-01-15T00:00:00"],
        ["", "", "False", "", "2024-01-15T00:00:00"],
        ["", "3", "True", "1.0", "2024-01-15T00:00:00"],
        ["x\r", "4", "False", "1e+22", "2024-01-15T00:00:00"],
    ]
    assert '"' not in text(tmp_path, pd.DataFrame({"a": ["x"], "b": [1]}), "csv")
    assert text(tmp_path, pd.DataFrame({"a": ["x", None, ""]}), "csv") == 'a\nx\n""\n""\n'
    assert text(tmp_path, pd.DataFrame({"a": []}), "csv") == "a\n"
    assert text(tmp_path, pd.DataFrame({"a\rb": [1], "c": [2]}), "csv") == '"a\rb",c\n1,2\n'


@pytest.mark.parametrize("data_format", ["parquet", "arrow"])
def test_columnar_output_holds_the_same(tmp_path: Path, data_format: str) -> None:
    frame = pd.DataFrame({"i": pd.array([1, None], dtype="Int64"), "s": ["a", None], "m": [Decimal("1.10"), None]})
    written = write(tmp_path, frame, data_format)
    path = tmp_path / "output"
    table = pyarrow.parquet.read_table(path) if data_format == "parquet" else pa.ipc.open_file(path).read_all()
    assert table.to_pydict() == {"i": [1, None], "s": ["a", None], "m": [Decimal("1.10"), None]}
    assert written.output_bytes == path.stat().st_size
    assert written.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert manifest(tmp_path)["data_format"] == data_format
    for empty in (pd.DataFrame(), pd.DataFrame(columns=["a"])):
        write(tmp_path, empty, data_format)


@pytest.mark.parametrize("data_format", ["parquet", "arrow"])
@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()])
def test_columnar_output_has_null_where_json_lines_have(tmp_path: Path, data_format: str, kind: Any) -> None:
    values = pa.array([1.5, math.nan, math.inf, -math.inf, None], kind)
    for frame in (pd.DataFrame({"x": values.to_numpy(zero_copy_only=False)}), pa.table({"x": values})):
        write(tmp_path, frame, data_format)
        path = tmp_path / "output"
        table = pyarrow.parquet.read_table(path) if data_format == "parquet" else pa.ipc.open_file(path).read_all()
        assert table.to_pydict() == {"x": [1.5, None, None, None, None]}


@pytest.mark.parametrize("data_format", ["jsonl", "csv", "parquet", "arrow"])
def test_hundreds_are_written_as_whole_numbers(tmp_path: Path, data_format: str) -> None:
    """Parquet has no decimals of a negative scale."""
    write(tmp_path, pa.table({"c": pa.array([Decimal(100), None], pa.decimal128(5, -2))}), data_format)
    found = (tmp_path / "output").read_bytes()
    if data_format == "parquet":
        found = pyarrow.parquet.read_table(tmp_path / "output").to_pydict()
    elif data_format == "arrow":
        found = pa.ipc.open_file(tmp_path / "output").read_all().to_pydict()
    expected = {"jsonl": b'{"c":100}\n{"c":null}\n', "csv": b'c\n100\n""\n'}
    assert found == expected.get(data_format, {"c": [Decimal(100), None]})


def test_a_parquet_file_that_failed_writes_nothing_into_the_next_file(tmp_path: Path) -> None:
    """pyarrow ends the file when it frees the writer, and by then its descriptor may be another file's."""
    table = pa.table({"c": pa.chunked_array([["x"], ["x"]]), "d": pa.chunked_array([[0], [2**40]], pa.date64())})
    with pytest.raises(OutputInvalid) as caught:
        write(tmp_path, table, "parquet")
    with (tmp_path / "next").open("wb"):
        del caught
        gc.collect()
    assert not (tmp_path / "next").read_bytes()


def test_link_in_the_outputs_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("kept")
    (tmp_path / "output").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic links"):
        write(tmp_path, pd.DataFrame({"x": [1]}))
    assert (tmp_path / "secret").read_text() == "kept"
