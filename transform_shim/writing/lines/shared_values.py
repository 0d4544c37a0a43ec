"""Columns whose whole numbers or dates lie close together: a value's text is needed once, not once a row."""

from __future__ import annotations

import functools

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transform_shim.core.array_buffers import null_mask, numbers
from transform_shim.writing.lines.cell_texts import TEXT, cell_texts
from transform_shim.writing.lines.concat import Places

__all__ = ["shared_texts"]

#: With fewer rows the test of a column, 50 us, costs more than it saves.
_FEWEST_ROWS = 4096
_TABLE_END = 10_000


def shared_texts(array: pa.Array) -> tuple[pa.Array, Places] | None:
    """Return the texts of all values from the smallest to the largest, then null if there is one, and each row's place.

    None where that is no gain: when there are more than two thirds as many as rows (a text costs 17 ns, to share one
    7 ns a row), and for other types than whole numbers and dates.
    """
    kind = array.type
    if len(array) < _FEWEST_ROWS or not (pa.types.is_integer(kind) or pa.types.is_date32(kind)):
        return None
    if array.null_count == len(array):
        return pa.nulls(1, TEXT), np.zeros(len(array), np.int32)
    ticks = array.view(pa.int32()) if pa.types.is_date32(kind) else array
    extremes = pc.min_max(ticks)
    smallest, largest = extremes["min"].as_py(), extremes["max"].as_py()
    if largest - smallest >= 2 * len(array) // 3 or largest >= 2**63:
        return None
    if pa.types.is_integer(kind) and smallest >= -_TABLE_END and largest < _TABLE_END:
        texts = _table().slice(smallest + _TABLE_END, largest - smallest + 1)
    else:
        texts = cell_texts(pa.array(smallest + np.arange(largest - smallest + 1)).cast(ticks.type).view(kind))
    places = _places(ticks, smallest)
    if array.null_count:
        places[null_mask(array)] = len(texts)
        texts = pa.concat_arrays([texts, pa.nulls(1, TEXT)])
    return texts, places


@functools.cache
def _table() -> pa.Array:
    """Return the texts of numbers around zero, made once in 0.5 ms; most columns have no others."""
    return pa.array(np.arange(-_TABLE_END, _TABLE_END)).cast(TEXT)


def _places(ticks: pa.Array, smallest: int) -> Places:
    found = numbers(ticks)
    if found.itemsize < 4:  # the difference of two bytes may be none
        found = found.astype(np.int32)
    places: Places = np.empty(len(found), np.int32)
    np.subtract(found, smallest, out=places, casting="unsafe")
    return places
