"""A result is read with its types, shown, and compared with an earlier one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import feather, parquet

from gateway.core.displays import ColumnProfile, DisplayedProfile
from gateway.core.formats import FORMATS
from gateway.results.comparison import CellChange, Comparison, ComparisonError
from gateway.results.comparison import compare as compare_within
from gateway.results.frames import to_pandas
from gateway.results.result_file import UnreadableResult, read_result
from gateway.results.text import comparison_text, head_text, profile_text, waterfall_text
from gateway.telemetry.waterfall import lay_out
from transform_shim.core.progress import Progress
from transform_shim.writing.frame_source import open_frame
from transform_shim.writing.output import write_output

ORDERS = pa.table({"id": [1, 2, 3], "zip": ["007", None, "010"], "amount": [10.5, 3.0, 4.5]})
TYPES = {"id": "type/Integer", "zip": "type/Text", "amount": "type/Float"}
TOLERANCE = 1e-9


def compare(before: pa.Table, after: pa.Table, key: Sequence[str] = ()) -> Comparison:
    return compare_within(before, after, key, TOLERANCE)


def write(table: pa.Table, path: Path) -> None:
    match path.suffix:
        case ".csv":
            table.to_pandas().to_csv(path, index=False)
        case ".jsonl":
            table.to_pandas().to_json(path, orient="records", lines=True)
        case ".parquet":
            parquet.write_table(table, path)
        case _:
            feather.write_feather(table, path)


@pytest.mark.parametrize("data_format", ["csv", "jsonl", "parquet", "arrow"])
def test_each_format_reads_as_the_same_table(data_format: Any, tmp_path: Path) -> None:
    path = tmp_path / f"orders.{data_format}"
    write(ORDERS, path)
    read = read_result(path, data_format, TYPES)
    assert read.to_pydict() == ORDERS.to_pydict()
    assert compare(ORDERS, read, ["id"]).is_same


@pytest.mark.parametrize("base_type", ["type/Text", "PostgresEnum", "JSON", "SomethingNew"])
@pytest.mark.parametrize("data_format", ["csv", "jsonl"])
def test_text_that_looks_like_a_date_stays_text(data_format: Any, base_type: str, tmp_path: Path) -> None:
    path = tmp_path / f"days.{data_format}"
    write(pa.table({"day": ["2024-01-15"], "date": ["2024-01-15"]}), path)
    schema = read_result(path, data_format, {"day": base_type, "date": "Date"}).schema
    assert schema.field("day").type == pa.string()
    assert schema.field("date").type != pa.string()


def test_result_without_rows_has_its_columns(tmp_path: Path) -> None:
    (tmp_path / "o.jsonl").write_bytes(b"")
    assert read_result(tmp_path / "o.jsonl", "jsonl", {"zip": "type/Text"}).schema.names == ["zip"]


def test_file_of_another_format_is_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "o.jsonl").write_text('{"a": 1}\n{"a": [}\n')
    with pytest.raises(UnreadableResult, match=r"o\.jsonl: cannot be read as jsonl"):
        read_result(tmp_path / "o.jsonl", "jsonl")


def test_columns_of_the_same_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "o.csv").write_text("a,b,a\n1,2,3\n")
    parquet.write_table(pa.table([[1], [2], [3]], ["a", "b", "a"]), tmp_path / "o.parquet")
    with pytest.raises(UnreadableResult, match="two columns have the name 'a'"):
        read_result(tmp_path / "o.csv", "csv")
    with pytest.raises(UnreadableResult, match="two columns have the name 'a'"):
        read_result(tmp_path / "o.parquet", "parquet")


def test_columns_that_do_not_fit_the_terminal_are_shown_below() -> None:
    wide = pa.table({f"column_{number}": [number, 1000 * number] for number in range(100)})
    lines = head_text(wide, 2, width=80).splitlines()
    assert max(map(len, lines)) <= 80
    blocks = [block.splitlines() for block in "\n".join(lines).split("\n\n")]
    assert len(blocks) > 1
    assert [name for block in blocks for name in block[0].split()] == wide.column_names
    assert [int(cell) for block in blocks for cell in block[3].split()] == [1000 * number for number in range(100)]


def test_profile_in_a_narrow_terminal_has_the_names_beside_all_figures() -> None:
    hours = ("2024-01-01 00:00:00+00:00", "2024-01-13 11:00:00+00:00")
    columns = (
        ColumnProfile("created_at", "DateTimeWithTZ", 0, 300, *hours),
        ColumnProfile(
            "customer_identifier", "Integer", 0, 300, "1000000", "1000299", ("1000075", "1000150", "1000224")
        ),
    )
    text = profile_text(DisplayedProfile(300, columns), 300, width=80)
    assert "…" not in text
    assert all(
        value in text for value in (*hours, "1000000", "1000075", "1000150", "1000224", "1000299", "distribution")
    )
    blocks = text.split("\n\n")
    assert all(block.count("customer_identifier") == 1 and block.startswith("column") for block in blocks)


def test_profile_and_waterfall_as_text() -> None:
    column = ColumnProfile("n", "Float", 1, 3, "1", "5", ("1.75", "2", "2.75"), (1, 0, 2, *[0] * 8, 1))
    text = profile_text(DisplayedProfile(5, (column,)), 5)
    assert text.splitlines()[1].split() == [
        "n",
        "Float",
        "1",
        "(20%)",
        "3",
        "1",
        "1.75",
        "2",
        "2.75",
        "5",
        "▄",
        "█",
        "▄",
    ]
    assert profile_text(DisplayedProfile(5, (column,)), 9).startswith("the first 5 of 9 rows:\n")
    forged = profile_text(DisplayedProfile(1, (ColumnProfile("\x1b[2Jn", "\x1b]0;x", 0),)), 1)
    assert "\x1b" not in forged, "a job must not take over the terminal"
    lines = waterfall_text(lay_out({"queue": 1.0, "execute": 4.0, "read": 1.0})).splitlines()
    assert [line.index("█") for line in lines] == [12, 22, 52]
    assert [line.count("█") for line in lines] == [10, 40, 10]
    assert lines[0].endswith("1.0000 s")
    assert waterfall_text([]) == ""


def test_comparison_by_key_finds_rows_and_cells() -> None:
    after = pa.table({"id": [2, 3, 4], "zip": ["008", "010", "1"], "amount": [3.0, 4.75, 0.0], "new": [1, 1, 1]})
    found = compare(ORDERS, after, ["id"])
    assert (found.columns_added, found.columns_removed) == (("new",), ())
    assert (found.rows_added, found.rows_removed, found.rows_changed) == (1, 1, 2)
    assert found.cells_changed == {"zip": 1, "amount": 1}
    assert found.examples == (CellChange((2,), "zip", None, "008"), CellChange((3,), "amount", 4.5, 4.75))
    text = comparison_text(found, "o.csv", 1e-9)
    assert "rows: 1 added, 1 removed, 2 changed" in text
    assert "2: zip null -> 008" in text


def test_comparison_without_key_matches_whole_rows_in_any_order() -> None:
    assert compare(ORDERS, ORDERS.take([2, 0, 1])).is_same
    found = compare(ORDERS, pa.concat_tables([ORDERS.slice(1), ORDERS.slice(1)]))
    assert (found.rows_added, found.rows_removed, found.rows_changed) == (2, 1, None)


@pytest.mark.parametrize("key", [[], ["id"]])
@pytest.mark.parametrize(
    ("old", "new", "is_same"),
    [
        (0.1 + 0.2, 0.3, True),
        (0.3, 0.31, False),
        (3, 3.0, True),
        (3.0, 3.0000000001, True),
        (10**15, 10**15 + 1, False),  # an id, which the tolerance must not merge with the next one
        (2.0**60, 2.0**60 * (1 + 1e-12), True),  # a sum, whose last digits are noise
        (1234567.125, 1234567.1250000002, True),  # rounded to nine digits, they end in 12 and in 13
        (12345678901.0, 12345678901.000002, True),
        (Decimal("0.5"), 0.5, True),
        (Decimal(10**30), Decimal(10**30 + 1), False),  # of NUMERIC(38), beyond the context's precision
        (float("inf"), float("-inf"), False),
    ],
)
def test_tolerance_holds_for_fractions_and_never_for_whole_numbers(
    old: Any, new: Any, is_same: bool, key: list[str]
) -> None:
    before, after = (pa.table({"id": [1, 2], "x": pa.array([each, None])}) for each in (old, new))
    assert compare(before, after, key).is_same is is_same


@pytest.mark.filterwarnings("error")
def test_example_of_a_small_difference_shows_the_digits_that_differ() -> None:
    found = compare_within(pa.table({"k": [1], "v": [2.0]}), pa.table({"k": [1], "v": [2.00000001]}), ["k"], 1e-9)
    assert "1: v 2.0 -> 2.00000001" in comparison_text(found, "before", 1e-9)


def test_rows_count_also_without_a_common_column() -> None:
    found = compare_within(pa.table({"a": [1, 2]}), pa.table({"b": [1, 2, 3]}), [], 1e-9)
    assert (found.rows_added, found.rows_removed) == (1, 0)


def test_rows_of_dates_nulls_and_several_key_columns_are_found() -> None:
    days = pa.array([datetime(2020, 1, 1), None, datetime(2020, 1, 3)])
    before, after = (pa.table({"day": days, "nr": [1, 2, 3], "x": [1, 1, x]}) for x in (1, 2))
    for key, of_change in ((["day"], (datetime(2020, 1, 3),)), (["nr", "day"], (3, datetime(2020, 1, 3)))):
        found = compare(before, after, key)
        assert (found.rows_added, found.rows_removed, found.cells_changed) == (0, 0, {"x": 1})
        assert [change.key for change in found.examples] == [of_change]
    with pytest.raises(ComparisonError, match=r"the same key nr, x: \(1, 1\)"):
        compare(*[pa.table({"nr": [1, 1], "x": [1, 1]})] * 2, ["nr", "x"])


def test_key_that_identifies_no_row_is_refused() -> None:
    with pytest.raises(ComparisonError, match="'nr' is not in both"):
        compare(ORDERS, ORDERS, ["nr"])
    twice = pa.concat_tables([ORDERS, ORDERS])
    with pytest.raises(ComparisonError, match="two rows of the later result have the same key id: 1"):
        compare(ORDERS, twice, ["id"])


def test_comparison_shows_no_control_characters_of_column_names() -> None:
    evil = "v\x1b]0;x\x07"
    before = pa.table({"id": [1], evil: [1], f"old {evil}": [1]})
    after = pa.table({"id": [1], evil: [2.5], f"new {evil}": [1]})
    lines = comparison_text(compare(before, after, ["id"]), "before", 1e-9).splitlines()
    assert sum("v\\x1b]0;x\\x07" in line for line in lines) == 5, "added, removed, type, number of cells, example"
    assert all(line.isprintable() for line in lines)


def test_head_shows_types_nulls_and_no_control_characters() -> None:
    table = pa.table({"name[red]": ["a\x1b[31m", None, "b" * 100], "n": [1, 2, 3]})
    text = head_text(table, 2)
    assert "name[red]" in text
    assert "[text, 1 null]" in text
    assert "a\\x1b[31m" in text
    assert "\x1b" not in text
    assert text.endswith("... 1 more row\n")


def test_dates_and_times_are_the_same_from_each_format(tmp_path: Path) -> None:
    paris = pa.timestamp("us", "Europe/Paris")
    frame = pa.table(
        {
            "count": pa.nulls(2, pa.int64()),
            "day": [date(2024, 1, 15), None],
            "at": [datetime(2024, 1, 15, 10, 30, 0, 500_000), datetime(1500, 1, 1)],
            "nanos": pa.array([1_705_314_600_123_456_789, None], pa.timestamp("ns")),
            "instant": pa.array([1_705_314_600_000_001, None], paris),
            "time": [time(10, 30), time(23, 59, 59, 123_456)],
            "never": pa.nulls(2, pa.timestamp("us")),
        }
    )
    tables = [written(frame.slice(0, rows), name, tmp_path) for rows in (2, 0) for name in FORMATS]
    for of_rows in (tables[:4], tables[4:]):
        expected = of_rows[-1]
        assert len({tuple(map(str, to_pandas(table).dtypes)) for table in of_rows}) == 1
        for table in of_rows:
            assert table.column_names == frame.column_names
            found = compare(expected, table)
            assert found.is_same
            assert not found.types_changed


def written(table: pa.Table, data_format: Any, folder: Path) -> pa.Table:
    """Return a table as read from the output of a job."""
    output, manifest = folder / f"output.{data_format}", folder / "manifest.json"
    write_output(open_frame(table, []), data_format, output, manifest, Progress(None, "write", None))
    fields = json.loads(manifest.read_bytes())["fields"]
    return read_result(output, data_format, {field["name"]: field["base_type"] for field in fields})


@pytest.mark.parametrize("data_format", ["csv", "jsonl"])
@pytest.mark.parametrize("base_type", ["Text", "Date", "DateTime", "DateTimeWithTZ", "Time"])
def test_an_earlier_result_may_have_other_types(data_format: Any, base_type: str, tmp_path: Path) -> None:
    path = tmp_path / f"o.{data_format}"
    path.write_text("id,x\n1,7\n2,8\n" if data_format == "csv" else '{"id":1,"x":7}\n{"id":2,"x":8}\n')
    table = read_result(path, data_format, {"id": "Integer", "x": base_type})
    assert table["id"].to_pylist() == [1, 2]
    assert [str(value) for value in table["x"].to_pylist()] == ["7", "8"]


@pytest.mark.parametrize("base_type", ["Integer", "Float", "Decimal", "Boolean"])
def test_a_text_of_digits_is_another_value_than_the_number(base_type: str, tmp_path: Path) -> None:
    path = tmp_path / "o.parquet"
    parquet.write_table(pa.table({"zip": ["007", None]}), path)
    found = compare(read_result(path, "parquet", {"zip": base_type}), pa.table({"zip": [7, None]}))
    assert found.types_changed == {"zip": ("text", "integer")}
    assert not found.is_same


def test_a_category_is_compared_as_its_values(tmp_path: Path) -> None:
    days = pa.table({"day": ["2024-01-15", None]})
    categories = pa.table({"day": days["day"].dictionary_encode()})
    assert not compare(categories, days).types_changed
    feather.write_feather(categories, tmp_path / "o.arrow")
    assert read_result(tmp_path / "o.arrow", "arrow", {"day": "Date"})["day"].to_pylist() == [date(2024, 1, 15), None]


@pytest.mark.parametrize("data_format", ["csv", "jsonl"])
def test_long_texts_and_those_with_line_ends_are_read_whole(data_format: Any, tmp_path: Path) -> None:
    for texts in (["one\ntwo"] * 200_000, ["x\n" * 1_000_000, "y" * 2_000_000]):
        table = pa.table({"text": texts, "n": list(range(len(texts)))})
        assert written(table, data_format, tmp_path).to_pydict() == table.to_pydict()


def test_rows_without_key_are_matched_once() -> None:
    near, far = 1234567.125, 1234567.1250000002
    before = pa.table({"s": ["a", "a", "b", None], "n": [1, 2, 1, 1], "x": [near, near, near, None]})
    after = pa.table({"s": ["a", "b", "a", None], "n": [1, 1, 3, 1], "x": [far, far, far, 0.5]})
    found = compare(before, after)
    assert (found.rows_added, found.rows_removed) == (2, 2)
    assert compare(before, pa.concat_tables([before, before.slice(0, 1)])).rows_added == 1
