"""The frames that transform() gets from Metabase's files."""

from __future__ import annotations

import gzip
import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from transform_shim.core.errors import InputInvalid
from transform_shim.core.progress import Progress
from transform_shim.core.table_file import TableFile
from transform_shim.reading.frame_kinds import load_table
from transform_shim.reading.jsonl import blocks as lines
from transform_shim.reading.table_source import TableSource
from transform_shim.writing.frame_source import open_frame
from transform_shim.writing.output import write_output

pytestmark = pytest.mark.usefixtures("each_size")


def fields(**base_types: str) -> list[dict[str, Any]]:
    return [{"name": name, "base_type": base} for name, base in base_types.items()]


def read(tmp_path: Path, entries: list[dict[str, Any]] | None, data: str | bytes, **options: Any) -> Any:
    data_path, manifest_path = tmp_path / "data", tmp_path / "manifest"
    data_path.write_bytes(data.encode() if isinstance(data, str) else data)
    if entries is not None:
        manifest_path.write_text(json.dumps({"fields": entries}))
    form = options.pop("form", "pandas")
    file = TableFile("orders", data_path, manifest_path if entries is not None else None, **options)
    return load_table(TableSource(file), form).value


def column(tmp_path: Path, base_type: str, *values: str) -> pd.Series:
    return read(tmp_path, fields(c=base_type), "".join(f'{{"c":{value}}}\n' for value in values))["c"]


@pytest.mark.parametrize(
    ("base_type", "value", "without", "with_nulls", "empty"),
    [
        ("Integer", "1", "int64", "Int64", "int64"),
        ("BigInteger", "-9223372036854775808", "int64", "Int64", "int64"),
        ("Number", "1", "int64", "Int64", "int64"),
        ("Float", "1.5", "float64", "float64", "float64"),
        ("Decimal", "1.5", "float64", "float64", "float64"),
        ("Boolean", "true", "bool", "boolean", "bool"),
        ("Text", '"a"', pd.Series(["a"]).dtype.name, pd.Series(["a"]).dtype.name, pd.Series(["a"]).dtype.name),
        ("Date", '"2024-01-15"', "datetime64[ns]", "datetime64[ns]", "datetime64[ns]"),
        ("DateTime", '"2024-01-15T10:30:00"', "datetime64[ns]", "datetime64[ns]", "datetime64[ns]"),
        ("Instant", '"2024-01-15T10:30:00Z"', *["datetime64[ns, UTC]"] * 3),
    ],
)
def test_dtype_is_nullable_only_where_nulls_are(
    tmp_path: Path, base_type: str, value: str, without: str, with_nulls: str, empty: str
) -> None:
    assert str(column(tmp_path, base_type, value).dtype) == without
    assert str(column(tmp_path, base_type, value, "null").dtype) == with_nulls
    assert str(column(tmp_path, base_type).dtype) == empty
    assert column(tmp_path, base_type, "null", "null").isna().all()


@pytest.mark.parametrize("form", ["pandas", "arrow", "arrow_reader"])
@pytest.mark.parametrize(
    ("base_type", "effective_type", "written", "text"),
    [
        ("BigInteger", "Instant", "DateTimeWithTZ", "2024-01-15T10:30:00.000000001Z"),
        ("Number", "DateTime", "DateTime", "2024-01-15T10:30:00"),
        ("Decimal", "Instant", "DateTimeWithTZ", "2024-01-15T10:30:00Z"),
    ],
)
def test_numbers_that_metabase_casts_to_date_times_arrive_as_those(
    tmp_path: Path, form: str, base_type: str, effective_type: str, written: str, text: str
) -> None:
    """Metabase sends what a query gives, and the manifest has the column of the database."""
    field = {"name": "c", "base_type": base_type, "effective_type": effective_type, "database_type": "int8"}
    frame = read(tmp_path, [field], f'{{"c":"{text.removesuffix("Z")}Z"}}\n{{"c":null}}\n', form=form)
    progress = Progress(None, "write", "output")
    result = write_output(open_frame(frame, []), "jsonl", tmp_path / "output", tmp_path / "output-manifest", progress)
    assert result.columns == (("c", written),)
    assert (tmp_path / "output").read_text() == f'{{"c":"{text}"}}\n{{"c":null}}\n'


