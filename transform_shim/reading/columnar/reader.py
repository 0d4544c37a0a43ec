"""Files that Arrow reads in batches, as blocks of columns with the types that the manifest announces."""

from __future__ import annotations

import abc
import contextlib
import re
from collections.abc import Collection, Iterator, Sequence

import pyarrow as pa

from transform_shim.core.errors import InputInvalid, shorten
from transform_shim.core.manifest import Field
from transform_shim.core.table_file import TableFile
from transform_shim.reading.columnar.cast import cast_to_kind, without_encoding
from transform_shim.reading.values.column_blocks import ColumnBlock

__all__ = ["ColumnarFile", "own_fields"]

#: The position of the value in Arrow's messages.
_BAD_INDEX = re.compile(r"\bindex (\d+)")


class ColumnarFile(abc.ABC):
    """A table file with these fields in this order; errors name the row, counted from 1.

    Parameters
    ----------
    file : TableFile
        The file.
    fields : sequence of Field
        The columns wanted.
    typed : bool
        Whether the fields have kinds; otherwise the file's own types stay.
    """

    def __init__(self, file: TableFile, fields: Sequence[Field], *, typed: bool) -> None:
        self.file, self.fields, self._typed = file, tuple(fields), typed

    @abc.abstractmethod
    def _batches(self, stack: contextlib.ExitStack) -> pa.RecordBatchReader:
        """Open the file; push everything to be closed onto the stack."""

    def blocks(self) -> Iterator[ColumnBlock]:
        """Yield the file's columns, block by block.

        Raises
        ------
        InputInvalid
            Where the file is damaged or contradicts the manifest.
        """
        first_row = 1
        size_bytes = self.file.data_path.stat().st_size
        with self.opened() as reader:
            self._check_names(reader.schema.names)
            for batch in _with_types(reader):
                arrays = [self._column(batch, field, first_row) for field in self.fields]
                first_row += batch.num_rows
                yield ColumnBlock(arrays, batch.num_rows, size_bytes)

    @contextlib.contextmanager
    def opened(self) -> Iterator[pa.RecordBatchReader]:
        """Open the file as a reader of batches; Arrow's own errors become `InputInvalid`."""
        try:
            with contextlib.ExitStack() as stack:
                yield self._batches(stack)
        except (pa.ArrowInvalid, OSError) as error:
            if getattr(error, "errno", None) is not None:
                raise
            raise self._failure(str(error)) from None

    def _failure(self, said: str) -> InputInvalid:
        return InputInvalid(self.file.alias, f"not readable as {self.file.data_format} ({said.strip()})")

    def _check_names(self, names: list[str], line: int | None = None) -> None:
        """Check that the file has each column wanted once; a file without names is an empty table."""
        for field in self.fields if names else ():
            if names.count(field.name) == 1:
                continue
            problem = "the file has several columns of this name"
            if field.name not in names:
                problem = f"the file has no such column; it has {shorten(names)}"
            raise InputInvalid(self.file.alias, problem, line=line, column=field.name)

    def _column(self, batch: pa.RecordBatch, field: Field, first_row: int) -> pa.Array:
        array = batch.column(batch.schema.get_field_index(field.name))
        self._check_content(array, field.name, first_row)
        array = without_encoding(array, field.name)
        return cast_to_kind(array, field, self.file.alias, first_row) if self._typed else array

    def _check_content(self, array: pa.Array, column: str, first_row: int) -> None:
        """Check offsets and encodings, which a damaged file may have wrong and which all later steps trust."""
        try:
            array.validate(full=True)
        except pa.ArrowInvalid as error:
            found = _BAD_INDEX.search(str(error))
            row = None if found is None else first_row + int(found[1])
            raise InputInvalid(self.file.alias, f"damaged ({error})", line=row, column=column) from None


def _with_types(reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    """Yield the batches; a file without rows may have none, and its types are those of its schema."""
    first = next(reader, None)
    if first is None and reader.schema.names:
        first = pa.RecordBatch.from_pylist([], schema=reader.schema)
    if first is not None:
        yield first
    yield from reader


def own_fields(table: ColumnarFile, sampled: Collection[str] = ()) -> tuple[Field, ...]:
    """Return the columns that the file itself names, without types; those in `sampled` with one if they are numbers."""
    with table.opened() as reader:
        numbers = {field.name for field in reader.schema if field.name in sampled and _is_number(field.type)}
        return tuple(Field(name, "Float" if name in numbers else None) for name in dict.fromkeys(reader.schema.names))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))
