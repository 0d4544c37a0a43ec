"""Parquet files as batches."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence

import pyarrow as pa
import pyarrow.parquet

from transform_shim.core.manifest import Field
from transform_shim.core.table_file import TableFile
from transform_shim.reading.columnar.reader import ColumnarFile, own_fields

__all__ = ["find_fields", "open_table"]

_BATCH_ROWS = 65_536


def find_fields(file: TableFile, sampled: Collection[str] = ()) -> tuple[tuple[Field, ...], bool]:
    """Return the columns that the file names, and False: the file has its own types."""
    return own_fields(_ParquetFile(file, (), typed=False), sampled), False


def open_table(file: TableFile, fields: Sequence[Field], _: Sequence[Field], *, typed: bool) -> ColumnarFile:
    """Return the file as blocks of these columns."""
    return _ParquetFile(file, fields, typed=typed)


class _ParquetFile(ColumnarFile):
    def _batches(self, stack: contextlib.ExitStack) -> pa.RecordBatchReader:
        parquet = stack.enter_context(pyarrow.parquet.ParquetFile(self.file.data_path, memory_map=True))
        batches = parquet.iter_batches(batch_size=_BATCH_ROWS, use_threads=False)
        return pa.RecordBatchReader.from_batches(parquet.schema_arrow, batches)
