"""Read a result file as an Arrow table, with the types that its manifest names."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from gateway.core.formats import FORMATS, DataFormat

__all__ = ["UnreadableResult", "base_types_of", "read_result", "type_name"]

_INSTANTS = (pa.timestamp("us", "UTC"), pa.timestamp("ns", "UTC"))
_MOMENTS = (pa.timestamp("us"), pa.timestamp("ns"))

#: The types of a column by its base type, the best first. A column of any other type is written as text.
_TYPES: Mapping[str, tuple[pa.DataType, ...]] = {
    "Number": (pa.int64(),),
    "Integer": (pa.int64(),),
    "BigInteger": (pa.int64(),),
    "Float": (pa.float64(),),
    "Decimal": (pa.float64(),),
    "Boolean": (pa.bool_(),),
    "Instant": (*_INSTANTS, *_MOMENTS),
    "DateTime": (*_MOMENTS, *_INSTANTS),
    "Date": (pa.date32(), *_MOMENTS, *_INSTANTS),
    "Time": (pa.time64("us"), pa.time64("ns")),
}
_BASE_TYPES = {
    "text": "Text",
    "date": "Date",
    "date-time": "DateTime",
    "date-time with zone": "DateTimeWithTZ",
    "time": "Time",
}


class UnreadableResult(Exception):
    """A file cannot be read as a table; the text names the file and the reason."""


def read_result(source: Path | bytes, data_format: DataFormat, base_types: Mapping[str, str] | None = None) -> pa.Table:
    """Read a result, or a file like it.

    Parameters
    ----------
    source : Path or bytes
        The file, or its content.
    data_format : str
        Its format.
    base_types : mapping, optional
        Column to Metabase's base type. CSV and JSON lines do not distinguish a text of digits from a number or a date,
        so columns that are text by their base type (also UUID, JSON and enumerations) are read as text, and dates and
        times as such, unless a value is none; all other columns are read as pyarrow infers them.

    Returns
    -------
    pyarrow.Table

    Raises
    ------
    UnreadableResult
        The file is not in its format, or two of its columns have the same name.
    OSError
        The file cannot be read.
    """
    shown = source if isinstance(source, Path) else "the result"
    types = {name: _types(base_type) for name, base_type in (base_types or {}).items() if base_type}
    texts = {name: pa.string() for name, kinds in types.items() if not kinds or pa.types.is_temporal(kinds[0])}
    try:
        file = source if isinstance(source, Path) else pa.BufferReader(source)
        table: pa.Table = FORMATS[data_format].read(file, texts)
    except pa.ArrowException as error:
        raise UnreadableResult(f"{shown}: cannot be read as {data_format}: {error}") from None
    if data_format == "jsonl":
        table = _as_listed(table, list(base_types or {}))
    names = table.column_names
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise UnreadableResult(f"{shown}: two columns have the name {twice!r}")
    columns = [_typed(column, types.get(name, ())) for name, column in zip(names, table.columns, strict=True)]
    return pa.table(columns, names)


def _as_listed(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """Return the columns of JSON lines in this order: pyarrow puts texts first, and without a row there are none."""
    for name in names if not table.num_rows else ():
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(0))
    found = dict.fromkeys([*names, *table.column_names])
    return table.select([name for name in found if name in table.column_names])


def _types(base_type: Any) -> tuple[pa.DataType, ...]:
    bare = base_type.removeprefix("type/") if isinstance(base_type, str) else ""
    root, _, with_zone = bare.partition("With")
    return _TYPES.get("Instant" if root == "DateTime" and with_zone else root, ())


def _typed(column: pa.ChunkedArray, types: Sequence[pa.DataType]) -> pa.ChunkedArray:
    """Return a column of nulls, or of dates or times as text, as the first type that all its values have."""
    is_text = type_name(column.type) == "text"
    for kind in types:
        if not (pa.types.is_null(column.type) or (is_text and pa.types.is_temporal(kind))):
            break  # a text of digits is no number
        with contextlib.suppress(pa.ArrowInvalid):
            values = column.cast(pa.string()) if is_text else column
            if is_text and pa.types.is_time(kind):  # Arrow has no cast for them
                return pc.binary_join_element_wise("1970-01-01", values, "T").cast(pa.timestamp(kind.unit)).cast(kind)
            return values.cast(kind)
    return column


def base_types_of(table: pa.Table) -> dict[str, str]:
    """Return the base types of those columns whose type a text file does not tell."""
    found = {field.name: _BASE_TYPES.get(type_name(field.type)) for field in table.schema}
    return {name: base_type for name, base_type in found.items() if base_type is not None}


def type_name(kind: pa.DataType) -> str:
    """Return the name of a type without width and unit, which depend on the file format only."""
    names = {
        "text": (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
        "integer": (pa.types.is_integer,),
        "float": (pa.types.is_floating,),
        "decimal": (pa.types.is_decimal,),
        "boolean": (pa.types.is_boolean,),
        "date": (pa.types.is_date,),
        "time": (pa.types.is_time,),
    }
    if pa.types.is_dictionary(kind):  # a category
        return type_name(kind.value_type)
    if pa.types.is_timestamp(kind):
        return "date-time" if kind.tz is None else "date-time with zone"
    return next((name for name, tests in names.items() if any(test(kind) for test in tests)), str(kind))
