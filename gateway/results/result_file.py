"""Read a result file as an Arrow table, with the types that its manifest names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from gateway.core.formats import FORMATS, DataFormat

__all__ = ["UnreadableResult", "read_result", "type_name"]

#: The base types of columns that are not text, besides dates and times. A column of any other type is written as text.
_OTHER_TYPES = frozenset({"", "Number", "Integer", "BigInteger", "Float", "Decimal", "Boolean", "Instant"})


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
        so columns that are text by their base type (also UUID, JSON and enumerations) are read as text; all other
        columns are read as pyarrow infers them.

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
    texts = {name: pa.string() for name, base_type in (base_types or {}).items() if _is_text(base_type)}
    try:
        file = source if isinstance(source, Path) else pa.BufferReader(source)
        table: pa.Table = FORMATS[data_format].read(file, texts)
    except pa.ArrowException as error:
        raise UnreadableResult(f"{shown}: cannot be read as {data_format}: {error}") from None
    if data_format == "jsonl" and not table.num_rows:  # without a row, it names no column
        for name in base_types or {}:
            if name not in table.column_names:
                table = table.append_column(name, pa.nulls(0))
    names = table.column_names
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise UnreadableResult(f"{shown}: two columns have the name {twice!r}")
    return table


def _is_text(base_type: Any) -> bool:
    bare = base_type.removeprefix("type/") if isinstance(base_type, str) else ""
    return bare not in _OTHER_TYPES and not bare.startswith(("Date", "Time"))


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
    if pa.types.is_timestamp(kind):
        return "date-time" if kind.tz is None else "date-time with zone"
    return next((name for name, tests in names.items() if any(test(kind) for test in tests)), str(kind))
