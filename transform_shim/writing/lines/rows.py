"""Batches of canonical arrays to the bytes of JSON lines or CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from transform_shim.core.array_buffers import null_mask, numbers
from transform_shim.core.shared_objects import plain_texts
from transform_shim.writing.lines.cell_texts import (
    EMPTY,
    TEXT,
    cell_texts,
    check_years,
    double_digits,
    escape_json,
    quote_csv,
)
from transform_shim.writing.lines.concat import JoinedRows, Places
from transform_shim.writing.lines.shared_values import shared_texts

__all__ = ["csv_header", "csv_rows", "json_rows"]

#: Up to so many cells and bytes are rendered in Python: a fresh process pays for each of the many functions of Arrow
#: and numpy at its first call, 0.4 ms in all. From 3000 cells on those are faster even so.
_FEW_CELLS, _FEW_BYTES = 1024, 64 << 10
_PLAIN = (pa.types.is_large_string, pa.types.is_integer, pa.types.is_boolean, pa.types.is_float64)
#: Doubles that orjson and Arrow write with the same characters: neither with an exponent.
_SAME_DOUBLE, _SAME_DOUBLE_END = 1e-3, 1e10
_QUOTE = pa.scalar('"', TEXT)


def json_rows(names: Sequence[str], arrays: Sequence[pa.Array], first_row: int) -> list[memoryview]:
    """Render one compact JSON object a line, keys in column order."""
    if _are_few(arrays) and (lines := _few_json_rows(names, arrays, first_row)) is not None:
        return [lines]
    rows = JoinedRows(len(arrays[0]))
    glue = "{"
    for name, array in zip(names, map(_worth_sharing, arrays), strict=True):
        rows.literal(f"{glue}{orjson.dumps(name).decode()}:")
        if pa.types.is_large_string(array.type):
            _add_quoted(rows, escape_json(array), "null")
        elif pa.types.is_dictionary(array.type):
            _add_shared(rows, escape_json(array.dictionary), numbers(array.indices), "null", '"')
        elif pa.types.is_temporal(array.type):
            _add_values(rows, array, name, first_row, "null", '"')
        else:
            _add_unquoted(rows, array, name, first_row, ("false", "true", "null"))
        glue = ","
    rows.literal("}\n")
    return rows.joined()


def _are_few(arrays: Sequence[pa.Array]) -> bool:
    return len(arrays) * len(arrays[0]) <= _FEW_CELLS and sum(array.nbytes for array in arrays) <= _FEW_BYTES


def _few_json_rows(names: Sequence[str], arrays: Sequence[pa.Array], first_row: int) -> memoryview | None:
    """Render rows in Python; None if a column has values for which orjson has another text than Arrow."""
    columns = []
    for name, array in zip(names, arrays, strict=True):
        if pa.types.is_temporal(array.type):
            check_years(array, name, first_row)
            array = cell_texts(array)
        elif not any(is_plain(array.type) for is_plain in _PLAIN):
            return None
        values = array.to_pylist()
        if pa.types.is_floating(array.type) and not all(map(_has_one_text, values)):
            return None
        columns.append(values)
    lines = bytearray()  # orjson takes 1 kB for a row until its text is dropped
    for row in zip(*columns, strict=True):
        lines += orjson.dumps(dict(zip(names, row, strict=True)), option=orjson.OPT_APPEND_NEWLINE)
    return memoryview(lines)


def _has_one_text(double: float | None) -> bool:
    return double is None or not double or _SAME_DOUBLE <= abs(double) < _SAME_DOUBLE_END


def csv_rows(names: Sequence[str], arrays: Sequence[pa.Array], first_row: int) -> list[memoryview]:
    """Render CSV as Python's csv module does with QUOTE_MINIMAL: null is empty, booleans are True and False."""
    rows = JoinedRows(len(arrays[0]))
    null = '""' if len(arrays) == 1 else ""  # an empty line would be no row
    for number, (name, array) in enumerate(zip(names, map(plain_texts, arrays), strict=True)):
        rows.literal("," if number else "")
        if pa.types.is_large_string(array.type):
            texts = quote_csv(array)
            rows.texts(pc.if_else(pc.equal(texts, EMPTY), pa.scalar(null, TEXT), texts) if null else texts, null)
        else:
            _add_unquoted(rows, array, name, first_row, ("False", "True", null))
    rows.literal("\n")
    return rows.joined()


def csv_header(names: Sequence[str]) -> bytes:
    """Render the header line."""
    line = io.StringIO()
    # before Python 3.13 the writer quotes the characters of its own line end only, and "\r" ends a line for readers
    csv.writer(line, lineterminator="\r\n").writerow(names)
    return line.getvalue().removesuffix("\r\n").encode() + b"\n"


def _worth_sharing(array: pa.Array) -> pa.Array:
    """Return texts without their dictionary where it is no gain, for the reason that `shared_texts` has.

    Each part of a batch has the dictionary of the whole batch, which may have many times as many texts as the part.
    """
    is_gain = pa.types.is_dictionary(array.type) and len(array.dictionary) < 2 * len(array) // 3
    return array if is_gain else plain_texts(array)


def _add_unquoted(rows: JoinedRows, array: pa.Array, name: str, first_row: int, words: tuple[str, str, str]) -> None:
    """Add values without quotes; `words` are those for false, true and null."""
    if pa.types.is_boolean(array.type):
        rows.choice(words, array.cast(pa.int32()).fill_null(2).to_numpy())
    elif pa.types.is_floating(array.type):
        digits, is_whole = double_digits(array)
        _add_values(rows, digits, name, first_row, words[2])
        if is_whole.all():
            rows.literal(".0")
        elif is_whole.any():
            rows.choice(("", ".0"), is_whole.astype(np.int32))
    else:
        _add_values(rows, array, name, first_row, words[2])


def _add_values(rows: JoinedRows, array: pa.Array, name: str, first_row: int, null: str, quote: str = "") -> None:
    """Add anything but texts, booleans and doubles, in quotes or not."""
    if pa.types.is_temporal(array.type):
        check_years(array, name, first_row)
    shared = shared_texts(array)
    if shared is not None:
        _add_shared(rows, *shared, null, quote)
    elif quote:
        _add_quoted(rows, cell_texts(array), null)
    else:
        rows.texts(cell_texts(array), null)


def _add_shared(rows: JoinedRows, texts: pa.Array, places: Places, null: str, quote: str) -> None:
    """Add to each row one of several texts or nulls."""
    if quote:
        texts = pc.binary_join_element_wise(_QUOTE, texts, _QUOTE, EMPTY)
    rows.shared(texts.fill_null(null) if texts.null_count else texts, places)


def _add_quoted(rows: JoinedRows, texts: pa.Array, null: str) -> None:
    """Add texts, with quotes around all but the nulls; the quotes become part of the neighbouring pieces."""
    if not texts.null_count:
        rows.literal('"')
        rows.texts(texts, null)
        rows.literal('"')
        return
    is_null = null_mask(texts).astype(np.int32)
    rows.choice(('"', null), is_null)
    rows.texts(texts, "")
    rows.choice(('"', ""), is_null)
