"""A result as a pandas data frame, with the dtypes that docs/types.md lists for a table."""

from __future__ import annotations

import contextlib
from typing import Any

import pandas as pd
import pyarrow as pa

__all__ = ["to_pandas"]

#: The integers and booleans that a result has; pandas itself turns those with nulls into floats and objects.
_NULLABLE: dict[pa.DataType, Any] = {
    pa.bool_(): pd.BooleanDtype(),
    pa.int8(): pd.Int8Dtype(),
    pa.int16(): pd.Int16Dtype(),
    pa.int32(): pd.Int32Dtype(),
    pa.int64(): pd.Int64Dtype(),
    pa.uint8(): pd.UInt8Dtype(),
    pa.uint16(): pd.UInt16Dtype(),
    pa.uint32(): pd.UInt32Dtype(),
    pa.uint64(): pd.UInt64Dtype(),
}


def to_pandas(table: pa.Table) -> pd.DataFrame:
    """Return a table as a transform would get it."""
    columns = {name: _series(column) for name, column in zip(table.column_names, table.columns, strict=True)}
    return pd.DataFrame(columns, index=range(table.num_rows))


def _series(column: pa.ChunkedArray) -> Any:
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    elif pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("us"))
    if pa.types.is_timestamp(column.type):
        with contextlib.suppress(pa.ArrowInvalid):  # nanoseconds hold the years 1678 to 2262
            column = column.cast(pa.timestamp("ns", column.type.tz))
    return column.to_pandas(types_mapper=_NULLABLE.get if column.null_count else None)
