"""Arrow columns to a pandas DataFrame, with dtypes that follow from the manifest alone.

=========================== ==================================================================
column                      pandas
=========================== ==================================================================
integers                    the numpy integer; with nulls the nullable one (``Int64``)
bool                        ``bool``; with nulls ``boolean``
floats, decimals            ``float64``, null is NaN
text                        the text dtype of this pandas: ``object`` before pandas 3, then ``str``
date                        ``datetime64[ns]`` at midnight
timestamp                   ``datetime64[ns]``, zoned ones in UTC
nested                      Python lists and dictionaries (``object``)
time, duration              the result of Arrow's own conversion
=========================== ==================================================================

Three exceptions depend on the values, because these dtypes would lose data, and each comes with a notice: integers
beyond 64 bits are Python integers (``object``), dates and date-times that nanoseconds cannot hold are
``datetime64[us]``, and a column of type Number with fractions is ``float64``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from transform_shim.core.base_types import Kind
from transform_shim.core.decimals import arrow_decimal, to_doubles
from transform_shim.core.errors import NoType
from transform_shim.reading.values.common_type import cast_to_common_type
from transform_shim.reading.values.temporal import to_microseconds

__all__ = ["column_values", "frame_of"]

#: pandas warns of fragmentation from 100 blocks on; wide frames are consolidated (one more copy) to spare users that.
_MOST_BLOCKS = 90
_INT64 = pa.decimal128(19, 0)


def frame_of(names: list[str], take: Callable[[int], Any], rows: int) -> pd.DataFrame:
    """Build a frame column by column.

    `take` returns the values of column i and frees the source of them, so that at no time two copies of the whole table
    exist.
    """
    columns = {name: take(index) for index, name in enumerate(names)}
    index = pd.RangeIndex(rows)
    for values in columns.values():
        if isinstance(values, pd.Series):
            values.index = index  # else pandas aligns it: 0.1 ms in a fresh process
    # names that the dictionary has are not given again: pandas would look each up, which takes 0.2 ms there
    return pd.DataFrame(columns, index=index, columns=None if names else [], copy=len(names) > _MOST_BLOCKS)


def column_values(parts: Sequence[pa.Array], kind: Kind | None) -> tuple[Any, str | None]:
    """Return one column as an array that pandas takes without another copy.

    Parameters
    ----------
    parts : sequence of pyarrow.Array
        The blocks of the column.
    kind : Kind or None
        The kind of the column; None where only the file itself has the type.

    Returns
    -------
    values : numpy.ndarray, pandas.api.extensions.ExtensionArray or pandas.Series
    notice : str or None
        A notice for the user: values that were rounded, or an exception to the dtype.

    Raises
    ------
    NoType
        If a number is beyond the range of ``float64``.
    """
    if kind in (Kind.INTEGER, Kind.NUMBER):
        wide = [part for part in parts if pa.types.is_decimal(part.type) or pa.types.is_large_string(part.type)]
        if wide:
            return _python_integers(parts) if all(map(_is_whole, wide)) else _doubles(parts, kind)
    if kind is Kind.DECIMAL or (kind is None and any(pa.types.is_decimal(part.type) for part in parts)):
        return _doubles(parts, kind)
    column, cut_count = _in_one_type(parts, kind)
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("us"))
    if pa.types.is_timestamp(column.type):
        return _timestamps(column, cut_count)
    if pa.types.is_time64(column.type) and column.type.unit == "ns":
        return _times(column)
    return _values(column), None


def _is_whole(numbers: pa.Array) -> bool:
    """Return whether decimals, or numbers as texts, have no fractions."""
    if pa.types.is_decimal(numbers.type):
        return bool(numbers.type.scale <= 0)
    return bool(pc.all(pc.match_substring_regex(numbers, r"^-?\d+$")).as_py())


def _python_integers(parts: Sequence[pa.Array]) -> tuple[Any, str]:
    values = [None if value is None else int(value) for part in parts for value in part.to_pylist()]
    notice = "there are integers beyond 64 bits: the column has Python integers (object)"
    return pd.Series(values, dtype=object), notice  # of an array pandas looks for dates, and fails at 10**309


def _in_one_type(parts: Sequence[pa.Array], kind: Kind | None) -> tuple[pa.ChunkedArray, int]:
    """Return the blocks in one type, and how many date-times were cut to microseconds for that."""
    try:
        return cast_to_common_type(parts, kind, arrow_decimal), 0
    except NoType:
        if kind not in (Kind.DATETIME, Kind.INSTANT):
            raise
    chunks, cut_count = [], 0
    zone = "UTC" if kind is Kind.INSTANT else None
    target = pa.timestamp("us", zone)
    for part in parts:
        if pa.types.is_large_string(part.type):
            chunk, count = to_microseconds(part, zone)
        else:
            chunk = part.cast(target, safe=False)
            is_cut = pa.types.is_timestamp(part.type) and part.type.unit == "ns"
            count = pc.sum(pc.not_equal(chunk.cast(part.type), part)).as_py() or 0 if is_cut else 0
        chunks.append(chunk)
        cut_count += count
    return pa.chunked_array(chunks, type=target), cut_count


def _values(column: pa.ChunkedArray) -> Any:
    """Return a column without exceptions."""
    if pa.types.is_integer(column.type):
        if not column.null_count:
            return _owned(column)
        # 1 is pandas' own filler, and its rank() before 3 counts that: the result must be that of any other Int64
        return pd.arrays.IntegerArray(_owned(column.fill_null(1)), _mask(column))
    if pa.types.is_boolean(column.type):
        if not column.null_count:
            return _owned(column)
        return pd.arrays.BooleanArray(_owned(column.fill_null(False)), _mask(column))
    if pa.types.is_floating(column.type):
        return _owned(column)
    if pa.types.is_nested(column.type):  # pandas would turn nested integers into floats where there is a null
        values = np.empty(len(column), dtype=object)
        values[:] = column.to_pylist()
        return values
    return column.to_pandas()


def _owned(column: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    """Return a numpy array that pandas may write to: Arrow's buffers are read-only, and df.loc[...] = would fail."""
    if column.num_chunks == 1:
        return np.array(column.chunk(0).to_numpy(zero_copy_only=False))
    values: np.ndarray[Any, Any] = column.to_numpy()
    return values if values.flags.writeable else values.copy()


