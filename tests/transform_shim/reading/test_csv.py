"""CSV tables, with and without a manifest."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tests.transform_shim.reading.test_reading import fields, read
from transform_shim.core.errors import InputInvalid

CSV = 'i,s,d,b,m,at\n1,"a,""b""\nc",2024-01-15,true,12345678901234567.89,2024-01-15 10:30:00\n,"",,False,0.1,\n007,x,2024-02-01,,,\n'
CSV_FIELDS = fields(i="Integer", s="Text", d="Date", b="Boolean", m="Decimal", at="DateTime")


def test_csv_is_read_by_the_manifest(tmp_path: Path) -> None:
    frame = read(tmp_path, CSV_FIELDS, CSV, data_format="csv")
    assert frame["i"].tolist() == [1, pd.NA, 7]
    assert frame["s"].tolist() == ['a,"b"\nc', "", "x"]
    assert frame["b"].tolist() == [True, False, pd.NA]
    assert frame["m"].tolist()[:2] == [12345678901234567.89, 0.1]
    assert str(frame["d"][0].date()) == "2024-01-15"


def test_csv_without_manifest_infers_types_and_keeps_leading_zeros(tmp_path: Path) -> None:
    frame = read(tmp_path, None, "code,n,f,t\n007,1,1.5,2024-01-15\n010,2,2,2024-02-01\n", data_format="csv")
    assert frame["code"].tolist() == ["007", "010"]
    assert frame["n"].tolist() == [1, 2]
    assert frame["f"].tolist() == [1.5, 2.0]
    assert frame["t"].dt.month.tolist() == [1, 2]


@pytest.mark.parametrize("number", [1844674407370955161, 2**63 - 1, 2**64, 10**75 + 1])
def test_whole_numbers_of_a_csv_without_manifest_keep_their_digits(tmp_path: Path, number: int) -> None:
    assert read(tmp_path, None, f"n\n{number}\n1\n", data_format="csv")["n"].tolist() == [number, 1]


def test_csv_value_that_contradicts_the_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputInvalid, match="column 'i'"):
        read(tmp_path, fields(i="Integer"), "i\n1\nx\n", data_format="csv")
