"""Arrow types to the few that can be written; the same for every sort of frame.

What a table column of a database cannot hold becomes text: bytes base64, intervals ISO 8601, nested values JSON.
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Callable
from typing import Any

import pandas as pd
import pyarrow as pa

from transform_shim.errors import OutputInvalid
from transform_shim.writing.objects import nested_text

__all__ = ["canonical", "canonical_type"]

_TEXT = pa.large_string()


def canonical_type(kind: pa.DataType, column: str) -> pa.DataType:
    """The type in which a column of Arrow type `kind` is written.

    Raises
    ------
    OutputInvalid
        If there is none (unions and unknown extensions).
    """
    if isinstance(kind, pa.BaseExtensionType):
        return _TEXT if _is_uuid(kind) else canonical_type(kind.storage_type, column)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return canonical_type(kind.value_type, column)
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
    """An array as its canonical type.

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
        return canonical(array.dictionary_decode(), column, target, first_row)
    if pa.types.is_run_end_encoded(kind):
        return canonical(pa.compute.run_end_decode(array), column, target, first_row)
    if kind == target:
        return array
    if _is_binary(kind):
        return _by_value(array, lambda raw: base64.b64encode(raw).decode(), column, first_row)
    if pa.types.is_duration(kind):
        return _by_value(array, lambda value: pd.Timedelta(value).isoformat(), column, first_row)
    if pa.types.is_interval(kind):
        return _by_value(array, _interval_text, column, first_row)
    if pa.types.is_nested(kind):
        return _by_value(array, nested_text, column, first_row)
    return array.cast(target)


def _by_value(array: pa.Array, render: Callable[[Any], str], column: str, first_row: int) -> pa.Array:
    texts: list[str | None] = []
    for value in array.to_pylist():
        try:
            texts.append(None if value is None else render(value))
        except (TypeError, ValueError, RecursionError) as error:
            raise OutputInvalid(str(error), column=column, row=first_row + len(texts)) from None
    return pa.array(texts, _TEXT)


def _interval_text(value: Any) -> str:
    """Months, days and nanoseconds as an ISO 8601 duration."""
    return f"P{value.months}M{value.days}DT{value.nanoseconds / 1e9:.9f}".rstrip("0").rstrip(".") + "S"


def _is_uuid(kind: pa.BaseExtensionType) -> bool:
    return bool(kind.extension_name == "arrow.uuid")


def _is_binary(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or pa.types.is_binary_view(kind)
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