@pytest.mark.parametrize(("effective_type", "cells"), [("Float", [1.5, 2.0]), ("Integer", [1, 2])])
def test_texts_that_metabase_casts_to_numbers_arrive_as_those(
    tmp_path: Path, effective_type: str, cells: list[float]
) -> None:
    field = {"name": "c", "base_type": "Text", "effective_type": effective_type}
    found = read(tmp_path, [field], "".join(f'{{"c":{cell}}}\n' for cell in cells))["c"]
    assert found.sum() == sum(cells)
    assert found.dtype.kind == ("i" if effective_type == "Integer" else "f")


@pytest.mark.parametrize("form", ["pandas", "arrow"])
@pytest.mark.parametrize(
    ("base_type", "effective_type", "cells"),
    [
        ("BigInteger", "Instant", [1705314600, None]),
        ("Text", "Float", ["1.5", "n/a"]),
        ("Text", "Integer", [None, "x"]),
    ],
)
def test_values_that_were_sent_before_the_cast_are_those_of_the_database(
    tmp_path: Path, form: str, base_type: str, effective_type: str, cells: list[Any]
) -> None:
    field = {"name": "c", "base_type": base_type, "effective_type": effective_type}
    lines = "".join(json.dumps({"c": cell}) + "\n" for cell in cells)
    found = read(tmp_path, [field], lines, form=form)["c"]
    assert [
        None if pd.isna(cell) else cell for cell in (found.to_pylist() if form == "arrow" else list(found))
    ] == cells


@pytest.mark.parametrize("effective_type", ["BigInteger", "int8", None])
def test_database_type_in_place_of_an_effective_type_is_no_cast(tmp_path: Path, effective_type: str | None) -> None:
    field = {"name": "c", "base_type": "BigInteger", "effective_type": effective_type}
    assert read(tmp_path, [field], '{"c":1}\n')["c"].tolist() == [1]


def test_integers_are_exact_to_the_last_digit(tmp_path: Path) -> None:
    values = [-(2**63), 2**63 - 1, 2**53 + 1]
    assert column(tmp_path, "BigInteger", *map(str, values)).tolist() == values
    assert column(tmp_path, "BigInteger", *map(str, values), "null").tolist()[:3] == values


def test_integers_beyond_64_bits_are_python_integers(tmp_path: Path) -> None:
    found = column(tmp_path, "BigInteger", str(10**30), "null", "5")
    assert found.tolist() == [10**30, None, 5]
    assert type(found[0]) is int


@pytest.mark.parametrize("base_type", ["Integer", "BigInteger", "Number"])
def test_whole_numbers_may_be_written_with_a_point_or_an_exponent(tmp_path: Path, base_type: str) -> None:
    assert column(tmp_path, base_type, "5.0", "1E3").tolist() == [5, 1000]


def test_number_of_unknown_sort_keeps_its_fraction(tmp_path: Path) -> None:
    assert column(tmp_path, "Number", "1", "2.5").tolist() == [1.0, 2.5]


def test_decimals_written_as_text_are_read_whatever_is_beside_them(tmp_path: Path) -> None:
    assert column(tmp_path, "Decimal", '"1.50"', '"-1E2"').tolist() == [1.5, -100.0]
    assert column(tmp_path, "Decimal", '"1.50"', '"-1E2"', '"NaN"').tolist()[:2] == [1.5, -100.0]


def test_doubles_that_java_writes_as_text_are_read(tmp_path: Path) -> None:
    found = column(tmp_path, "Float", '"NaN"', '"Infinity"', '"-Infinity"', "1.0E10", "1.7976931348623157E308").tolist()
    assert math.isnan(found[0])
    assert found[1:] == [math.inf, -math.inf, 1e10, 1.7976931348623157e308]


