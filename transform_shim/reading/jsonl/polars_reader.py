"""Blocks of JSON lines through Polars' parser, each checked for values that it changed to fit.

The parser itself refuses broken lines, broken UTF-8, and in columns of numbers or booleans everything else (whole
numbers beyond 64 bits and 1.0 for an integer too). It accepts other values, and they show elsewhere: a number or an
object in a text column becomes its text, which has all the quotation marks of the file where a string has two less. A
missing or repeated key changes the number of marks as well, and could make up for that; so colons are counted too, of
which a row has one for each key. (A value other than a text may be missing in one row and twice in another unseen: the
first counts.)
Half a surrogate pair becomes a NUL, so a block that escapes one is not given to it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import orjson
import pyarrow as pa

from transform_shim.core.array_buffers import used_bytes
from transform_shim.core.base_types import Kind
from transform_shim.core.manifest import Field
from transform_shim.reading.jsonl.polars_engine import json_engine

__all__ = ["PolarsLines"]

#: Counted characters, and how many of each are around a string and after a key.
_MARKS = ((ord('"'), 2, 0), (ord(":"), 0, 1))
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_TYPES: dict[Kind, str] = {
    Kind.INTEGER: "Int64",
    Kind.NUMBER: "Int64",
    Kind.FLOAT: "Float64",
    Kind.BOOLEAN: "Boolean",
    Kind.DECIMAL: "",  # its digits do not survive the parser's doubles
}


class PolarsLines:
    """Parses blocks of one file, until it cannot parse a block.

    Parameters
    ----------
    fields : sequence of Field
        The columns wanted.
    others : sequence of Field
        The other columns that each row of the file has; their texts must be counted to check those that are wanted.
    """

    def __init__(self, fields: Sequence[Field], others: Sequence[Field] = ()) -> None:
        self._names = [field.name for field in fields]
        kinds = {field.name: _TYPES.get(field.kind, "String") for field in fields}
        self._is_usable = bool(fields) and "" not in kinds.values()
        wants_text = "String" in kinds.values()
        texts = [field.name for field in others if _TYPES.get(field.kind, "String") == "String"]
        #: Without a text among the columns wanted, other columns' texts need not be read.
        self._checks = wants_text or not texts
        if self._checks:
            kinds |= dict.fromkeys(texts, "String")
        self._kinds = kinds
        self._texts = [name for name, kind in kinds.items() if kind == "String"]
        keys = [field.name for field in (*fields, *others)]
        self._keys = frozenset(keys)
        written = [orjson.dumps(key) for key in keys]
        self._row_marks = [sum(key.count(mark) + after for key in written) for mark, _, after in _MARKS]

    def parse(self, data: bytes) -> list[pa.Array] | None:
        """Return the columns of a block of whole lines; None if another parser has to read it."""
        polars = json_engine() if self._is_usable else None
        if polars is None or data.isspace():
            return None
        # the pattern alone takes 0.3 ms per MB and keeps the interpreter lock; most blocks escape nothing
        if b"\\" in data and _SURROGATE.search(data):
            return None
        schema = {name: getattr(polars, kind) for name, kind in self._kinds.items()}
        try:
            frame = polars.read_ndjson(data, schema=schema)
        except polars.exceptions.PolarsError:
            self._is_usable = False  # most likely the next block is no better, and each attempt costs
            return None
        arrays = {name: frame.get_column(name).to_arrow() for name in (self._kinds if self._checks else self._names)}
        if self._checks and not self._is_literal(polars, data, arrays, frame.height):
            self._is_usable = False
            return None
        return [arrays[name] for name in self._names]

    def _is_literal(self, polars: Any, data: bytes, arrays: dict[str, pa.Array], rows: int) -> bool:
        if not self._has_all_keys(data):
            return False
        texts = [arrays[name] for name in self._texts]
        strings = sum(rows - array.null_count for array in texts)
        whole, used = _bytes_of(polars, data), [_bytes_of(polars, used_bytes(array)) for array in texts]
        for (mark, around, _), of_a_row in zip(_MARKS, self._row_marks, strict=True):
            # {"k":1} has as many in the file as a string; but a string without escapes has none within
            expected = rows * of_a_row + around * strings + sum((each == mark).sum() for each in used)
            if expected != (whole == mark).sum():
                return False
        return True

    def _has_all_keys(self, data: bytes) -> bool:
        """Return whether the first row has exactly the keys expected: more keys in all rows could make up for texts."""
        try:
            first = orjson.loads(data[: data.find(b"\n") + 1] or data)
        except orjson.JSONDecodeError:  # the block begins with a blank line
            return False
        return isinstance(first, dict) and first.keys() == self._keys


def _bytes_of(polars: Any, data: Any) -> Any:
    """Return the bytes of a buffer as a series, without a copy; it compares them in half the time that numpy takes."""
    view = memoryview(data)
    return polars.from_arrow(pa.Array.from_buffers(pa.uint8(), view.nbytes, [None, pa.py_buffer(view)]))
