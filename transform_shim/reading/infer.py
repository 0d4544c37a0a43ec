"""Fields for a file that came without a manifest; nothing is guessed that could lose something."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any, Protocol

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from transform_shim.basetypes import kind_of
from transform_shim.manifest import Field
from transform_shim.reading.convert import TEMPORAL
from transform_shim.reading.jsonlines import Columns
from transform_shim.reading.jsontext import rows_of
from transform_shim.reading.lines import line_blocks
from transform_shim.reading.temporal import NotTemporal
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
        data = block.read()
        parsed = _parsed(data)
        if parsed is None or not _note(parsed, seen):
            with block.numbered():
                rows = rows_of(data, file.alias, is_first=block.start_bytes == 0)
                _note((_counted(row) for _, row in rows), seen, is_exact=True)
    return tuple(Field(name, _base_type(kinds)) for name, kinds in seen.items())


def _note(rows: Iterable[dict[str, Any]], seen: dict[str, set[type]], *, is_exact: bool = False) -> bool:
    """Add what types the values have; False at a double that may have been a whole number beyond 64 bits."""
    for row in rows:
        for key, value in row.items():
            kind = type(value)
            if kind is float and not is_exact and abs(value) >= _INT64_END:
                return False
            seen.setdefault(key, set()).add(kind)
    return True


def _counted(row: dict[str, Any]) -> dict[str, Any]:
    """A row read exactly, as the fast parser shows it, but for whole numbers beyond 64 bits: those are Decimals."""
    shown: dict[type, Any] = {Decimal: float, int: lambda n: n if -_INT64_END <= n < _INT64_END else Decimal(n)}
    return {key: shown.get(type(value), _same)(value) for key, value in row.items()}


def _same(value: Any) -> Any:
    return value


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
                if not pc.all(pc.match_substring_regex(array, pattern)).as_py() or not _parses(array, name):
                    del possible[index][name]
    return tuple(
        Field(field.name, next(iter(names), "Text") if seen else "Text")
        for field, names, seen in zip(file.fields, possible, has_value, strict=True)
    )


def _parses(array: pa.Array, base_type: str) -> bool:
    """Whether texts that look like a date or date-time are one: 2024-02-30 and 0000-00-00 are none."""
    parse = TEMPORAL.get(kind_of(base_type))
    try:
        return parse is None or parse(array) is not None
    except NotTemporal:
        return False