@pytest.mark.parametrize("zone", ["Z", "+05:30", "-05:00", "", "+0530", "-05:00[America/New_York]"])
def test_clock_reading_is_kept_with_any_offset(tmp_path: Path, zone: str) -> None:
    stamps = ["2024-01-15T10:30:00", "2024-07-01T23:59:59.5", "0001-01-01T00:00:00", "9999-12-31T23:59:59.999999"]
    found = column(tmp_path, "DateTime", *(f'"{stamp}{zone}"' for stamp in stamps), "null")
    assert found.dtype == "datetime64[us]"
    assert [str(v) for v in found.to_numpy()[:4]] == [str(np.datetime64(stamp, "us")) for stamp in stamps]


@pytest.mark.parametrize(
    "text", ["2024-01-15", "2024-01-15T00:00:00Z", "2024-01-15T00:00:00+05:30", "2024-01-15 00:00:00"]
)
def test_date_is_the_calendar_day_with_any_offset(tmp_path: Path, text: str) -> None:
    assert str(column(tmp_path, "Date", f'"{text}"', '"0001-01-01"', '"9999-12-31"')[0].date()) == "2024-01-15"


def test_day_that_daylight_saving_starts_at_midnight_is_still_that_day(tmp_path: Path) -> None:
    assert str(column(tmp_path, "Date", '"2018-11-04T01:00:00-02:00"')[0].date()) == "2018-11-04"


def test_dates_and_date_times_of_both_encodings_may_stand_in_one_column(tmp_path: Path) -> None:
    found = column(tmp_path, "DateTime", '"2024-01-15"', '"2024-01-15T10:30:00Z"', '"2024-01-15T10:30"')
    assert [str(v) for v in found] == ["2024-01-15 00:00:00", "2024-01-15 10:30:00", "2024-01-15 10:30:00"]


def test_column_of_plain_seconds_keeps_them(tmp_path: Path) -> None:
    """The commonest form of all has a path of its own."""
    found = column(tmp_path, "DateTime", '"2024-01-15T10:30:59Z"', "null", '"2024-07-01T23:59:01Z"')
    assert [str(value) for value in found] == ["2024-01-15 10:30:59", "NaT", "2024-07-01 23:59:01"]


def test_zoned_values_keep_their_instant(tmp_path: Path) -> None:
    found = column(
        tmp_path, "DateTimeWithTZ", '"2024-01-15T10:30:00-05:00"', '"2024-01-15T15:30:00Z"', '"2024-01-15T15:30:00"'
    )
    assert found.nunique() == 1
    assert str(found[0]) == "2024-01-15 15:30:00+00:00"


@pytest.mark.parametrize("base_type", ["DateTime", "DateTimeWithTZ"])
def test_nanoseconds_are_kept_where_given(tmp_path: Path, base_type: str) -> None:
    found = column(tmp_path, base_type, '"2024-01-15T10:30:00.123456789Z"', '"2024-01-15T10:30:00Z"')
    assert found[0].nanosecond == 789
    assert found[0].microsecond == 123456


def test_text_is_never_parsed(tmp_path: Path) -> None:
    values = ["2024-01-01", "007", "1e5", "true", "null", "NaN", "", "None", " x ", "\u2028", "a\nb", "\x00", "🎉", '"']
    assert column(tmp_path, "Text", *(json.dumps(v) for v in values)).tolist() == values
    assert column(tmp_path, "Text", *(json.dumps(v, ensure_ascii=False) for v in values)).tolist() == values


def test_unsupported_types_are_their_json_text(tmp_path: Path) -> None:
    found = column(tmp_path, "JSON", '"{\\"k\\": 1}"', "null", '{"k":[1,2.50,null,"x"]}', "5", "false")
    assert found.fillna("-").tolist() == ['{"k": 1}', "-", '{"k":[1,2.50,null,"x"]}', "5", "false"]


