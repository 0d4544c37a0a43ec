"""Manifests: the description that accompanies a table's data.

============== ============================================================================
key            meaning
============== ============================================================================
schema_version 1
data_format    a name of `transform_shim.core.formats`
data_version   1
fields         in column order; name, base_type, and for a column that came through from a
               source database_type, root_type, semantic_type, effective_type, field_id
table_metadata only in sources: ``{"table_id": integer}``
source_metadata only in outputs, when the returned frame still carries it: the source's manifest
============== ============================================================================
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from transform_shim.core.base_types import Kind, kind_of
from transform_shim.core.errors import InputInvalid

__all__ = ["NUMBERS", "Field", "Manifest", "SourceMetadata", "fields_of", "read_manifest", "write_manifest"]

ATTRS_KEY = "source_metadata"

#: Kinds whose values are JSON numbers.
NUMBERS = frozenset({Kind.INTEGER, Kind.NUMBER, Kind.FLOAT, Kind.DECIMAL})
_DATE_TIMES = frozenset({Kind.DATE, Kind.DATETIME, Kind.INSTANT})
#: The kinds to which Metabase casts a kind, with other JSON values than those of its own.
_CASTS = {**dict.fromkeys(NUMBERS, _DATE_TIMES), Kind.TEXT: NUMBERS}


@dataclass(frozen=True, slots=True)
class Field:
    """One column as a manifest describes it; ``raw`` keeps every key that was there."""

    name: str
    base_type: str | None = None
    raw: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> Kind:
        """The kind of this column's values."""
        return kind_of(self.base_type, _text(self.raw.get("root_type")))

    @property
    def cast(self) -> Field | None:
        """The field as Metabase casts it, by the settings of the column: numbers to date-times, or text to numbers.

        Metabase sends results of queries, so the values are those after the cast, but earlier versions of 2025 sent
        those of the database. Only `effective_type` tells of a cast; without one the database type is there.
        """
        effective = _text(self.raw.get("effective_type"))
        is_cast = effective != self.base_type and kind_of(effective) in _CASTS.get(self.kind, ())
        return Field(self.name, effective) if is_cast else None

    @property
    def database_type(self) -> str:
        return (_text(self.raw.get("database_type")) or "").lower()


@dataclass(frozen=True, slots=True)
class Manifest:
    """A source table's manifest: its fields in order and the whole object."""

    fields: tuple[Field, ...]
    raw: Mapping[str, Any]


class SourceMetadata(dict[str, Any]):
    """A manifest as a value of ``frame.attrs``.

    pandas deep-copies attrs in almost every operation: 0.2 ms each time for a table of 50 columns. A manifest is never
    changed in place, so its copy may share the fields.
    """

    def __deepcopy__(self, memo: object) -> SourceMetadata:
        return SourceMetadata(self)


def read_manifest(path: Path, table: str) -> Manifest:
    """Read the manifest of table `table`.

    Raises
    ------
    InputInvalid
        If it is not a JSON object with a list of fields that have names.
    """
    try:
        raw = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputInvalid(table, f"the manifest is not valid JSON ({error})") from None
    except FileNotFoundError:
        raise InputInvalid(table, "the manifest file is missing") from None
    if not isinstance(raw, dict) or not isinstance(raw.get("fields", []), list):
        raise InputInvalid(table, "the manifest must be an object with a list of fields")
    for entry in raw.get("fields", []):
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise InputInvalid(table, "every field of the manifest must be an object with a name")
    return Manifest(fields_of(raw), raw)


def fields_of(raw: object) -> tuple[Field, ...]:
    """Return the usable fields of a manifest object; frame.attrs come from user code, so invalid ones are left out."""
    entries = raw.get("fields") if isinstance(raw, Mapping) else None
    found: dict[str, Field] = {}
    for entry in entries if isinstance(entries, Sequence) and not isinstance(entries, str) else ():
        if isinstance(entry, Mapping) and isinstance(entry.get("name"), str):
            base_type = _text(entry.get("base_type"))
            found.setdefault(entry["name"], Field(entry["name"], base_type, dict(entry)))
    return tuple(found.values())


def write_manifest(
    path: Path, data_format: str, fields: Sequence[Mapping[str, Any]], source: Mapping[str, Any] | None
) -> None:
    """Write an output manifest; `source` is what the returned frame carried as its source metadata."""
    value: dict[str, Any] = {
        "schema_version": 1,
        "data_format": data_format,
        "data_version": 1,
        "fields": list(fields),
    }
    if source is not None:
        value[ATTRS_KEY] = source
    path.write_bytes(_dump(value))


def _dump(value: object) -> bytes:
    # attrs belong to the user, who may have put anything in: values beyond JSON become text, never a failed job
    try:
        return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS)
    except (TypeError, orjson.JSONEncodeError):
        return json.dumps(value, default=str, skipkeys=True, ensure_ascii=True).encode()


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
