"""Arrow types to the few that can be written; the same for every sort of frame.

A value that a column of a database cannot hold becomes text: bytes base64, intervals ISO 8601, nested values JSON.
"""

from __future__ import annotations

import base64
import re
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from transform_shim.core.array_buffers import used_bytes
from transform_shim.core.decimals import MOST_DIGITS, decimal_type
from transform_shim.core.errors import OutputInvalid
from transform_shim.writing.value_groups import interval_text, nested_text

__all__ = ["canonical", "canonical_type", "decoded", "finite"]

_TEXT = pa.large_string()
_EXTENSIONS = {"arrow.uuid": _TEXT, "arrow.bool8": pa.bool_()}
#: Bytes of another system, such as those of a HUGEINT under DuckDB's arrow_lossless_conversion.
_OPAQUE = "arrow.opaque"
#: With fewer texts Arrow's check of each text, 4 ns, is faster than a check of all their bytes.
_MANY_TEXTS = 1024
_BAD_INDEX = re.compile(r"\bindex (\d+)")


def canonical_type(kind: pa.DataType, column: str) -> pa.DataType:
    """Return the type in which a column of Arrow type `kind` is written.

    Raises
    ------
    OutputInvalid
        If there is no such type (unions and opaque extensions).
    """
    if isinstance(kind, pa.BaseExtensionType) and kind.extension_name != _OPAQUE:
        return _EXTENSIONS.get(kind.extension_name) or canonical_type(kind.storage_type, column)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return canonical_type(kind.value_type, column)
    if pa.types.is_decimal(kind) and kind.scale < 0:  # Parquet has none
        return decimal_type(min(kind.precision - kind.scale, MOST_DIGITS), 0)
    if pa.types.is_integer(kind) or pa.types.is_decimal(kind) or kind in (pa.bool_(), pa.float32(), pa.float64()):
        return kind
    if pa.types.is_timestamp(kind):
        return pa.timestamp(kind.unit, None if kind.tz is None else "UTC")
    if pa.types.is_time(kind):
        return pa.time64("ns" if kind.unit == "ns" else "us")
    for matches, target in _TARGETS:
        if matches(kind):
            return target
    raise OutputInvalid(f"the Arrow type {kind} cannot be written", column=column)


def canonical(array: pa.Array, column: str, target: pa.DataType, first_row: int = 0) -> pa.Array:
    """Return an array as its canonical type.

    Raises
    ------
    OutputInvalid
        If a value cannot be written.
    """
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        if _is_uuid(kind):
            return _by_value(array.storage, lambda raw: str(uuid.UUID(bytes=raw)), column, first_row)
        return canonical(array.storage, column, target, first_row)
    if pa.types.is_dictionary(kind):
        return canonical(decoded(array), column, target, first_row)
    if pa.types.is_run_end_encoded(kind):
        return canonical(pa.compute.run_end_decode(array), column, target, first_row)
    if _is_text(kind):
        _check_utf8(array, column, first_row)
    if kind == target:
        return array
    render = next((text for matches, text in _RENDERED if matches(kind)), None)
    return _cast(array, target, column, first_row) if render is None else _by_value(array, render, column, first_row)


def decoded(array: pa.DictionaryArray) -> pa.Array:
    """Return the values of a dictionary array; Arrow's own way does not take views, which Polars writes."""
    values = array.dictionary
    if pa.types.is_string_view(values.type):
        values = values.cast(_TEXT)
    elif pa.types.is_binary_view(values.type):
        values = values.cast(pa.large_binary())
    return values.take(array.indices)


def _by_value(array: pa.Array, render: Callable[[Any], str], column: str, first_row: int) -> pa.Array:
    texts: list[str | None] = []
    for cell in array:
        try:
            value = cell.as_py()
            texts.append(None if value is None else render(value))
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise OutputInvalid(str(error), column=column, row=first_row + len(texts)) from None
    return pa.array(texts, _TEXT)


def _cast(array: pa.Array, target: pa.DataType, column: str, first_row: int) -> pa.Array:
    try:
        return array.cast(target)
    except pa.ArrowInvalid:
        for row, cell in enumerate(array):
            try:
                cell.cast(target)
            except pa.ArrowInvalid as error:
                raise OutputInvalid(str(error), column=column, row=first_row + row) from None
        raise


def _check_utf8(array: pa.Array, column: str, first_row: int) -> None:
    """Refuse invalid UTF-8: Arrow casts any bytes to text unchecked."""
    try:
        array.validate()
        if not _is_plainly_ascii(array):
            array.validate(full=True)
    except pa.ArrowInvalid as error:
        found = _BAD_INDEX.search(str(error))
        row = None if found is None else first_row + int(found[1])
        raise OutputInvalid(f"a text is not valid ({error})", column=column, row=row) from None


def _is_plainly_ascii(array: pa.Array) -> bool:
    """Return whether all bytes are ASCII: then a text may begin and end anywhere."""
    if len(array) < _MANY_TEXTS or not pa.types.is_large_string(array.type):
        return False
    offsets = np.frombuffer(array.buffers()[1], np.int64, len(array) + 1, array.offset * 8)
    used = used_bytes(array)
    return bool((offsets[1:] >= offsets[:-1]).all()) and (not len(used) or int(used.max()) < 0x80)


def _is_uuid(kind: pa.BaseExtensionType) -> bool:
    return bool(kind.extension_name == "arrow.uuid")


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or pa.types.is_binary_view(kind)
    )


#: Types that become text value by value.
_RENDERED: tuple[tuple[Callable[[pa.DataType], bool], Callable[[Any], str]], ...] = (
    (_is_binary, lambda raw: base64.b64encode(raw).decode()),
    (pa.types.is_duration, lambda value: pd.Timedelta(value).isoformat()),
    (pa.types.is_interval, interval_text),
    (pa.types.is_nested, nested_text),
)
_TARGETS: tuple[tuple[Callable[[pa.DataType], bool], pa.DataType], ...] = (
    (pa.types.is_null, _TEXT),
    (pa.types.is_large_string, _TEXT),
    (pa.types.is_string, _TEXT),
    (pa.types.is_string_view, _TEXT),
    (pa.types.is_date, pa.date32()),
    (pa.types.is_float16, pa.float32()),
    (_is_binary, _TEXT),
    (pa.types.is_duration, _TEXT),
    (pa.types.is_interval, _TEXT),
    (lambda kind: pa.types.is_nested(kind) and not pa.types.is_union(kind), _TEXT),
)


def finite(array: pa.Array) -> pa.Array:
    """Return an array without NaN and infinities, which are written as null."""
    if not pa.types.is_floating(array.type):
        return array
    return pc.if_else(pc.is_finite(array), array, pa.scalar(None, array.type))