def test_column_order_is_the_manifests_and_keys_may_come_in_any(tmp_path: Path) -> None:
    frame = read(
        tmp_path, fields(a="Integer", b="Text", c="Float"), '{"c":1.5,"a":1,"b":"x"}\n{"b":"y","c":2.5,"a":2}\n'
    )
    assert list(frame.columns) == ["a", "b", "c"]
    assert frame["a"].tolist() == [1, 2]


def test_missing_keys_are_null_and_unknown_keys_are_dropped(tmp_path: Path) -> None:
    frame = read(tmp_path, fields(a="Integer", b="Text"), '{"a":1,"more":{"x":[1]}}\n{"b":"y"}\n')
    assert list(frame.columns) == ["a", "b"]
    assert frame["a"].tolist()[0] == 1
    assert frame.isna().to_numpy().tolist() == [[False, True], [True, False]]


def test_last_of_repeated_keys_counts(tmp_path: Path) -> None:
    assert read(tmp_path, fields(a="Integer"), '{"a":1,"a":2}\n')["a"].tolist() == [2]


@pytest.mark.parametrize("data", ["", " ", "\n", "\n\n  \n", "\ufeff"])
def test_table_without_rows_has_its_columns(tmp_path: Path, data: str) -> None:
    frame = read(tmp_path, fields(a="Integer", s="Text"), data)
    assert frame.shape == (0, 2)
    assert frame["a"].dtype == "int64"


@pytest.mark.parametrize("data", ['{"a":1}\n{"a":2}', '{"a":1}\r\n{"a":2}\r\n', '\ufeff{"a":1}\n{"a":2}\n', '\n{"a":1}\n\n{"a":2}\n',
                                  '  {"a":1}  \n{"a": 2}\n', '{"a":1}{"a":2}\n'])  # fmt: skip
def test_line_ends_and_blanks_do_not_matter(tmp_path: Path, data: str) -> None:
    assert read(tmp_path, fields(a="Integer"), data)["a"].tolist() == [1, 2]


def test_metadata_hangs_on_the_frame(tmp_path: Path) -> None:
    frame = read(tmp_path, fields(a="Integer"), '{"a":1}\n')
    assert frame.attrs["source_metadata"] == {"fields": fields(a="Integer")}
    merged = {**frame.attrs["source_metadata"], **frame.copy().attrs["source_metadata"]}
    assert isinstance(merged, dict)


def test_frame_can_be_written_to(tmp_path: Path) -> None:
    data = '{"a":1,"f":1.5,"b":true,"s":"x","d":"2024-01-01"}\n'
    frame = read(tmp_path, fields(a="Integer", f="Float", b="Boolean", s="Text", d="Date"), data)
    frame.loc[0, "a"], frame.loc[0, "f"], frame.loc[0, "b"] = 5, 2.5, False
    frame.loc[0, "s"], frame.loc[0, "d"] = "y", pd.Timestamp("2025-01-01")
    assert frame.iloc[0].tolist() == [5, 2.5, False, "y", pd.Timestamp("2025-01-01")]


def test_wide_table_does_not_warn_of_fragmentation(tmp_path: Path) -> None:
    frame = read(tmp_path, fields(**{f"c{i}": "Integer" for i in range(150)}), json.dumps({"c7": 1}) + "\n")
    frame["more"] = 1  # filterwarnings = error


def test_columns_of_many_blocks_come_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", 4096)
    monkeypatch.setattr(lines.line_blocks, "__defaults__", (4096,))
    rows = [{"i": n if n % 7 else None, "big": n, "s": f"s{n}" * (n % 90), "m": n / 4} for n in range(5000)]
    rows[4000]["big"] = 2**70
    rows[3000]["m"] = 0.125
    data = "".join(json.dumps(row) + "\n" for row in rows)
    frame = read(tmp_path, fields(i="Integer", big="BigInteger", s="Text", m="Decimal"), data)
    assert frame["big"].tolist() == [row["big"] for row in rows]
    assert frame["s"].tolist() == [row["s"] for row in rows]
    assert frame["m"].tolist() == [row["m"] for row in rows]
    assert frame["i"].isna().sum() == sum(row["i"] is None for row in rows)


