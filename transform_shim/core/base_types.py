"""Metabase's field types, as far as a runner needs them.

A field's *base type* decides how its values are sent (contract: the first ancestor among the root types). The
shim distinguishes less: the :class:`Kind` of the value.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

__all__ = ["PARENTS", "Kind", "descends", "kind_of"]

#: Child -> parents, the part of Metabase's hierarchy that base types of columns come from.
PARENTS: Mapping[str, tuple[str, ...]] = {
    "Integer": ("Number",),
    "BigInteger": ("Integer",),
    "Float": ("Number",),
    "Decimal": ("Float",),
    "UUID": ("Text",),
    "PostgresEnum": ("Text",),
    "MySQLEnum": ("Text",),
    "Date": ("Temporal",),
    "Time": ("Temporal",),
    "TimeWithTZ": ("Time",),
    "TimeWithLocalTZ": ("TimeWithTZ",),
    "TimeWithZoneOffset": ("TimeWithTZ",),
    "DateTime": ("Temporal",),
    "DateTimeWithTZ": ("DateTime",),
    "DateTimeWithLocalTZ": ("DateTimeWithTZ",),
    "DateTimeWithZoneOffset": ("DateTimeWithTZ",),
    "DateTimeWithZoneID": ("DateTimeWithTZ",),
    "Instant": ("DateTimeWithLocalTZ",),
}


class Kind(Enum):
    """The kind of a column's values, which decides how they are read and when a type may be carried over."""

    INTEGER = "integer"
    #: A number of unknown sort (Snowflake's NUMBER): read as integer while all values are.
    NUMBER = "number"
    FLOAT = "float"
    DECIMAL = "decimal"
    BOOLEAN = "boolean"
    TEXT = "text"
    DATE = "date"
    #: A clock reading without a zone; an attached offset means nothing.
    DATETIME = "datetime"
    #: A point in time.
    INSTANT = "instant"
    #: Sent as a string that contains JSON, and read as this text.
    JSON_TEXT = "json_text"


#: Searched in this order: the first ancestor decides.
_KINDS: tuple[tuple[str, Kind], ...] = (
    ("Decimal", Kind.DECIMAL),
    ("Float", Kind.FLOAT),
    ("Integer", Kind.INTEGER),
    ("Number", Kind.NUMBER),
    ("Boolean", Kind.BOOLEAN),
    ("Text", Kind.TEXT),
    ("Date", Kind.DATE),
    ("DateTimeWithTZ", Kind.INSTANT),
    ("DateTime", Kind.DATETIME),
)


def descends(base_type: str, ancestor: str) -> bool:
    """Return whether `base_type` is `ancestor` or below it."""
    return base_type == ancestor or any(descends(parent, ancestor) for parent in PARENTS.get(base_type, ()))


def kind_of(base_type: str | None, root_type: str | None = None) -> Kind:
    """Return the kind of a field's values, from its base type, or from its root type if the base type is unknown."""
    for name in (base_type, root_type):
        bare = (name or "").removeprefix("type/")
        for ancestor, kind in _KINDS:
            if descends(bare, ancestor):
                return kind
        if bare in PARENTS:
            break
    return Kind.JSON_TEXT
