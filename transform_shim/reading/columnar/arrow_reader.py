"""Arrow IPC files as batches; the stream and the file form are both recognised."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence

import pyarrow as pa
import pyarrow.ipc

from transform_shim.core.manifest import Field
from transform_shim.core.table_file import TableFile
from transform_shim.reading.columnar.parsed_table import ParsedTable, parsed_fields
from transform_shim.reading.columnar.reader import ColumnarFile, own_fields
from transform_shim.reading.jsonl.blocks import open_binary
from transform_shim.reading.values.column_blocks import BlockFile

__all__ = ["find_fields", "open_table"]

_FILE_MAGIC = b"ARROW1"


def find_fields(file: TableFile, sampled: Collection[str] = ()) -> tuple[tuple[Field, ...], bool]:
    """Return the columns that the file names, and False: the file has its own types."""
    parsed = parsed_fields(file)
    return (parsed, True) if parsed is not None else (own_fields(_ArrowFile(file, (), typed=False), sampled), False)


def open_table(file: TableFile, fields: Sequence[Field], _: Sequence[Field], *, typed: bool) -> BlockFile:
    """Return the file as blocks of these columns."""
    if parsed_fields(file) is not None:
        return ParsedTable(file, fields)
    return _ArrowFile(file, fields, typed=typed)


class _ArrowFile(ColumnarFile):
    def _batches(self, stack: contextlib.ExitStack) -> pa.RecordBatchReader:
        if self.file.compression is not None:
            packed = stack.enter_context(open_binary(self.file.data_path, self.file.compression))
            return stack.enter_context(pyarrow.ipc.open_stream(packed))
        if not self.file.data_path.stat().st_size:
            return pa.RecordBatchReader.from_batches(pa.schema([]), [])
        source = stack.enter_context(pa.memory_map(str(self.file.data_path)))
        is_file_form = source.read(len(_FILE_MAGIC)) == _FILE_MAGIC
        source.seek(0)
        if not is_file_form:
            return stack.enter_context(pyarrow.ipc.open_stream(source))
        ipc = pyarrow.ipc.open_file(source)
        batches = (ipc.get_batch(i) for i in range(ipc.num_record_batches))
        return pa.RecordBatchReader.from_batches(ipc.schema, batches)