def test_blocks_that_no_type_holds_name_the_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines.line_blocks, "__defaults__", (60,))  # each line is a block
    times = ["2024-01-15T10:30:00.123456789"] * 10 + ["3000-01-15T10:30:00"] * 10
    data = "".join(f'{{"a":{n},"at":"{time}","z":1}}\n' for n, time in enumerate(times))
    with pytest.raises(InputInvalid, match="column 'at': there are fractions below microseconds and years outside"):
        read(tmp_path, fields(a="Integer", at="DateTime", z="Integer"), data, form="arrow")


@pytest.mark.parametrize("size", [0, 1, 1000, lines._COUNT_BYTES - 1, lines._COUNT_BYTES, 3 * lines._COUNT_BYTES + 7])
def test_bytes_are_counted_in_all_pieces(size: int) -> None:
    view = np.arange(size, dtype=np.uint64).astype(np.uint8)
    assert lines.count_of(10, view) == int((view == 10).sum())


@pytest.mark.parametrize(
    ("base_type", "data", "parts"),
    [
        ("Integer", '{"a":1}\n{"a":"x"}\n', ["line 2", "column 'a'", "whole number", "'x'"]),
        ("Integer", '{"a":1}\n{"a":1.5}\n', ["line 2", "column 'a'", "whole number"]),
        ("Boolean", '{"a":"yes"}\n', ["line 1", "column 'a'", "true or false"]),
        ("Float", '{"a":"1.5"}\n', ["line 1", "column 'a'", "a number"]),
        ("Float", '{"a":1e999}\n', ["line 1", "column 'a'", "fits a double"]),
        ("Float", '{"a":1.0}\n{"a":1.5e309}\n', ["line 2", "column 'a'", "fits a double"]),  # infinity to Arrow
        ("Date", '{"a":"2024-01-01"}\n\n{"a":"tomorrow"}\n', ["line 3", "column 'a'", "a date", "'tomorrow'"]),
        ("Date", '{"a":"2024-01-01"}\n{"a":"0043-03-15 BC"}\n', ["line 2", "column 'a'", "a date", "'0043-03-15 BC'"]),
        ("Date", '{"a":"2024-02-30"}\n', ["line 1", "column 'a'", "2024-02-30"]),
        ("DateTime", '{"a":"2024-01-01T25:00:00Z"}\n', ["line 1", "column 'a'", "date-time"]),
        ("Instant", '{"a":12345}\n', ["line 1", "column 'a'", "12345"]),
        ("Text", '{"a":"x"}\n{"a":"half', ["line 2", "column 'a'", "cut short", "file ends"]),
        ("Text", '{"a":"x"}\n{"a":\n{"a":"y"}\n', ["line 2", "column 'a'", "cut short"]),
        ("Text", '{"a":"x"}\n[1]\n', ["line 2", "JSON object"]),
        ("Text", '{"a":"x"}\nnull\n', ["line 2", "JSON object"]),
        ("Text", '{"a":"x"}\n{"a":"y"}null\n{"a":"z"}\n', ["line 2", "JSON object"]),
        ("Text", '{"a":"x"}\n{"a":"y"} null', ["line 2", "JSON object"]),
        ("Text", '{"a":"x"}\n{"a" "b"}\n', ["line 2", "not valid JSON"]),
        ("Text", b'{"a":"x"}\n{"a":"\xff"}\n', ["line 2", "column 'a'", "UTF-8"]),
        ("Text", '{"a":"x"}\n'.encode("utf-16"), ["line 1", "UTF-16"]),
        ("Text", gzip.compress(b'{"a":"x"}\n', mtime=0), ["compressed with gzip", "Content-Encoding"]),
        ("Text", '{"a":"\\ud800"}\n', ["line 1", "column 'a'", "surrogate"]),
        ("Decimal", '{"a":1e999}\n', ["column 'a'", "range of float64"]),
        ("Decimal", '{"a":"1e99999999999999999999"}\n', ["line 1", "column 'a'", "a number"]),
        ("Decimal", '{"a":1e99999999999999999999}\n', ["line 1", "not readable as JSON"]),
        ("Integer", '{"a":' + "[" * 100_000 + "\n", ["line 1"]),
    ],
)
def test_error_names_table_line_and_column(tmp_path: Path, base_type: str, data: str | bytes, parts: list[str]) -> None:
    with pytest.raises(InputInvalid) as caught:
        read(tmp_path, fields(a=base_type), data)
    message = str(caught.value)
    assert message.startswith("Table 'orders'")
    assert [part for part in parts if part not in message] == []


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_line_number_counts_the_blocks_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str | None
) -> None:
    monkeypatch.setattr(lines.line_blocks, "__defaults__", (100,))
    data = b'{"a":1}\n\n' * 500 + b'{"a":"x"}\n' + b'{"a":1}\n' * 1000
    packed = gzip.compress(data) if compression else data
    with pytest.raises(InputInvalid, match="line 1001, column 'a'"):
        read(tmp_path, fields(a="Integer"), packed, compression=compression)
    broken = data.replace(b"x", b"\xff")
    with pytest.raises(InputInvalid, match="line 1001, column 'a'"):  # no manifest: the columns are looked for first
        read(tmp_path, None, gzip.compress(broken) if compression else broken, compression=compression)


