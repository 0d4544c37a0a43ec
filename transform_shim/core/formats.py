"""The data formats of tables and results inside the kernel, in one table; the gateway's is `gateway.core.formats`.

A new format needs an entry here, a reader and a writer.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

__all__ = ["COMPRESSIONS", "FORMATS", "Compression", "DataFormat", "Format", "data_format", "load_formats"]

DataFormat = Literal["jsonl", "csv", "parquet", "arrow"]
Compression = Literal["gzip", "zstd"]

COMPRESSIONS: tuple[Compression, ...] = get_args(Compression)


@dataclass(frozen=True, slots=True)
class Format:
    """Where the code of a format is, by name: `reading` and `writing` import this folder and not the reverse.

    Parameters
    ----------
    reader : str
        A module with the functions ``find_fields`` and ``open_table`` (`transform_shim.reading.table_source`).
    writer : str
        A module and, after a colon, a class of it: an encoder (`transform_shim.writing.output`).
    """

    reader: str
    writer: str

    def load_reader(self) -> Any:
        """Return the reader's module, imported."""
        return importlib.import_module(self.reader)

    def load_writer(self) -> Any:
        """Return the encoder's class, imported."""
        module, _, name = self.writer.partition(":")
        return getattr(importlib.import_module(module), name)


_READING, _WRITING = "transform_shim.reading", "transform_shim.writing"

FORMATS: Mapping[DataFormat, Format] = {
    "jsonl": Format(f"{_READING}.jsonl.reader", f"{_WRITING}.line_encoders:JsonLinesEncoder"),
    "csv": Format(f"{_READING}.columnar.csv_reader", f"{_WRITING}.line_encoders:CsvEncoder"),
    "parquet": Format(f"{_READING}.columnar.parquet_reader", f"{_WRITING}.columnar_encoders:ParquetEncoder"),
    "arrow": Format(f"{_READING}.columnar.arrow_reader", f"{_WRITING}.columnar_encoders:ArrowEncoder"),
}


def data_format(value: object) -> DataFormat:
    """Return `value` as the name of a format.

    Raises
    ------
    ValueError
        If there is no such format.
    """
    for name in FORMATS:
        if value == name:
            return name
    raise ValueError(f"unknown data format {value!r}")


def load_formats() -> None:
    """Import all readers and writers, so that no job has to."""
    for entry in FORMATS.values():
        entry.load_reader()
        entry.load_writer()
