"""Fields for a JSON lines file that came without a manifest; no guess may lose anything."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from decimal import Decimal
from typing import Any

import orjson

from transform_shim.core.manifest import Field
from transform_shim.core.table_file import TableFile
from transform_shim.reading.jsonl.blocks import line_blocks
from transform_shim.reading.values.json_text import rows_of

__all__ = ["infer_fields"]

_INT64_END = 2**63
_NUMBERS = frozenset({int, float, Decimal})
_NULL = frozenset({type(None)})


def infer_fields(file: TableFile, sampled: Collection[str] = ()) -> tuple[Field, ...]:
    """Return the fields of a JSON lines file, from a pass over all of its rows.

    Columns are in the order in which their keys first appear. Texts stay texts, whatever they look like; a column of
    more than one sort of value is read as JSON texts. With names in `sampled`, the pass ends when each of these columns
    has had a value, and columns without one are left out.
    """
    seen: dict[str, set[type]] = {}
    for block in line_blocks(file):
        if sampled and all(seen.get(name, _NULL) - _NULL for name in sampled):
            break
        data = block.read()
        parsed = _parsed(data)
        if parsed is None or not _note(parsed, seen):
            with block.numbered():
                rows = rows_of(data, file.alias, is_first=block.start_bytes == 0)
                _note((_counted(row) for _, row in rows), seen, is_exact=True)
    return tuple(Field(name, _base_type(kinds)) for name, kinds in seen.items() if not sampled or kinds != _NULL)


def _note(rows: Iterable[dict[str, Any]], seen: dict[str, set[type]], *, is_exact: bool = False) -> bool:
    """Add what types the values have; False at a number beyond 64 bits, or a double that may have been one."""
    for row in rows:
        for key, value in row.items():
            kind = type(value)
            if (kind is float or kind is int) and not is_exact and abs(value) >= _INT64_END:
                return False
            seen.setdefault(key, set()).add(kind)
    return True


def _counted(row: dict[str, Any]) -> dict[str, Any]:
    """Return an exactly read row as the fast parser shows it, except that integers beyond 64 bits are Decimals."""
    shown: dict[type, Any] = {Decimal: float, int: lambda n: n if -_INT64_END <= n < _INT64_END else Decimal(n)}
    return {key: shown.get(type(value), _same)(value) for key, value in row.items()}


def _same(value: Any) -> Any:
    return value


def _parsed(data: bytes) -> Iterable[dict[str, Any]] | None:
    try:
        rows = [orjson.loads(line) for line in data.split(b"\n") if line and not line.isspace()]
    except orjson.JSONDecodeError:
        return None  # the exact reader has the error
    return rows if all(type(row) is dict for row in rows) else None


def _base_type(kinds: set[type]) -> str:
    kinds = kinds - _NULL
    if kinds <= {str}:
        return "Text"
    if kinds == {bool}:
        return "Boolean"
    if kinds <= {int, Decimal}:
        return "BigInteger"
    if kinds <= _NUMBERS:
        return "Decimal" if Decimal in kinds else "Float"
    return "JSON"
