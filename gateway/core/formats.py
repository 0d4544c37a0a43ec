"""One table of the data formats of tables and results: names, file endings, content types, magic bytes and readers.

The kernel's side of the trust line has a table of its own, `transform_shim.core.formats`. The readers here are for
results that are shown or compared; a process that only stores and sends files never imports pyarrow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

DataFormat = Literal["jsonl", "csv", "parquet", "arrow"]


#: A file, or an open `pyarrow.NativeFile`; and the columns that are read as text: a text file does not have types.
Reader = Callable[[Any, Mapping[str, Any]], Any]

#: A block of a text file must hold the longest row; pyarrow's default of 1 MiB is less than a cell may have.
_BLOCK_BYTES = 64 << 20


def _read_parquet(source: Any, text_columns: Mapping[str, Any]) -> Any:
    from pyarrow import parquet

    return parquet.ParquetFile(source).read()


def _read_arrow(source: Any, text_columns: Mapping[str, Any]) -> Any:
    from pyarrow import feather

    return feather.read_table(source, memory_map=False)


def _read_csv(source: Any, text_columns: Mapping[str, Any]) -> Any:
    from pyarrow import csv

    # an empty field is null, as the gateway writes it; the words "NA" or "null" are text
    options = csv.ConvertOptions(column_types=dict(text_columns), null_values=[""], strings_can_be_null=True)
    parsing = csv.ParseOptions(newlines_in_values=True)  # else a text that crosses the end of a block is cut there
    return csv.read_csv(source, csv.ReadOptions(block_size=_BLOCK_BYTES), parsing, options)


def _read_jsonl(source: Any, text_columns: Mapping[str, Any]) -> Any:
    import pyarrow as pa
    from pyarrow import json

    # pyarrow refuses an empty file, which is a result without rows
    if (source.stat().st_size if isinstance(source, Path) else source.size()) == 0:
        return pa.table({name: pa.array([], kind) for name, kind in text_columns.items()})
    schema = pa.schema(list(text_columns.items()))
    options = json.ReadOptions(block_size=_BLOCK_BYTES)
    try:
        return json.read_json(source, options, json.ParseOptions(schema, unexpected_field_behavior="infer"))
    except pa.ArrowInvalid:  # an earlier result may have numbers where this one has texts
        if not isinstance(source, Path):
            source.seek(0)
        return json.read_json(source, options)


@dataclass(frozen=True, slots=True)
class FormatFacts:
    """File endings, content type, magic bytes and reader of one format.

    Attributes
    ----------
    endings : tuple of str
        File name endings in lower case, with their dot; the first is the one that is written.
    content_type : str
        Media type of an upload and of a download.
    read : callable
        Returns a file as a `pyarrow.Table`; raises `pyarrow.ArrowException`.
    magic : tuple of bytes
        First bytes of such a file; empty for text.
    is_text : bool
        Whether a file of it can be part of a JSON answer as text.
    """

    endings: tuple[str, ...]
    content_type: str
    read: Reader
    magic: tuple[bytes, ...] = ()
    is_text: bool = False


FORMATS: dict[DataFormat, FormatFacts] = {
    "jsonl": FormatFacts((".jsonl", ".ndjson"), "application/x-ndjson", _read_jsonl, is_text=True),
    "csv": FormatFacts((".csv",), "text/csv", _read_csv, is_text=True),
    "parquet": FormatFacts((".parquet",), "application/vnd.apache.parquet", _read_parquet, (b"PAR1",)),
    "arrow": FormatFacts(
        (".arrow", ".feather"), "application/vnd.apache.arrow.file", _read_arrow, (b"ARROW1", b"\xff\xff\xff\xff")
    ),
}

DEFAULT_FORMAT: DataFormat = "jsonl"

#: File name ending to format.
ENDINGS: dict[str, DataFormat] = {ending: name for name, facts in FORMATS.items() for ending in facts.endings}

#: Ending of a compressed file to its compression, for the two that a kernel can unpack.
PACKED_ENDINGS: dict[str, str] = {".gz": "gzip", ".zst": "zstd"}
