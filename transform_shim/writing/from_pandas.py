"""pandas columns as canonical Arrow arrays, a slice at a time.

The type of a column is decided before the first row, from its dtype and, where that says little (objects), its
values. Two repairs use the source's type, whatever dtype the column has by now: an Integer column that a join turned
into floats still holds whole numbers, and a Date column becomes midnights in pandas.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from transform_shim.core.base_types import Kind
from transform_shim.core.errors import OutputInvalid
from transform_shim.core.manifest import Field
from transform_shim.writing.arrow_types import canonical, canonical_type
from transform_shim.writing.object_columns import MixedColumns, ObjectColumn

__all__ = ["PlannedColumn", "plan_column"]

_DOUBLE_INTEGER_END = 2.0**53
#: Rows that are looked at in one step for a repair.
_CHECKED_ROWS = 1 << 16
#: Date-times without a zone.
_CLOCKS = frozenset(map(pa.timestamp, ("s", "ms", "us", "ns")))


class PlannedColumn(Protocol):
    """A column whose type is decided."""

    name: str
    type: pa.DataType

    def slice(self, start: int, stop: int) -> pa.Array: ...


class _SlicedColumn:
    """A column that becomes Arrow by `convert` and then its canonical type."""

    def __init__(
        self, name: str, values: Any, convert: Callable[[Any], Any], target: pa.DataType | None = None
    ) -> None:
        self.name, self._values, self._convert = name, values, convert
        self.type = target if target is not None else canonical_type(convert(values[:0]).type, name)

    def slice(self, start: int, stop: int) -> pa.Array:
        array = self._convert(self._values[start:stop])
        if isinstance(array, pa.ChunkedArray):
            array = array.combine_chunks()
            if isinstance(array, pa.ChunkedArray):  # dictionaries of several chunks do not combine
                array = pa.concat_arrays([chunk.dictionary_decode() for chunk in array.chunks])
        return canonical(array, self.name, self.type, start)


class _RepairedColumn:
    """A column in the type that its source had."""

    def __init__(self, column: PlannedColumn, target: pa.DataType) -> None:
        self.name, self._column, self.type = column.name, column, target

    def slice(self, start: int, stop: int) -> pa.Array:
        return self._column.slice(start, stop).cast(self.type)


def plan_column(name: str, series: pd.Series[Any], source: Field | None, mixed: MixedColumns = "text") -> PlannedColumn:
    """Decide how a column is written; `source` is the field it was read from, if any.

    Raises
    ------
    OutputInvalid
        If its dtype or one of its values cannot be written.
    """
    column = _by_dtype(name, series, mixed)
    wanted = None if source is None else source.kind
    holds: Callable[[pa.Array], bool]
    if wanted in (Kind.INTEGER, Kind.NUMBER) and pa.types.is_floating(column.type):
        target, holds = pa.int64(), _all_whole
    elif wanted is Kind.DATE and column.type in _CLOCKS:
        target, holds = pa.date32(), _all_midnight
    else:
        return column
    steps = range(0, len(series), _CHECKED_ROWS)
    is_whole = all(holds(column.slice(start, min(start + _CHECKED_ROWS, len(series)))) for start in steps)
    return _RepairedColumn(column, target) if is_whole else column


def _all_whole(numbers: pa.Array) -> bool:
    is_whole = pc.and_(pc.equal(pc.trunc(numbers), numbers), pc.less_equal(pc.abs(numbers), _DOUBLE_INTEGER_END))
    return bool(pc.all(is_whole, min_count=0).as_py())


def _all_midnight(times: pa.Array) -> bool:
    return bool(pc.all(pc.equal(times.cast(pa.date32()).cast(times.type, safe=False), times), min_count=0).as_py())


def _by_dtype(name: str, series: pd.Series[Any], mixed: MixedColumns) -> PlannedColumn:
    dtype = series.dtype
    if isinstance(dtype, pd.SparseDtype):
        return _by_dtype(name, pd.Series(np.asarray(series)), mixed)
    if isinstance(dtype, pd.CategoricalDtype):
        return _categories(name, series, mixed)
    if isinstance(dtype, (pd.PeriodDtype, pd.IntervalDtype)):
        return ObjectColumn(name, series.array.astype(object), mixed)
    if isinstance(dtype, pd.StringDtype) and dtype.storage == "python":
        return ObjectColumn(name, series.array.astype(object), mixed)  # may hold what no Arrow text can
    if isinstance(dtype, np.dtype):
        return _numpy_column(name, series, mixed)
    if isinstance(dtype, pd.DatetimeTZDtype):
        # in UTC, as they are written: Arrow does not know every zone, such as offsets with seconds
        return _SlicedColumn(name, series.dt.tz_convert("UTC").array, lambda part: pa.array(part))
    if hasattr(series.array, "__arrow_array__"):
        return _SlicedColumn(name, series.array, _arrow_of)
    return ObjectColumn(name, series.array.astype(object), mixed)


def _arrow_of(part: Any) -> Any:
    array = pa.array(part)
    return array.cast(pa.large_string()) if pa.types.is_string(array.type) else array


def _numpy_column(name: str, series: pd.Series[Any], mixed: MixedColumns) -> PlannedColumn:
    values: np.ndarray[Any, Any] = series.to_numpy()
    kind = values.dtype.kind
    if kind == "O":
        return ObjectColumn(name, values, mixed)
    if not values.dtype.isnative:  # of a file in another byte order, which Arrow does not take
        values = values.astype(values.dtype.newbyteorder("="))
    if kind == "f" and values.dtype.itemsize > 8:
        values = values.astype(np.float64)  # no database has wider floats
    if kind == "M" and np.datetime_data(values.dtype)[0] not in ("s", "ms", "us", "ns"):
        values = values.astype("M8[s]")
    if kind in "bifuMm":
        return _SlicedColumn(name, values, lambda part: pa.array(part, from_pandas=True))
    raise OutputInvalid(f"the dtype {values.dtype} cannot be written", column=name)


def _categories(name: str, series: pd.Series[Any], mixed: MixedColumns) -> PlannedColumn:
    """Return a column whose slices look their codes up in the categories, which are converted once."""
    codes = series.cat.codes.to_numpy()
    try:
        categories = _by_dtype(name, pd.Series(series.cat.categories), "error")
        labels = categories.slice(0, len(series.cat.categories))
    except OutputInvalid:  # of a category that perhaps no row has, and its row is the category's number
        return ObjectColumn(name, series.astype(object).to_numpy(), mixed)

    def look_up(part: np.ndarray[Any, Any]) -> pa.Array:
        return pc.take(labels, pa.array(part, mask=part < 0))

    return _SlicedColumn(name, codes, look_up, labels.type)