def _mask(column: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    return np.array(column.is_null().to_numpy())


def _doubles(parts: Sequence[pa.Array], kind: Kind | None) -> tuple[Any, str | None]:
    """Return decimals, perhaps with integers among them, as doubles."""
    chunks, rounded = [], 0
    for part in parts:
        if pa.types.is_integer(part.type):
            part = part.cast(_INT64)
        if pa.types.is_decimal(part.type) or pa.types.is_large_string(part.type):
            part, count = to_doubles(part)
            rounded += count
        chunks.append(part.cast(pa.float64()))
    notices = []
    if kind is Kind.NUMBER:
        notices.append("there are numbers with fractions: the column is float64")
    if rounded:
        notices.append(f"{rounded:,} value{'s' * (rounded != 1)} rounded to float64")
        if not any(pa.types.is_large_string(part.type) for part in parts):
            notices.append("annotate the parameter as pl.DataFrame or pa.Table for exact decimals")
    return _owned(pa.chunked_array(chunks, type=pa.float64())), "; ".join(notices) or None


def _times(column: pa.ChunkedArray) -> tuple[Any, str | None]:
    """Return times of day as Python's, which have microseconds."""
    times = column.cast(pa.time64("us"), safe=False)
    cut_count = pc.sum(pc.not_equal(times.cast(column.type), column)).as_py() or 0
    return times.to_pandas(), f"{cut_count:,} value{'s' * (cut_count != 1)} cut to microseconds" if cut_count else None


def _timestamps(column: pa.ChunkedArray, cut_count: int) -> tuple[Any, str | None]:
    zone, notice = column.type.tz, None
    naive = column.cast(pa.timestamp(column.type.unit))
    try:
        naive = naive.cast(pa.timestamp("ns"))
    except pa.ArrowInvalid:
        years = pc.min_max(pc.year(naive)).as_py()
        notice = (
            f"there are years from {years['min']} to {years['max']}, and nanoseconds hold 1678 to 2262:"
            f" the column is datetime64[{naive.type.unit}]"
        )
        if cut_count:
            notice += f"; {cut_count:,} value{'s' * (cut_count != 1)} cut to microseconds"
    values = _owned(naive)
    if zone is None:
        return values, notice
    utc = pd.DatetimeIndex(values).tz_localize("UTC")
    return utc.array if zone == "UTC" else utc.tz_convert(zone).array, notice
