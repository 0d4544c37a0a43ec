"""Object columns with values of several types: one type for all, and a warning where that is text."""

from __future__ import annotations

import datetime as dt
import decimal
import json
import math
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.transform_shim.jobs import Outcome
from tests.transform_shim.writing.test_writing import UTC, cells, manifest

Job = Callable[..., Outcome]
Decimal = decimal.Decimal


@pytest.mark.parametrize(
    ("values", "expected", "base_type"),
    [
        ([1, 2.5, None], ["1.0", "2.5", "null"], "Float"),
        ([1, Decimal("2.5")], ["1", "2.5"], "Decimal"),
        ([1.5, 2**53 + 1], ["1.5", "9007199254740993"], "Decimal"),
        ([10**400 // 10**340, 0.5], [str(10**60), "0.5"], "Decimal"),
        (
            [dt.date(2024, 1, 15), dt.datetime(2024, 1, 15, 1)],
            ['"2024-01-15T00:00:00"', '"2024-01-15T01:00:00"'],
            "DateTime",
        ),
    ],
)
def test_numbers_become_numbers_and_dates_date_times(
    tmp_path: Path, values: list[Any], expected: list[str], base_type: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cells(tmp_path, values, dtype=object) == expected
    assert manifest(tmp_path)["fields"][0]["base_type"] == base_type
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("values", "expected", "row"),
    [
        (["a", True, 1, 2.5, None], ["a", "true", "1", "2.5", None], 1),
        ([None, 1, "x"], [None, "1", "x"], 2),
        ([1, 2.5, None, "x"], ["1", "2.5", None, "x"], 3),
        ([1, True], ["1", "true"], 1),
        ([math.nan, "x", math.inf, 1e300], [None, "x", None, "1e+300"], 2),
        (["x", 10**30, Decimal("1.50"), np.int8(3), np.float32(0.1)], ["x", "1" + "0" * 30, "1.50", "3", "0.1"], 1),
        (
            ["x", dt.date(2024, 1, 15), pd.Timestamp("2024-01-15 10:30"), dt.time(1)],
            ["x", "2024-01-15", "2024-01-15T10:30:00", "01:00:00"],
            1,
        ),
        (["x", [1, None], {"k": "v"}], ["x", "[1,null]", '{"k":"v"}'], 1),
        ([uuid.UUID(int=0), b"\xff"], [str(uuid.UUID(int=0)), "/w=="], 1),
        (
            [dt.datetime(2024, 1, 1), dt.datetime(2024, 1, 1, tzinfo=UTC)],
            ["2024-01-01T00:00:00", "2024-01-01T00:00:00+00:00"],
            1,
        ),
    ],
)
def test_everything_else_becomes_text_as_json_has_it(
    tmp_path: Path, values: list[Any], expected: list[str | None], row: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [json.loads(cell) for cell in cells(tmp_path, values, dtype=object)] == expected
    assert manifest(tmp_path)["fields"][0]["base_type"] == "Text"
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(f"WARNING: Output column 'c', row {row}: ")
    assert said.endswith("; the column is written as text\n")


def test_job_warns_on_stderr_or_refuses(job: Job) -> None:
    code = "import pandas as pd\ndef transform():\n    return pd.DataFrame({'c': [1, 'a', None]})"
    written = job(code)
    assert written.rows == [{"c": "1"}, {"c": "a"}, {"c": None}]
    assert written.types == {"c": "Text"}
    assert written.stderr == (
        "WARNING: Output column 'c', row 1: 'a' is of another type than the values before it (text after integer);"
        " the column is written as text\n"
    )
    assert written.stdout == ""
    refused = job(code, mixed_columns="error")
    assert refused.result["code"] == "output_invalid"
    assert "column 'c', row 1: 'a' is of another type" in refused.result["message"]
    assert not (refused.folder / "output").exists()


def test_text_column_whose_nulls_were_filled_with_a_number_is_text(job: Job) -> None:
    code = "import pandas as pd\ndef transform():\n    return pd.DataFrame({'c': pd.Series(['a', None], dtype=object).fillna(0)})"
    assert job(code).rows == [{"c": "a"}, {"c": "0"}]


@pytest.mark.parametrize(
    ("values", "expected", "said"),
    [
        (["b", "b", 1], ['"b"', '"b"', '"1"'], "row 2: 1 is of another type"),
        (["b", None, "b"], ['"b"', "null", '"b"'], ""),
    ],
)
def test_categories_count_that_some_row_has(
    tmp_path: Path, values: list[Any], expected: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    column = pd.Series(pd.Categorical(values, categories=["a", 1, "b", "\ud800"]))
    assert cells(tmp_path, column) == expected
    err = capsys.readouterr().err
    assert said in err
    assert err.count("WARNING") == bool(said)
