"""Fields for a file that came without a manifest; nothing is guessed that could lose something."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any, Protocol

import orjson
import pyarrow.compute as pc

from transform_shim.manifest import Field
from transform_shim.reading.jsonlines import Columns
from transform_shim.reading.jsontext import rows_of
from transform_shim.reading.lines import line_blocks
from transform_shim.request import TableFile

__all__ = ["infer_csv_fields", "infer_fields"]

_INT64_END = 2**63
#: Base types that every text of a CSV column may say, strictest first; each pattern keeps what reads back the same.
_CSV_PATTERNS = (
    ("BigInteger", r"^-?(?:0|[1-9]\d{0,17})$"),
    ("Decimal", r"^-?(?:0|[1-9]\d*)(?:\.\d+)?$"),
    ("Float", r"^-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?$"),
    ("Boolean", r"^(?:true|false|True|False|TRUE|FALSE)$"),
    ("Date", r"^\d{4}-\d\d-\d\d$"),
    ("DateTime", r"^\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d{1,6})?$"),
    ("DateTimeWithTZ", r"^\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d{1,6})?(?:Z|[+-]\d\d:\d\d)$"),
)
_NUMBERS = frozenset({int, float, Decimal})


def infer_fields(file: TableFile) -> tuple[Field, ...]:
    """Fields of a JSON lines file, from a pass over all of its rows.

    Columns stand in the order in which their keys first appear. Texts stay texts, whatever they look like; a column of
    more than one sort of value is read as JSON texts.
    """
    seen: dict[str, set[type]] = {}
    for block in line_blocks(file):
        for row in _parsed(block.data) or (row for _, row in rows_of(block, file.alias)):
            for key, value in row.items():
                kind = type(value)
                if kind is float and abs(value) >= _INT64_END:
                    kind = Decimal  # orjson turns integers beyond 64 bits into doubles; decimals hold either
                seen.setdefault(key, set()).add(kind)
    return tuple(Field(name, _base_type(kinds)) for name, kinds in seen.items())


def _parsed(data: bytes) -> Iterable[dict[str, Any]] | None:
    try:
        rows = [orjson.loads(line) for line in data.split(b"\n") if line and not line.isspace()]
    except orjson.JSONDecodeError:
        return None  # the exact reader says what is wrong
    return rows if all(type(row) is dict for row in rows) else None


def _base_type(kinds: set[type]) -> str:
    kinds = kinds - {type(None)}
    if kinds <= {str}:
        return "Text"
    if kinds == {bool}:
        return "Boolean"
    if kinds == {int}:
        return "BigInteger"
    if kinds <= _NUMBERS:
        return "Decimal" if Decimal in kinds else "Float"
    return "JSON"


class _Blocks(Protocol):
    fields: tuple[Field, ...]

    def blocks(self) -> Iterator[Columns]: ...


def infer_csv_fields(file: _Blocks) -> tuple[Field, ...]:
    """Fields of a CSV file whose columns are read as texts: a type only where all texts of the column say it.

    ``007`` stays text, and so does a column without any value.
    """
    possible = [dict(_CSV_PATTERNS) for _ in file.fields]
    has_value = [False] * len(file.fields)
    for block in file.blocks():
        for index, array in enumerate(block.arrays):
            if array.null_count == len(array):
                continue
            has_value[index] = True
            for name, pattern in list(possible[index].items()):
                if not pc.all(pc.match_substring_regex(array, pattern)).as_py():
                    del possible[index][name]
    return tuple(
        Field(field.name, next(iter(names), "Text") if seen else "Text")
        for field, names, seen in zip(file.fields, possible, has_value, strict=True)
    )
