"""Columns of CSV, Parquet and Arrow files as the kinds that the manifest announces.

Arrow casts what it can cast without loss. Whatever else a file may hold goes value by value, as the JSON value it
stands for, through the same conversion as JSON lines, which takes what is legal but unusual and names what is wrong.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from transform_shim.basetypes import Kind
from transform_shim.manifest import Field
from transform_shim.reading.convert import TEMPORAL, array_of
from transform_shim.reading.numbers import WIDE, tighten
from transform_shim.reading.temporal import NotTemporal
from transform_shim.writing.canonical import canonical, canonical_type, decoded
from transform_shim.writing.cells import cell_texts
from transform_shim.writing.objects import nested_text

__all__ = ["adapt", "plain"]

_TEXT = pa.large_string()
_TEXTS = frozenset({Kind.TEXT, Kind.JSON_TEXT})
_CAST_TARGETS: dict[Kind, pa.DataType] = {
    Kind.INTEGER: pa.int64(),
    Kind.NUMBER: pa.int64(),
    Kind.FLOAT: pa.float64(),
    Kind.DECIMAL: WIDE,
    Kind.BOOLEAN: pa.bool_(),
}
#: Which Arrow types hold a kind's values as they are.
_FITTING: dict[Kind, Any] = {
    Kind.INTEGER: lambda t: pa.types.is_integer(t) or (pa.types.is_decimal(t) and t.scale == 0),
    Kind.NUMBER: lambda t: pa.types.is_integer(t) or pa.types.is_decimal(t),
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


def plain(array: pa.Array, column: str) -> pa.Array:
    """An array without dictionaries, extensions and views: what they stand for."""
    if isinstance(array.type, pa.BaseExtensionType):
        return canonical(array, column, canonical_type(array.type, column))
    if isinstance(array, pa.DictionaryArray):
        array = decoded(array)
    if pa.types.is_string(array.type) or pa.types.is_string_view(array.type):
        array = array.cast(_TEXT)
    return array


def adapt(array: pa.Array, field: Field, table: str, first_row: int) -> pa.Array:
    """A plain column as its kind wants it; its first value stands in row `first_row`.

    Raises
    ------
    InputInvalid
        At the first value that contradicts the kind.
    """
    kind = field.kind
    if array.null_count == len(array):
        return pa.nulls(len(array))
    if _FITTING[kind](array.type):
        return array
    try:
        cast = _from_text(array, kind) if pa.types.is_large_string(array.type) else _from_type(array, kind)
        if cast is not None:
            return cast
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, NotTemporal):
        pass
    rows = range(first_row, first_row + len(array))
    return array_of([_json_value(value, kind) for value in array.to_pylist()], kind, table, field.name, rows)


def _from_text(array: pa.Array, kind: Kind) -> pa.Array | None:
    """A column of texts, which an empty one leaves null: CSV says nothing else of a missing number."""
    is_empty = pc.equal(array, "")
    if pc.any(is_empty).as_py():
        array = pc.if_else(is_empty, pa.scalar(None, _TEXT), array)
    if kind in TEMPORAL:
        return TEMPORAL[kind](array)
    if kind is Kind.BOOLEAN:
        return pc.utf8_lower(array).cast(pa.bool_())
    cast = array.cast(_CAST_TARGETS[kind])
    if kind is Kind.FLOAT and pc.any(pc.is_inf(cast)).as_py():
        return None  # 1e400 becomes infinite as well as "Infinity" does
    return tighten(cast) if kind is Kind.DECIMAL else cast


def _from_type(array: pa.Array, kind: Kind) -> pa.Array | None:
    """A column of another type, where a cast keeps all it says; else None."""
    given = array.type
    if kind in _TEXTS:
        if pa.types.is_time(given):  # as it is written: 10:30:00 without a fraction of zeros
            return cell_texts(canonical(array, "", canonical_type(given, "")))
        return None if pa.types.is_nested(given) else array.cast(_TEXT)
    if pa.types.is_timestamp(given):
        return _from_timestamps(array, kind)
    if kind is Kind.DATETIME and pa.types.is_date(given):
        return array.cast(pa.timestamp("us"))
    if kind is Kind.DATE and pa.types.is_date(given):
        return array.cast(pa.date32(), safe=False)
    if kind not in _CAST_TARGETS or pa.types.is_nested(given):
        return None
    if (kind is Kind.DECIMAL and pa.types.is_floating(given)) or (kind is Kind.FLOAT and pa.types.is_decimal(given)):
        array = array.cast(pa.string())  # the shortest digits; Arrow's own cast shows those that a double adds
    cast = array.cast(_CAST_TARGETS[kind])
    return tighten(cast) if kind is Kind.DECIMAL else cast


def _from_timestamps(array: pa.Array, kind: Kind) -> pa.Array | None:
    """Dates and clock readings as the column's own zone shows them; instants without zone are taken as UTC."""
    unit, zone = array.type.unit, array.type.tz
    if kind is Kind.INSTANT:
        return array.cast(pa.timestamp(unit, "UTC"))
    if kind not in (Kind.DATE, Kind.DATETIME):
        return None
    clock = array if zone is None else pc.local_timestamp(array)
    return clock.cast(pa.date32(), safe=False) if kind is Kind.DATE else clock


def _json_value(value: Any, kind: Kind) -> Any:
    """A value of CSV text, or of an Arrow array, as the JSON value it stands for."""
    if kind is Kind.TEXT and isinstance(value, bytes):
        return _decoded(value)
    if kind in _TEXTS:
        return value if value is None or isinstance(value, str) else nested_text(value)
    if isinstance(value, float) and kind is not Kind.FLOAT:
        return None if value != value else Decimal(repr(value))
    return value if not isinstance(value, str) or kind in TEMPORAL else _said(value, kind)


def _decoded(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _said(text: str, kind: Kind) -> Any:
    """What a text says where a number or a boolean is expected; itself if it says neither."""
    if not text:
        return None
    if kind is Kind.BOOLEAN:
        return _BOOLEANS.get(text.lower(), text)
    number = _NUMBER.fullmatch(text)
    if number is None:
        is_special = kind is Kind.FLOAT and text.lstrip("+-").lower() in _SPECIAL_DOUBLES
        return float(text) if is_special else text
    return Decimal(text) if number[1] or number[2] or text.startswith((".", "+.", "-.")) else int(text)