@pytest.mark.parametrize(
    "text", ["", "\n", "a", "a\n", "a\nbc", "ab\n" * 50, "a\n" + "b" * 200_000 + "\nc\n", "\n" * 99]
)
def test_blocks_are_all_lines_of_the_file(tmp_path: Path, text: str) -> None:
    data = text.encode()
    (tmp_path / "plain").write_bytes(data)
    (tmp_path / "packed").write_bytes(gzip.compress(data))
    for name, compression in (("plain", None), ("packed", "gzip")):
        blocks = list(lines.line_blocks(TableFile("t", tmp_path / name, None, compression=compression), 20))
        assert b"".join(block.read() for block in blocks) == data
        assert all(block.read().endswith(b"\n") for block in blocks[:-1])
        assert [block.start_bytes for block in blocks] == [0, *(block.end_bytes for block in blocks)][: len(blocks)]


@pytest.mark.parametrize(
    ("manifest", "problem"), [("{", "not valid JSON"), ("[]", "must be an object"), ('{"fields":[{}]}', "name")]
)
def test_manifest_that_cannot_be_used_is_named(tmp_path: Path, manifest: str, problem: str) -> None:
    (tmp_path / "data").write_text("{}\n")
    (tmp_path / "manifest").write_text(manifest)
    with pytest.raises(InputInvalid, match=problem):
        TableSource(TableFile("orders", tmp_path / "data", tmp_path / "manifest"))


