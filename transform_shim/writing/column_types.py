"""base_type of the columns written: carried over from the source while it fits the data, else from the data.

Metabase creates the target column from it, so a type that does not fit makes the insert fail: an Integer column is 32
bits wide in most databases.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from transform_shim.core.base_types import Kind, descends
from transform_shim.core.manifest import Field

__all__ = ["ColumnFacts", "base_type_for", "facts_of", "is_numeric", "output_field"]

_INT32_END = 2**31
_INT64_END = 2**63
_DOUBLE_END = 2**53
_UUID = r"^(?i:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})$"


@dataclass(frozen=True, slots=True)
class ColumnFacts:
    """The facts about a column after some of its rows; facts of two parts are merged with ``|``."""

    has_value: bool = False
    smallest: int = 0
    largest: int = 0
    is_uuid: bool = True

    def __or__(self, other: ColumnFacts) -> ColumnFacts:
        return ColumnFacts(
            self.has_value or other.has_value,
            min(self.smallest, other.smallest),
            max(self.largest, other.largest),
            self.is_uuid and other.is_uuid,
        )


def facts_of(array: pa.Array, source: Field | None) -> ColumnFacts:
    """Return the facts about one canonical array; `source` is the field whose type might be carried over."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary  # each of its texts is that of a row
    if array.null_count == len(array):
        return ColumnFacts()
    if pa.types.is_integer(array.type):
        if not array.null_count:  # numpy's call takes a fresh process 0.1 ms less than Arrow's
            values = array.to_numpy()
            return ColumnFacts(True, min(int(values.min()), 0), max(int(values.max()), 0))
        extremes = pc.min_max(array)
        return ColumnFacts(True, min(extremes["min"].as_py(), 0), max(extremes["max"].as_py(), 0))
    if pa.types.is_large_string(array.type) and source is not None and source.base_type == "UUID":
        return ColumnFacts(True, is_uuid=bool(pc.all(pc.match_substring_regex(array, _UUID)).as_py()))
    return ColumnFacts(True)


def base_type_for(kind: pa.DataType, facts: ColumnFacts) -> str:
    """Return the base_type that fits the data.

    An integer column is Integer while all values fit 32 bits, BigInteger to 64, Decimal beyond.
    """
    if pa.types.is_integer(kind):
        return _integer_type(facts)
    for matches, name in _INFERRED:
        if matches(kind):
            return name
    return "Text"


def _integer_type(facts: ColumnFacts) -> str:
    if facts.smallest >= -_INT32_END and facts.largest < _INT32_END:
        return "Integer"
    return "BigInteger" if facts.largest < _INT64_END else "Decimal"


def output_field(name: str, kind: pa.DataType, facts: ColumnFacts, source: Field | None) -> dict[str, Any]:
    """Return one entry of the output manifest's fields: the source's if its type fits, else name and base_type."""
    # without a value any type fits, unless Metabase has cast the column's
    is_kept = source is not None and (_fits(source, kind, facts) or not (facts.has_value or source.cast))
    if source is not None and source.base_type and is_kept:
        return {**source.raw, "name": name}
    return {"name": name, "base_type": base_type_for(kind, facts)}


def _fits(source: Field, kind: pa.DataType, facts: ColumnFacts) -> bool:
    base = (source.base_type or "").removeprefix("type/")
    wanted = source.kind
    if wanted in (Kind.INTEGER, Kind.NUMBER):
        if not pa.types.is_integer(kind):  # Metabase makes a Number a BIGINT, which holds no decimal
            return False
        needed = _integer_type(facts)
        return needed == "Integer" or (needed == "BigInteger" and base != "Integer")
    if wanted is Kind.FLOAT and not pa.types.is_floating(kind):  # the column's doubles would take digits away
        return pa.types.is_integer(kind) and facts.smallest >= -_DOUBLE_END and facts.largest <= _DOUBLE_END
    if wanted is Kind.TEXT and descends(base, "UUID"):
        return pa.types.is_large_string(kind) and facts.is_uuid
    return bool(_FITS[wanted](kind))


def is_numeric(kind: pa.DataType) -> bool:
    """Return whether a column of this type has numbers."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


_INFERRED: tuple[tuple[Callable[[pa.DataType], bool], str], ...] = (
    (pa.types.is_boolean, "Boolean"),
    (pa.types.is_floating, "Float"),
    (pa.types.is_decimal, "Decimal"),
    (pa.types.is_date, "Date"),
    (lambda kind: pa.types.is_timestamp(kind) and kind.tz is not None, "DateTimeWithTZ"),
    (pa.types.is_timestamp, "DateTime"),
    (pa.types.is_time, "Time"),
)
_FITS: dict[Kind, Callable[[pa.DataType], bool]] = {
    Kind.FLOAT: is_numeric,
    Kind.DECIMAL: is_numeric,
    Kind.BOOLEAN: pa.types.is_boolean,
    Kind.TEXT: pa.types.is_large_string,
    Kind.JSON_TEXT: lambda kind: pa.types.is_large_string(kind) or pa.types.is_time(kind),
    Kind.DATE: pa.types.is_date,
    Kind.DATETIME: lambda kind: pa.types.is_timestamp(kind) and kind.tz is None,
    Kind.INSTANT: lambda kind: pa.types.is_timestamp(kind) and kind.tz is not None,
}
