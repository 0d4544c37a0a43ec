"""One type for a column whose blocks came out differently."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import pyarrow as pa

from transform_shim.core.base_types import Kind
from transform_shim.core.decimals import MOST_DIGITS, digits_of
from transform_shim.core.errors import NoType

__all__ = ["DecimalType", "cast_to_common_type", "common_type"]

#: Chooses the decimal for a number of digits before and after the point.
DecimalType = Callable[[int, int], pa.DataType]

#: The Arrow type of a kind, unless values need another.
_TYPES: dict[Kind, pa.DataType] = {
    Kind.INTEGER: pa.int64(),
    Kind.NUMBER: pa.int64(),
    Kind.FLOAT: pa.float64(),
    Kind.BOOLEAN: pa.bool_(),
    Kind.TEXT: pa.large_string(),
    Kind.JSON_TEXT: pa.large_string(),
    Kind.DATE: pa.date32(),
    Kind.DATETIME: pa.timestamp("us"),
    Kind.INSTANT: pa.timestamp("us", "UTC"),
}
_NUMBERS = frozenset({Kind.INTEGER, Kind.NUMBER, Kind.DECIMAL})
_DATE_TIMES = frozenset({Kind.DATETIME, Kind.INSTANT})
_FINE_AND_FAR = (
    "there are fractions below microseconds and years outside of 1678 to 2262, which no type of Arrow holds together;"
    " annotate the parameter as pd.DataFrame, which gets microseconds"
)
#: Digits before and after the point of a decimal column without values.
_EMPTY_DIGITS = (7, 10)


def common_type(types: Iterable[pa.DataType], kind: Kind | None, decimal: DecimalType) -> pa.DataType:
    """Return the type of a column.

    Parameters
    ----------
    types : iterable of pyarrow.DataType
        The types of the blocks that have values.
    kind : Kind or None
        The column's kind; None where only the file itself has the type.
    decimal : callable
        Chooses the decimal for the digits that the values need.

    Returns
    -------
    pyarrow.DataType
        Integers and decimals meet as decimals, microseconds and nanoseconds as nanoseconds.

    Raises
    ------
    NoType
        If there is no decimal or timestamp for the values.
    """
    found = set(types)
    if not found:
        return decimal(*_EMPTY_DIGITS) if kind is Kind.DECIMAL else _TYPES.get(kind or Kind.TEXT, pa.large_string())
    if kind in _NUMBERS and pa.large_string() in found:
        return decimal(MOST_DIGITS + 1, 0)
    if kind in _DATE_TIMES and pa.large_string() in found:
        raise NoType(_FINE_AND_FAR)
    if any(map(pa.types.is_decimal, found)):
        return decimal(*digits_of(found))
    if len(found) > 1 and kind in _DATE_TIMES:
        return pa.timestamp("ns", next(iter(found)).tz)
    return found.pop()


def cast_to_common_type(arrays: Sequence[pa.Array], kind: Kind | None, decimal: DecimalType) -> pa.ChunkedArray:
    """Return the blocks of one column as one chunked array of their common type; see `common_type`.

    Raises
    ------
    NoType
        If there is no decimal or timestamp for the values.
    """
    types = (array.type for array in arrays if kind is None or array.null_count < len(array))
    target = common_type(types, kind, decimal)
    try:
        chunks = [array if array.type == target else array.cast(target) for array in arrays]
    except pa.ArrowInvalid as error:
        raise NoType(_FINE_AND_FAR if kind in _DATE_TIMES else f"no type holds all values ({error})") from None
    return pa.chunked_array(chunks, type=target)
