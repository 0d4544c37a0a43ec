"""Which types the output's manifest carries over from the source."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from transform_shim.core.manifest import SourceMetadata
from transform_shim.core.progress import Progress
from transform_shim.writing.frame_source import open_frame
from transform_shim.writing.output import write_output


def source(**base_types: str) -> SourceMetadata:
    fields = [
        {
            "name": n,
            "base_type": b,
            "database_type": f"db {b}",
            "effective_type": b,
            "semantic_type": None,
            "field_id": 1,
        }
        for n, b in base_types.items()
    ]
    return SourceMetadata({"schema_version": 1, "fields": fields, "table_metadata": {"table_id": 7}})


def carried(tmp_path: Path, values: Any, base_type: str) -> str:
    frame = pd.DataFrame({"c": values})
    frame.attrs["source_metadata"] = source(c=base_type)
    return written(tmp_path, frame)["fields"][0]["base_type"]


def written(tmp_path: Path, frame: Any) -> dict[str, Any]:
    output = open_frame(frame, [])
    write_output(output, "jsonl", tmp_path / "output", tmp_path / "manifest", Progress(None, "write", "output"))
    return json.loads((tmp_path / "manifest").read_bytes())


def test_fields_and_source_metadata_are_carried_over(tmp_path: Path) -> None:
    frame = pd.DataFrame({"id": [1]})
    frame.attrs["source_metadata"] = source(id="Integer", other="Text")
    changed = frame.copy().assign(new=2)
    found = written(tmp_path, changed)
    assert found["fields"] == [dict(source(id="Integer")["fields"][0]), {"name": "new", "base_type": "Integer"}]
    assert found["source_metadata"] == source(id="Integer", other="Text")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pd.to_datetime(["2024-01-15T10:30:00Z"]), {"base_type": "DateTimeWithTZ"}),
        (pd.to_datetime([None], utc=True), {"base_type": "DateTimeWithTZ"}),
        ([1.5], {"base_type": "Float"}),
        ([1705314600], {"base_type": "BigInteger", "effective_type": "Instant"}),
    ],
)
def test_the_databases_type_of_a_column_that_metabase_casts_is_carried_with_its_values_only(
    tmp_path: Path, values: Any, expected: dict[str, str]
) -> None:
    frame = pd.DataFrame({"c": values})
    field = {"name": "c", "base_type": "BigInteger", "effective_type": "Instant"}
    frame.attrs["source_metadata"] = SourceMetadata({"fields": [field]})
    assert written(tmp_path, frame)["fields"] == [{"name": "c", **expected}]


def test_frame_from_nothing_names_no_source(tmp_path: Path) -> None:
    assert "source_metadata" not in written(tmp_path, pd.DataFrame({"x": [1]}))


UUID = "550e8400-e29b-41d4-a716-446655440000"
DAYS = pd.to_datetime(["2024-01-15", None])
CLOCKS = pd.to_datetime(["2024-01-15 10:30", None])


@pytest.mark.parametrize(
    ("values", "base_type", "expected"),
    [
        ([1, 2], "Integer", "Integer"),
        ([1, 2], "BigInteger", "BigInteger"),
        ([2**53], "Float", "Float"),
        ([2**53 + 1], "Float", "BigInteger"),
        ([Decimal("0.12345678901234567890")], "Float", "Decimal"),
        ([1, 2], "Number", "Number"),
        ([2**31], "Integer", "BigInteger"),
        ([2**40], "BigInteger", "BigInteger"),
        (np.array([2**63], dtype="uint64"), "BigInteger", "Decimal"),
        ([1.5], "Integer", "Float"),
        ([1.0, np.nan], "Integer", "Integer"),
        ([1.0, np.inf], "Integer", "Float"),
        (["x"], "Integer", "Text"),
        ([1], "Float", "Float"),
        ([1.5], "Decimal", "Decimal"),
        ([1], "Text", "Integer"),
        (["x"], "PostgresEnum", "PostgresEnum"),
        ([UUID, None], "UUID", "UUID"),
        (["x"], "UUID", "Text"),
        ([True], "Boolean", "Boolean"),
        ([1], "Boolean", "Integer"),
        (DAYS, "Date", "Date"),
        (CLOCKS, "Date", "DateTime"),
        (CLOCKS, "DateTime", "DateTime"),
        (CLOCKS, "Instant", "DateTime"),
        (CLOCKS.tz_localize("UTC"), "Instant", "Instant"),
        (CLOCKS.tz_localize("UTC"), "DateTimeWithZoneOffset", "DateTimeWithZoneOffset"),
        (CLOCKS.tz_localize("UTC"), "DateTime", "DateTimeWithTZ"),
        (["{}"], "JSON", "JSON"),
        ([1], "IPAddress", "Integer"),
        ([None, None], "Boolean", "Boolean"),
        ([np.nan], "Text", "Text"),
        ([], "DateTimeWithLocalTZ", "DateTimeWithLocalTZ"),
        (["x"], "SomethingNew", "SomethingNew"),
    ],
)
def test_type_is_carried_over_while_it_fits(tmp_path: Path, values: Any, base_type: str, expected: str) -> None:
    assert carried(tmp_path, values, base_type) == expected


@pytest.mark.parametrize("dtype", ["float64", "float32", "Float64", "double[pyarrow]", "category", object])
def test_integers_that_a_join_made_floats_are_written_as_integers(tmp_path: Path, dtype: Any) -> None:
    values = pd.Series([1.0, np.nan, -3.0]).astype(dtype)
    assert carried(tmp_path, values, "Integer") == "Integer"
    assert (tmp_path / "output").read_text() == '{"c":1}\n{"c":null}\n{"c":-3}\n'


@pytest.mark.parametrize("dtype", ["datetime64[ns]", "datetime64[s]", "timestamp[us][pyarrow]", "category", object])
def test_dates_are_written_as_days(tmp_path: Path, dtype: Any) -> None:
    assert carried(tmp_path, pd.Series(DAYS).astype(dtype), "Date") == "Date"
    assert (tmp_path / "output").read_text() == '{"c":"2024-01-15"}\n{"c":null}\n'


def test_one_time_of_day_makes_a_column_of_dates_one_of_date_times(tmp_path: Path) -> None:
    many = pd.Series(pd.Timestamp(2024, 1, 15), index=range(70_000))
    assert carried(tmp_path, many, "Date") == "Date"
    assert carried(tmp_path, [*many, pd.Timestamp("2024-01-15 00:00:01")], "Date") == "DateTime"
    # its midnight lies before the first nanosecond
    assert carried(tmp_path, [pd.Timestamp.min], "Date") == "DateTime"


@pytest.mark.parametrize(
    "attrs", [5, "x", {"fields": 5}, {"fields": [1, {"name": 5}, {"base_type": "Text"}]}, {"fields": "abc"}]
)
def test_attrs_that_user_code_spoiled_do_not_matter(tmp_path: Path, attrs: Any) -> None:
    frame = pd.DataFrame({"c": [1]})
    frame.attrs["source_metadata"] = attrs
    assert written(tmp_path, frame)["fields"] == [{"name": "c", "base_type": "Integer"}]


def test_attrs_that_json_cannot_say_are_written_as_text(tmp_path: Path) -> None:
    frame = pd.DataFrame({"c": [1]})
    frame.attrs["source_metadata"] = {**source(c="Integer"), "mine": {1, 2}, "\ud800": 2**80}
    assert written(tmp_path, frame)["fields"][0]["base_type"] == "Integer"


def test_metadata_survives_pandas_operations(tmp_path: Path) -> None:
    frame = pd.DataFrame({"id": [1, 2], "s": ["a", "b"]})
    frame.attrs["source_metadata"] = source(id="BigInteger", s="UUID")
    for changed in (
        frame.copy(),
        frame[frame["id"] > 1],
        frame[["s", "id"]],
        frame.sort_values("id"),
        frame.assign(x=1),
    ):
        found = {entry["name"]: entry["base_type"] for entry in written(tmp_path, changed)["fields"]}
        assert found["id"] == "BigInteger"
        assert found["s"] == "Text"
