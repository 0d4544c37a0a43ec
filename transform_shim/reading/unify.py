"""One type for a column whose blocks came out differently."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from transform_shim.basetypes import Kind
from transform_shim.reading.numbers import widest

__all__ = ["EMPTY_TYPES", "unify"]

#: The Arrow type of a kind, until values ask for another.
EMPTY_TYPES: dict[Kind, pa.DataType] = {
    Kind.INTEGER: pa.int64(),
    Kind.NUMBER: pa.int64(),
    Kind.FLOAT: pa.float64(),
    Kind.DECIMAL: pa.decimal128(38, 10),
    Kind.BOOLEAN: pa.bool_(),
    Kind.TEXT: pa.large_string(),
    Kind.JSON_TEXT: pa.large_string(),
    Kind.DATE: pa.date32(),
    Kind.DATETIME: pa.timestamp("us"),
    Kind.INSTANT: pa.timestamp("us", "UTC"),
}


def unify(arrays: Sequence[pa.Array], kind: Kind) -> pa.ChunkedArray:
    """The blocks of one column as one chunked array.

    Integers meet decimals as decimals, microseconds meet nanoseconds as nanoseconds.

    Raises
    ------
    pyarrow.ArrowInvalid
        If no type holds all of them (date-times with nanoseconds beside years outside of 1678-2262).
    """
    types = {array.type for array in arrays if array.null_count < len(array)}
    if not types:
        target = EMPTY_TYPES[kind]
    elif len(types) == 1:
        target = types.pop()
    elif kind in (Kind.DATETIME, Kind.INSTANT):
        target = pa.timestamp("ns", next(iter(types)).tz)
    else:
        target = widest(types)
    return pa.chunked_array([array if array.type == target else array.cast(target) for array in arrays], type=target)
