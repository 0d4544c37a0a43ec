"""JSON lines to Arrow, a block at a time, at the speed of Arrow's parser.

A block is parsed with the types that the manifest announces: a small one in Python
(`transform_shim.reading.jsonl.small_blocks`), one of a large file by Polars if it is there and the block is plain
(`transform_shim.reading.jsonl.polars_reader`), any other by Arrow. A block that none of them takes is read line by line
(`transform_shim.reading.values.json_text`): legal but unusual values are taken, and invalid ones are named. So the
file's common blocks are fast and its odd ones are exact.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from transform_shim.core.array_buffers import numbers
from transform_shim.core.base_types import Kind
from transform_shim.core.decimals import WIDE, tighten
from transform_shim.core.manifest import Field
from transform_shim.core.parallel_map import ordered_map
from transform_shim.core.table_file import TableFile
from transform_shim.reading.jsonl.blocks import LineBlock, line_blocks
from transform_shim.reading.jsonl.infer_types import infer_fields
from transform_shim.reading.jsonl.polars_engine import is_worthwhile
from transform_shim.reading.jsonl.polars_reader import PolarsLines
from transform_shim.reading.jsonl.small_blocks import columns_of
from transform_shim.reading.values.column_blocks import ColumnBlock
from transform_shim.reading.values.from_python import TEMPORAL, array_of
from transform_shim.reading.values.json_text import rows_of
from transform_shim.reading.values.temporal import NotTemporal

__all__ = ["JsonLines", "find_fields", "open_table"]

#: The types into which Arrow parses a kind; the rest are texts.
_WIRE_TYPES: dict[Kind, pa.DataType] = {
    Kind.INTEGER: pa.int64(),
    Kind.NUMBER: pa.int64(),
    Kind.FLOAT: pa.float64(),
    Kind.DECIMAL: WIDE,
    Kind.BOOLEAN: pa.bool_(),
}
_TEXT = pa.large_string()
_MINUS_ZERO = re.compile(rb":\s*-0[\s,}]")
#: Bytes a line may begin and end with, a blank line's among them, to be given to Arrow.
_FIRST_BYTES = np.frombuffer(b"{\r\n", dtype=np.uint8)
_LAST_BYTES = np.frombuffer(b"}\r\n", dtype=np.uint8)


def find_fields(file: TableFile, sampled: Collection[str] = ()) -> tuple[tuple[Field, ...], bool]:
    """Return fields with the types that all values of a column fit, and True: these types hold."""
    return infer_fields(file, sampled), True


def open_table(file: TableFile, fields: Sequence[Field], others: Sequence[Field], *, typed: bool) -> JsonLines:
    """Return the file as blocks of the columns `fields`; `others` are the columns that it has besides."""
    return JsonLines(file, fields, others)


class JsonLines:
    """A table file in JSON lines, to be read any number of times.

    Parameters
    ----------
    file : TableFile
        The file.
    fields : sequence of Field
        The columns wanted, in this order. Keys of the file that are no field here are dropped, as Metabase's own
        loader does; keys that a row lacks are null.
    others : sequence of Field
        The columns that the file has besides.
    """

    def __init__(self, file: TableFile, fields: Sequence[Field], others: Sequence[Field] = ()) -> None:
        self.file, self.fields = file, tuple(fields)
        self._others = others
        self._is_large = is_worthwhile(file.data_path.stat().st_size)
        self._kinds = [field.kind for field in fields]
        self._schema = [
            (field.name, _WIRE_TYPES.get(kind, _TEXT)) for field, kind in zip(self.fields, self._kinds, strict=True)
        ]

    @functools.cached_property
    def _polars(self) -> PolarsLines:
        return PolarsLines(self.fields, self._others)

    def blocks(self) -> Iterator[ColumnBlock]:
        """Yield the file's columns, block by block.

        Raises
        ------
        InputInvalid
            Where the file is not JSON lines or contradicts the manifest.
        """
        # each call waits for threads of Polars; with one call more, two cores do 1.75 s of work in a second, not 1.65
        return ordered_map(self.decode, line_blocks(self.file), spare_threads=1)

    def decode(self, block: LineBlock) -> ColumnBlock:
        """Return the columns of one block."""
        data = block.read()
        # the end counts for a file that is packed
        arrays = self._parsed(data, is_large=self._is_large or is_worthwhile(block.end_bytes))
        if arrays is not None:
            return ColumnBlock(arrays, len(arrays[0]), block.end_bytes)
        with block.numbered():
            arrays, rows = self._exact(data, is_first=block.start_bytes == 0)
        return ColumnBlock(arrays, rows, block.end_bytes)

    def _parsed(self, data: bytes, *, is_large: bool) -> list[pa.Array] | None:
        """Return the columns of a block of common lines; None if it has to be read line by line."""
        if not self.fields:
            return None
        try:
            if not is_large and (parsed := columns_of(data, self._schema)) is not None:
                return self._typed(parsed)
            parsed = self._polars.parse(data) if is_large else None
            if parsed is None and _suspicious(data):
                return None
            return self._typed(self._finite(self._by_arrow(data) if parsed is None else parsed))
        except (pa.ArrowInvalid, NotTemporal):
            return None

    def _by_arrow(self, data: bytes) -> list[pa.Array]:
        read_options = pyarrow.json.ReadOptions(use_threads=False, block_size=len(data) + 1)
        parse_options = pyarrow.json.ParseOptions(
            explicit_schema=pa.schema(self._schema), newlines_in_values=False, unexpected_field_behavior="ignore"
        )
        table = pyarrow.json.read_json(pa.BufferReader(data), read_options=read_options, parse_options=parse_options)
        arrays = [table.column(field.name).combine_chunks() for field in self.fields]
        doubles = [numbers(array) for array in arrays if pa.types.is_floating(array.type)]
        if any(np.signbit(column[column == 0]).any() for column in doubles) and _MINUS_ZERO.search(data):
            raise pa.ArrowInvalid("the integer -0 may have got the sign of a double")
        return arrays

    def _finite(self, parsed: list[pa.Array]) -> list[pa.Array]:
        for array, kind in zip(parsed, self._kinds, strict=True):
            if kind is Kind.FLOAT and pc.any(pc.is_inf(array)).as_py():
                raise pa.ArrowInvalid("both parsers make infinity of a number beyond the range of doubles")
        return parsed

    def _typed(self, parsed: list[pa.Array]) -> list[pa.Array]:
        arrays = []
        for array, kind in zip(parsed, self._kinds, strict=True):
            if kind in TEMPORAL:
                array = TEMPORAL[kind](array)
            elif kind is Kind.DECIMAL:
                array = tighten(array)
            arrays.append(array)
        return arrays

    def _exact(self, data: bytes, *, is_first: bool = False) -> tuple[list[pa.Array], int]:
        found = list(rows_of(data, self.file.alias, is_first=is_first))
        lines = [line for line, _ in found]
        arrays = [
            array_of([row.get(field.name) for _, row in found], kind, self.file.alias, field.name, lines)
            for field, kind in zip(self.fields, self._kinds, strict=True)
        ]
        return arrays, len(found)


def _suspicious(data: bytes) -> bool:
    """Return whether Arrow would crash on the block or accept what is invalid."""
    if not data or data.isspace():
        return True  # "Empty JSON file" is an error there and an empty table here
    # Arrow 26 crashes on a bare ``null`` where an object should be: each line must begin and end as an object does
    view = np.frombuffer(data, dtype=np.uint8)
    feeds = np.flatnonzero(view == ord("\n"))
    if feeds.size and feeds[0] == 0:
        return True
    firsts = view[np.concatenate(([0], feeds[feeds + 1 < view.size] + 1))]
    lasts = view[np.concatenate((feeds - 1, [-1]))]
    if not (_only(firsts, _FIRST_BYTES) and _only(lasts, _LAST_BYTES)):
        return True
    # Arrow's JSON reader does not check UTF-8; validating the block as if it were one text takes 0.05 ms per MB
    offsets = pa.py_buffer(np.array([0, len(data)], dtype=np.int64))
    try:
        pa.Array.from_buffers(pa.large_string(), 1, [None, offsets, pa.py_buffer(data)]).validate(full=True)
    except pa.ArrowInvalid:
        return True
    return False


def _only(values: np.ndarray, allowed: np.ndarray) -> bool:
    return bool(np.isin(values, allowed).all())