@pytest.mark.parametrize("big", [2**63, 2**64 - 1, 2**80 + 1])
def test_without_manifest_nothing_is_guessed_that_loses(tmp_path: Path, big: int) -> None:
    rows = [
        {"i": 1, "f": 1, "b": True, "s": "007", "d": "2024-01-01", "x": 1, "big": 1, "z": 0.5, "n": None},
        {
            "i": None,
            "f": 2.5,
            "b": None,
            "s": "a",
            "d": "2024",
            "x": "y",
            "big": big,
            "z": big,
            "n": None,
            "late": {"k": 1},
        },
    ]
    data = "".join(json.dumps(row) + "\n" for row in rows)
    frame = read(tmp_path, None, data)
    assert list(frame.columns) == ["i", "f", "b", "s", "d", "x", "big", "z", "n", "late"]
    assert str(frame["i"].dtype) == "Int64"
    assert frame["f"].tolist() == [1.0, 2.5]
    assert frame["s"].tolist() == ["007", "a"]
    assert frame["d"].tolist() == ["2024-01-01", "2024"]
    assert frame["big"].tolist() == [1, big]
    assert read(tmp_path, None, data, form="arrow").column("z").to_pylist() == [Decimal("0.5"), Decimal(big)]
    assert frame["late"].tolist()[1] == '{"k":1}'


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_packed_file_is_read_on_the_way(tmp_path: Path, compression: Any) -> None:
    data = b'{"a":1}\n{"a":2}\n'
    packed = gzip.compress(data) if compression == "gzip" else pa.compress(data, codec="zstd", asbytes=True)
    assert read(tmp_path, fields(a="Integer"), packed, compression=compression)["a"].tolist() == [1, 2]


def test_damaged_packed_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputInvalid, match="unpacked"):
        read(tmp_path, fields(a="Integer"), gzip.compress(b'{"a":1}\n' * 1000)[:-20] + b"x" * 20, compression="gzip")


@pytest.mark.parametrize("value", ["1" * 39, "1.5E38", "9" * 76])
def test_decimal_that_overflows_the_fast_parser_is_exact(tmp_path: Path, value: str) -> None:
    data = '{"c":1}\n{"c":' + value + "}\n"
    table = read(tmp_path, fields(c="Decimal"), data, form="arrow")
    assert table.column("c").to_pylist() == [1, Decimal(value)]


@pytest.mark.parametrize(("base_type", "zone"), [("DateTime", None), ("Instant", "UTC")])
def test_zeros_that_look_like_nanoseconds_lose_no_years(tmp_path: Path, base_type: str, zone: str | None) -> None:
    values = ('"2024-01-15T10:30:00.123456000Z"', '"1500-01-15T10:30:00Z"')
    stamps = ["2024-01-15T10:30:00.123456", "1500-01-15T10:30:00"]
    assert column(tmp_path, base_type, *values).tolist() == [pd.Timestamp(stamp, tz=zone) for stamp in stamps]


def test_offset_of_local_mean_time_keeps_its_instant(tmp_path: Path) -> None:
    found = column(tmp_path, "Instant", '"1900-01-01T00:00:00.5+00:19:32"', '"1900-01-01T00:00:00-05:00"', "null")
    assert found.dropna().tolist() == [
        pd.Timestamp("1899-12-31T23:40:28.5Z"),
        pd.Timestamp("1900-01-01T05:00:00Z"),
    ]


def test_large_double_without_manifest_stays_a_double(tmp_path: Path) -> None:
    frame = read(tmp_path, None, '{"d":1e300,"i":9223372036854775808}\n{"d":0.1,"i":1}\n')
    assert frame["d"].tolist() == [1e300, 0.1]
    assert frame["i"].tolist() == [2**63, 1]


@pytest.mark.parametrize(("line", "shown"), [("null", "null"), ("[1]", "[1]")])
def test_line_that_is_no_object_is_shown_as_it_stands(tmp_path: Path, line: str, shown: str) -> None:
    with pytest.raises(InputInvalid) as caught:
        read(tmp_path, fields(a="Integer"), '{"a":1}\n' + line + "\n")
    assert str(caught.value).endswith(f"line 2: expected one JSON object a line, found {shown}")


@pytest.mark.parametrize("data_format", ["csv", "parquet", "arrow"])
def test_damaged_file_of_another_format_is_named(tmp_path: Path, data_format: Any) -> None:
    data = b"i,s\n1,a\n2,b,c,d\n" if data_format == "csv" else b"PAR1 this is none of it ARROW1"
    with pytest.raises(InputInvalid, match="Table 'orders'"):
        read(tmp_path, fields(i="Integer", s="Text"), data, data_format=data_format)
