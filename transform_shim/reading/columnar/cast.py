"""Columns of CSV, Parquet and Arrow files as the kinds that the manifest announces.

Arrow casts where that loses nothing. All else is converted value by value, as the equivalent JSON value, like JSON
lines: that conversion takes legal but unusual values and names invalid ones.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from transform_shim.core.base_types import Kind
from transform_shim.core.decimals import MOST_DIGITS, WIDE, tighten, without_spare_digits
from transform_shim.core.manifest import Field
from transform_shim.reading.values.from_python import MOST_INTEGER_DIGITS, TEMPORAL, array_of
from transform_shim.reading.values.temporal import NotTemporal
from transform_shim.writing.arrow_types import canonical, canonical_type, decoded
from transform_shim.writing.lines.cell_texts import cell_texts
from transform_shim.writing.value_groups import mixed_text

__all__ = ["cast_to_kind", "without_encoding"]

_TEXT = pa.large_string()
_TEXTS = frozenset({Kind.TEXT, Kind.JSON_TEXT})
#: None for booleans: to Arrow NaN and each number but 0 are true.
_CAST_TARGETS: dict[Kind, pa.DataType] = {
    Kind.INTEGER: pa.int64(),
    Kind.NUMBER: pa.int64(),
    Kind.FLOAT: pa.float64(),
    Kind.DECIMAL: WIDE,
}
#: Which Arrow types hold a kind's values as they are.
_FITTING: dict[Kind, Any] = {
    Kind.INTEGER: pa.types.is_int64,
    Kind.NUMBER: pa.types.is_int64,
    Kind.FLOAT: pa.types.is_floating,
    Kind.DECIMAL: pa.types.is_decimal,
    Kind.BOOLEAN: pa.types.is_boolean,
    Kind.TEXT: pa.types.is_large_string,
    Kind.JSON_TEXT: pa.types.is_large_string,
    Kind.DATE: pa.types.is_date32,
    Kind.DATETIME: lambda t: pa.types.is_timestamp(t) and t.tz is None,
    Kind.INSTANT: lambda t: pa.types.is_timestamp(t) and t.tz == "UTC",
}
_NUMBER = re.compile(r"[+-]?(?:\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_SPECIAL_DOUBLES = frozenset({"nan", "inf", "infinity"})
_BOOLEANS = {"true": True, "false": False, "1": True, "0": False}


def without_encoding(array: pa.Array, column: str) -> pa.Array:
    """Return an array with its dictionaries, extensions and views resolved to plain values."""
    if isinstance(array.type, pa.BaseExtensionType):
        return canonical(array, column, canonical_type(array.type, column))
    if isinstance(array, pa.DictionaryArray):
        array = decoded(array)
    if pa.types.is_string(array.type) or pa.types.is_string_view(array.type):
        array = array.cast(_TEXT)
    return array


def cast_to_kind(array: pa.Array, field: Field, table: str, first_row: int) -> pa.Array:
    """Cast a column to the Arrow type of its field's kind; its first value is in row `first_row`.

    Raises
    ------
    InputInvalid
        At the first value that contradicts the kind.
    """
    kind = field.kind
    if array.null_count == len(array):
        return pa.nulls(len(array))
    if _FITTING[kind](array.type):
        return without_spare_digits(array) if pa.types.is_decimal(array.type) else array
    try:
        cast = _from_text(array, kind) if pa.types.is_large_string(array.type) else _from_type(array, kind)
        if cast is not None:
            return cast
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, NotTemporal):
        pass
    rows = range(first_row, first_row + len(array))
    try:
        values = array.to_pylist()
    except OverflowError:  # Python ends with the year 9999
        values = array.cast(_TEXT).to_pylist()
    return array_of([_json_value(value, kind) for value in values], kind, table, field.name, rows)


def _from_text(array: pa.Array, kind: Kind) -> pa.Array | None:
    """Parse a column of texts; an empty text is null, as CSV has no other sign for a missing number."""
    is_empty = pc.equal(array, "")
    if pc.any(is_empty).as_py():
        array = pc.if_else(is_empty, pa.scalar(None, _TEXT), array)
    if kind in TEMPORAL:
        return TEMPORAL[kind](array)
    if kind is Kind.BOOLEAN:
        return pc.utf8_lower(array).cast(pa.bool_())
    if kind is Kind.DECIMAL and (pc.max(pc.binary_length(array)).as_py() or 0) > MOST_DIGITS:
        return None  # Arrow lets 300 digits overflow: 1 and 300 zeros are 0
    if kind in (Kind.INTEGER, Kind.NUMBER) and pc.any(pc.match_substring(array, "x", ignore_case=True)).as_py():
        return None  # Arrow takes 0x10 for 16
    cast = array.cast(_CAST_TARGETS[kind])
    if kind is Kind.FLOAT and pc.any(pc.is_inf(cast)).as_py():
        return None  # 1e400 becomes infinite as well as "Infinity" does
    return tighten(cast) if kind is Kind.DECIMAL else cast


def _from_type(array: pa.Array, kind: Kind) -> pa.Array | None:
    """Cast a column of another type where that keeps everything; else return None."""
    given = array.type
    if kind in _TEXTS:
        if pa.types.is_temporal(given):  # as it is written: 10:30:00 without a fraction of zeros
            texts = canonical(array, "", canonical_type(given, ""))
            return texts if texts.type == _TEXT else cell_texts(texts)
        if pa.types.is_floating(given):
            return pc.if_else(pc.is_finite(array), array.cast(_TEXT), pa.scalar(None, _TEXT))
        return None if pa.types.is_nested(given) else array.cast(_TEXT)
    if pa.types.is_timestamp(given):
        return _from_timestamps(array, kind)
    if kind is Kind.DATETIME and pa.types.is_date(given):
        return array.cast(pa.timestamp("us"))
    if kind is Kind.DATE and pa.types.is_date(given):
        return array.cast(pa.date32(), safe=False)
    if kind not in _CAST_TARGETS or pa.types.is_nested(given) or pa.types.is_temporal(given):
        return None
    if kind in (Kind.INTEGER, Kind.NUMBER) and pa.types.is_decimal(given):
        return _whole_numbers(array, kind)
    if (kind is Kind.DECIMAL and pa.types.is_floating(given)) or (kind is Kind.FLOAT and pa.types.is_decimal(given)):
        array = array.cast(pa.string())  # the shortest digits; Arrow's own cast shows those that a double adds
    cast = array.cast(_CAST_TARGETS[kind])
    return tighten(cast) if kind is Kind.DECIMAL else cast


def _whole_numbers(array: pa.Array, kind: Kind) -> pa.Array | None:
    """Cast decimals, as Snowflake's NUMBER(38, 0) arrives, to integers; None where an integer column has fractions."""
    try:
        return array.cast(pa.int64())
    except pa.ArrowInvalid:
        return without_spare_digits(array) if kind is Kind.NUMBER or array.type.scale <= 0 else None


