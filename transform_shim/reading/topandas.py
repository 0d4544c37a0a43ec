"""Arrow columns to a pandas DataFrame, with dtypes that hold the values and behave as people expect.

=========================== ==================================================================
Arrow                       pandas
=========================== ==================================================================
integers                    the numpy integer; with nulls the nullable one (``Int64``)
bool                        ``bool``; with nulls ``boolean``
floats                      numpy floats, null is NaN
decimal, scale 0, from ints Python integers (``object``), null is None
decimal                     ``float64`` if every value reads back the same, else the Arrow decimal
text                        pandas' own text dtype (``str``; ``object`` before pandas 3)
date                        ``datetime64[us]`` at midnight
timestamp                   ``datetime64`` of the same unit, zoned ones in UTC
nested                      Python lists and dictionaries (``object``)
time, duration              what Arrow's own conversion gives
=========================== ==================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from transform_shim.basetypes import Kind
from transform_shim.reading.numbers import decimal_type, double_if_exact

__all__ = ["frame_of", "series_values"]

#: pandas warns of fragmentation from 100 blocks on; wide frames are consolidated (one more copy) to spare users that.
_MOST_BLOCKS = 90


def frame_of(names: list[str], take: Callable[[int], tuple[pa.ChunkedArray, Kind | None]], rows: int) -> pd.DataFrame:
    """Build a frame column by column.

    `take` hands over column i and lets go of it, so that at no time two copies of the whole table exist.
    """
    columns: dict[str, Any] = {}
    for index, name in enumerate(names):
        column, kind = take(index)
        columns[name] = series_values(column, kind)
        del column
    return pd.DataFrame(columns, index=pd.RangeIndex(rows), columns=names, copy=len(names) > _MOST_BLOCKS)


def series_values(column: pa.ChunkedArray, kind: Kind | None = None) -> Any:
    """One column as something pandas takes without another copy; see the table above."""
    arrow_type = column.type
    if pa.types.is_integer(arrow_type):
        return _integers(column)
    if pa.types.is_boolean(arrow_type):
        return _booleans(column)
    if pa.types.is_decimal(arrow_type):
        return _decimals(column, kind)
    if pa.types.is_date(arrow_type):
        return _owned(column.cast(pa.timestamp("us")))
    if pa.types.is_floating(arrow_type):
        return _owned(column)
    if pa.types.is_timestamp(arrow_type):
        return _timestamps(column)
    if pa.types.is_nested(arrow_type):  # pandas would make floats of integers beside a null in there
        values = np.empty(len(column), dtype=object)
        values[:] = column.to_pylist()
        return values
    return column.to_pandas()


def _owned(column: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    """A numpy array that belongs to pandas alone: Arrow's buffers are read-only, and df.loc[...] = would fail."""
    if column.num_chunks == 1:
        return np.array(column.chunk(0).to_numpy(zero_copy_only=False))
    values: np.ndarray[Any, Any] = column.to_numpy()
    return values if values.flags.writeable else values.copy()


def _mask(column: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    return np.array(column.is_null().to_numpy())


def _integers(column: pa.ChunkedArray) -> Any:
    if not column.null_count:
        return _owned(column)
    return pd.arrays.IntegerArray(_owned(column.fill_null(0)), _mask(column))


def _booleans(column: pa.ChunkedArray) -> Any:
    if not column.null_count:
        return _owned(column)
    return pd.arrays.BooleanArray(_owned(column.fill_null(False)), _mask(column))


def _decimals(column: pa.ChunkedArray, kind: Kind | None) -> Any:
    if kind in (Kind.INTEGER, Kind.NUMBER) and column.type.scale == 0:
        values = [None if value is None else int(value) for value in column.to_pylist()]
        return pd.Series(values, dtype=object).array
    doubles = [double_if_exact(chunk) for chunk in column.chunks]
    if all(chunk is not None for chunk in doubles):
        return _owned(pa.chunked_array(doubles, type=pa.float64()))
    roomy = _room_for_arithmetic(column)
    return pd.arrays.ArrowExtensionArray(roomy)


def _room_for_arithmetic(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Arrow derives the digits of a product from its factors; 256 bits leave room for products with integers."""
    kind = column.type
    if pa.types.is_decimal128(kind):
        return column.cast(pa.decimal256(kind.precision, kind.scale))
    return column if kind.precision < 76 else column.cast(decimal_type(kind.precision, kind.scale))


def _timestamps(column: pa.ChunkedArray) -> Any:
    zone = column.type.tz
    if zone is None:
        return _owned(column)
    naive = _owned(column.cast(pa.timestamp(column.type.unit)))
    utc = pd.DatetimeIndex(naive).tz_localize("UTC")
    return utc.array if zone == "UTC" else utc.tz_convert(zone).array
