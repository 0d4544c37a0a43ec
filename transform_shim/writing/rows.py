"""Batches of canonical arrays to the bytes of JSON lines or CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from transform_shim.writing.cells import EMPTY, TEXT, cell_texts, double_texts, escape_json, quote_csv

__all__ = ["csv_header", "csv_rows", "json_rows"]

_QUOTE = pa.scalar('"', TEXT)


def json_rows(names: Sequence[str], arrays: Sequence[pa.Array], first_row: int) -> memoryview:
    """One compact JSON object a line, keys in column order.

    The lines come into being as one Arrow text column, joined from the columns' texts: its data buffer is the result.
    """
    pieces: list[Any] = []
    glue = "{"
    for name, array in zip(names, arrays, strict=True):
        key = orjson.dumps(name).decode()
        if pa.types.is_floating(array.type):
            pieces += [pa.scalar(f"{glue}{key}:", TEXT), *double_texts(array)]
            glue = ","
            continue
        is_text = pa.types.is_large_string(array.type)
        texts = escape_json(array) if is_text else cell_texts(array, name, first_row)
        if not is_text and not pa.types.is_temporal(array.type):
            pieces += [pa.scalar(f"{glue}{key}:", TEXT), texts]
            glue = ","
        elif texts.null_count:
            texts = pc.binary_join_element_wise(_QUOTE, texts, _QUOTE, EMPTY)
            pieces += [pa.scalar(f"{glue}{key}:", TEXT), texts]
            glue = ","
        else:
            pieces += [pa.scalar(f'{glue}{key}:"', TEXT), texts]
            glue = '",'
    pieces.append(pa.scalar(glue.removesuffix(",") + "}\n", TEXT))
    return _joined(pieces, "null")


def csv_rows(names: Sequence[str], arrays: Sequence[pa.Array], first_row: int) -> memoryview:
    """CSV as Python's csv module writes it with QUOTE_MINIMAL: null is empty, booleans are True and False."""
    pieces: list[Any] = []
    for name, array in zip(names, arrays, strict=True):
        if pa.types.is_large_string(array.type):
            texts = quote_csv(array)
        elif pa.types.is_boolean(array.type):
            texts = pc.if_else(array, pa.scalar("True", TEXT), pa.scalar("False", TEXT))
        elif pa.types.is_floating(array.type):
            texts = pc.binary_join_element_wise(*double_texts(array), EMPTY)
        else:
            texts = cell_texts(array, name, first_row)
        if len(arrays) == 1:  # an empty line would be no row
            texts = texts.fill_null("")
            texts = pc.if_else(pc.equal(texts, EMPTY), pa.scalar('""', TEXT), texts)
        pieces += [texts, pa.scalar(",", TEXT)]
    pieces[-1] = pa.scalar("\n", TEXT)
    return _joined(pieces, "")


def csv_header(names: Sequence[str]) -> bytes:
    """The first line."""
    line = io.StringIO()
    # the writer quotes what its own line end holds, and before Python 3.13 no other: "\r" would end a line for readers
    csv.writer(line, lineterminator="\r\n").writerow(names)
    return line.getvalue().removesuffix("\r\n").encode() + b"\n"


def _joined(pieces: list[Any], null: str) -> memoryview:
    joined = pc.binary_join_element_wise(*pieces, EMPTY, null_handling="replace", null_replacement=null)
    offsets_buffer, data = joined.buffers()[1:3]
    end = joined[-1] if not len(joined) else memoryview(offsets_buffer).cast("q")[joined.offset + len(joined)]
    return memoryview(data)[:end]