def _from_timestamps(array: pa.Array, kind: Kind) -> pa.Array | None:
    """Cast to dates and clock readings in the column's own zone; instants without zone are taken as UTC."""
    unit, zone = array.type.unit, array.type.tz
    if kind is Kind.INSTANT:
        return array.cast(pa.timestamp(unit, "UTC"))
    if kind not in (Kind.DATE, Kind.DATETIME):
        return None
    clock = array if zone is None else pc.local_timestamp(array)
    return clock.cast(pa.date32(), safe=False) if kind is Kind.DATE else clock


def _json_value(value: Any, kind: Kind) -> Any:
    """Return a value of CSV text, or of an Arrow array, as the equivalent JSON value."""
    if kind is Kind.TEXT and isinstance(value, bytes):
        return _decoded(value)
    if kind in _TEXTS:
        return value if value is None or isinstance(value, str) else mixed_text(value)
    if isinstance(value, float) and kind is not Kind.FLOAT:
        return None if value != value else Decimal(repr(value))
    if kind in TEMPORAL:
        return value or None
    return _said(value, kind) if isinstance(value, str) else value


def _decoded(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _said(text: str, kind: Kind) -> Any:
    """Parse a text where a number or a boolean is expected; return the text itself if it is neither."""
    if not text:
        return None
    if kind is Kind.BOOLEAN:
        return _BOOLEANS.get(text.lower(), text)
    number = _NUMBER.fullmatch(text)
    if number is None:
        is_special = kind is Kind.FLOAT and text.lstrip("+-").lower() in _SPECIAL_DOUBLES
        return float(text) if is_special else text
    has_point = kind is Kind.FLOAT or number[1] or number[2] or text.startswith((".", "+.", "-."))
    return Decimal(text) if has_point or len(text) > MOST_INTEGER_DIGITS else int(text)
