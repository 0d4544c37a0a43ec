"""CSV, Parquet and Arrow IPC files as blocks of columns, with the types the manifest announces."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from transform_shim.errors import InputInvalid, shorten
from transform_shim.manifest import Field
from transform_shim.reading.adapt import adapt, plain
from transform_shim.reading.csvfile import LargeRow, check_last_quote, csv_failure, csv_line, open_csv
from transform_shim.reading.jsonlines import Columns
from transform_shim.reading.lines import open_binary
from transform_shim.request import TableFile

__all__ = ["ColumnarFile", "own_fields"]

_BATCH_ROWS = 65_536
_ARROW_FILE_MAGIC = b"ARROW1"
#: Where Arrow's messages say which value is wrong.
_BAD_INDEX = re.compile(r"\bindex (\d+)")


class ColumnarFile:
    """A table in CSV, Parquet or Arrow IPC, with these fields in this order.

    ``typed`` says that the fields know their kinds; otherwise the file's own types stay. Errors name the line of a CSV
    file, and the row, counted from 1, of the others.
    """

    def __init__(self, file: TableFile, fields: Sequence[Field], *, typed: bool) -> None:
        self.file, self.fields, self._typed = file, tuple(fields), typed

    def blocks(self) -> Iterator[Columns]:
        """The file's columns, block by block.

        Raises
        ------
        InputInvalid
            Where the file is damaged or contradicts the manifest.
        """
        rows = 0
        try:
            for block in self._blocks():
                rows += block.rows
                yield block
        except LargeRow:
            yield from self._blocks(rows, has_large_rows=True)

    def _blocks(self, skipped_rows: int = 0, *, has_large_rows: bool = False) -> Iterator[Columns]:
        first_row = 1
        size_bytes = self.file.data_path.stat().st_size
        last: pa.RecordBatch | None = None
        with _open(self.file, has_large_rows=has_large_rows) as reader:
            self._check_names(reader.schema.names)
            for batch in reader:
                last = batch.slice(min(max(skipped_rows - first_row + 1, 0), batch.num_rows))
                first_row += batch.num_rows - last.num_rows
                arrays = [self._column(last, field, first_row) for field in self.fields]
                first_row += last.num_rows
                if last.num_rows or not skipped_rows:
                    yield Columns(arrays, last.num_rows, size_bytes)
        if last is not None and self.file.data_format == "csv":
            with _placed(self.file, first_row - 1):
                check_last_quote(self.file, last)

    def _check_names(self, names: list[str]) -> None:
        """An empty file names nothing and is an empty table; any other has each column wanted, once."""
        for field in self.fields if names else ():
            if names.count(field.name) == 1:
                continue
            problem = "the file has several columns of this name"
            if field.name not in names:
                problem = f"the file has no such column; it has {shorten(names)}"
            line = 1 if self.file.data_format == "csv" else None
            raise InputInvalid(self.file.alias, problem, line=line, column=field.name)

    def _column(self, batch: pa.RecordBatch, field: Field, first_row: int) -> pa.Array:
        array = batch.column(batch.schema.get_field_index(field.name))
        with _placed(self.file):
            if self.file.data_format != "csv":
                _check_content(array, self.file.alias, field.name, first_row)
            array = plain(array, field.name)
            return adapt(array, field, self.file.alias, first_row) if self._typed else array


def own_fields(file: TableFile) -> tuple[Field, ...]:
    """The columns that the file itself names, without types."""
    with _open(file) as reader:
        return tuple(Field(name) for name in dict.fromkeys(reader.schema.names))


def _check_content(array: pa.Array, table: str, column: str, first_row: int) -> None:
    """Refuse what a damaged or carelessly written file makes of a column: its readers trust offsets and encodings."""
    try:
        array.validate(full=True)
    except pa.ArrowInvalid as error:
        found = _BAD_INDEX.search(str(error))
        row = None if found is None else first_row + int(found[1])
        raise InputInvalid(table, f"damaged ({error})", line=row, column=column) from None


@contextlib.contextmanager
def _placed(file: TableFile, row: int | None = None) -> Iterator[None]:
    """Errors of a CSV file, which come with a row (`row` without), get the line on which it stands."""
    try:
        yield
    except InputInvalid as error:
        row = error.line or row
        if file.data_format != "csv" or row is None:
            raise
        raise InputInvalid(file.alias, error.problem, line=csv_line(file, row), column=error.column) from None


@contextlib.contextmanager
def _open(file: TableFile, *, has_large_rows: bool = False) -> Iterator[pa.RecordBatchReader]:
    """The file as a reader of batches; both forms of Arrow IPC are recognised."""
    try:
        with contextlib.ExitStack() as stack:
            if file.data_format == "csv":
                yield open_csv(file, stack, has_large_rows=has_large_rows)
            else:
                yield (_open_parquet if file.data_format == "parquet" else _open_arrow)(file, stack)
    except (pa.ArrowInvalid, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise
        if file.data_format == "csv":
            raise csv_failure(file, str(error), has_large_rows=has_large_rows) from None
        raise InputInvalid(file.alias, f"not readable as {file.data_format} ({str(error).strip()})") from None


def _open_parquet(file: TableFile, stack: contextlib.ExitStack) -> pa.RecordBatchReader:
    parquet = stack.enter_context(pyarrow.parquet.ParquetFile(file.data_path, memory_map=True))
    batches = parquet.iter_batches(batch_size=_BATCH_ROWS, use_threads=False)
    return pa.RecordBatchReader.from_batches(parquet.schema_arrow, batches)


def _open_arrow(file: TableFile, stack: contextlib.ExitStack) -> pa.RecordBatchReader:
    if file.compression is not None:
        packed = stack.enter_context(open_binary(file.data_path, file.compression))
        return stack.enter_context(pyarrow.ipc.open_stream(packed))
    if not file.data_path.stat().st_size:
        return pa.RecordBatchReader.from_batches(pa.schema([]), [])
    source = stack.enter_context(pa.memory_map(str(file.data_path)))
    is_file_form = source.read(len(_ARROW_FILE_MAGIC)) == _ARROW_FILE_MAGIC
    source.seek(0)
    if not is_file_form:
        return stack.enter_context(pyarrow.ipc.open_stream(source))
    ipc = pyarrow.ipc.open_file(source)
    batches = (ipc.get_batch(i) for i in range(ipc.num_record_batches))
    return pa.RecordBatchReader.from_batches(ipc.schema, batches)
