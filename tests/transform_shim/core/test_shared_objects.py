"""Texts that share Python objects become the same Arrow array as texts that do not."""

from __future__ import annotations

import random

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from transform_shim.core.shared_objects import plain_texts, text_array

NULLS_AND_ODD_TEXTS = (None, float("nan"), pd.NA, pd.NaT, "", "é\u2028\0", "x" * 100, np.str_("numpy"))


@pytest.mark.parametrize("rows", [0, 1, 1023, 1024, 1025, 5000])
@pytest.mark.parametrize("different", [0, 1, 900, 5000])
def test_texts_are_those_that_arrow_makes(rows: int, different: int) -> None:
    chosen = random.Random(rows + different)
    pool = [*NULLS_AND_ODD_TEXTS, *(f"text {number}" for number in range(different))]
    values = np.empty((rows, 2), object)
    values[:] = [[chosen.choice(pool), chosen.choice(pool)] for _ in range(rows)] or None
    for column in (values[:, 0].copy(), values[:, 1]):  # alone, and with another column's values between its own
        expected = pa.array(column, pa.large_string(), from_pandas=True)
        found = text_array(column)
        assert plain_texts(found).equals(expected)
        if pa.types.is_dictionary(found.type):
            assert found.indices.null_count == 0
            assert found.dictionary.take(found.indices.unique()).equals(found.dictionary)  # none that no row has


def test_shared_texts_are_a_dictionary() -> None:
    values = np.array(["a", "b", None, "b"] * 1000, object)
    found = text_array(values)
    assert found.dictionary.to_pylist() == ["a", "b", None]
    assert found.indices.type == pa.int32()


@pytest.mark.parametrize("odd", ["\ud800", 5])
def test_what_is_no_text_is_an_error(odd: object) -> None:
    values = np.array(["a", "b"] * 2000, object)
    values[3000] = odd
    with pytest.raises((UnicodeEncodeError, pa.ArrowInvalid, pa.ArrowTypeError)):
        text_array(values)
