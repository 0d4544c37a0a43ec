"""CSV files: batches of texts, and the line of the file on which a row begins."""

from __future__ import annotations

import contextlib
import csv
import io
import re
import sys
from collections.abc import Collection, Iterator, Sequence

import pyarrow as pa
import pyarrow.csv

from transform_shim.core.errors import InputInvalid
from transform_shim.core.manifest import Field
from transform_shim.core.notices import warn
from transform_shim.core.table_file import TableFile
from transform_shim.reading.columnar.csv_types import infer_csv_fields
from transform_shim.reading.columnar.reader import ColumnarFile
from transform_shim.reading.jsonl.blocks import BLOCK_BYTES, open_binary
from transform_shim.reading.values.column_blocks import ColumnBlock
from transform_shim.reading.values.json_text import GZIP_MARK, GZIP_TEXT

__all__ = ["find_fields", "open_table"]

#: The names of a CSV file must end within its first bytes, this many.
_HEADER_BYTES = 1 << 20
#: Arrow needs a whole row in a block; a file of larger rows is read in blocks of this size, or as a whole.
_LARGE_BLOCK_BYTES = 64 << 20
#: The position in Arrow's messages; it counts the header as a row.
_ROW = re.compile(r"Row #(\d+)")
_SAID_CHARS = 200
_COLUMN = re.compile(r"CSV column #(\d+)")


def find_fields(file: TableFile, sampled: Collection[str] = ()) -> tuple[tuple[Field, ...], bool]:
    """Return the columns of the header with types that all of their texts fit, and True: these types hold.

    With names in `sampled`, only those of these columns are returned that have a value.
    """
    # not from the reader, which would look at rows too, and of these the first may be a large one
    with open_binary(file.data_path, file.compression) as head:
        first = head.read(_HEADER_BYTES)
    fields = tuple(Field(name) for name in dict.fromkeys(_header_names(file, first) if first.strip() else ()))
    if len(fields) == 1 and ";" in fields[0].name:
        warn(
            f"Table {file.alias!r} has one column, {fields[0].name[:_SAID_CHARS]!r}: its separator seems to be ';', "
            "but tables are read with ','. To convert it: pandas.read_csv(FILE, sep=';').to_csv(NEW_FILE, index=False)"
        )
    if sampled:
        wanted = tuple(field for field in fields if field.name in sampled)
        return infer_csv_fields(_CsvFile(file, wanted, typed=False), with_value=True), True
    return infer_csv_fields(_CsvFile(file, fields, typed=False)), True


def open_table(file: TableFile, fields: Sequence[Field], _: Sequence[Field], *, typed: bool) -> ColumnarFile:
    """Return the file as blocks of these columns."""
    return _CsvFile(file, fields, typed=typed)


class _CsvFile(ColumnarFile):
    """A CSV file; errors name the line on which the row begins."""

    def __init__(self, file: TableFile, fields: Sequence[Field], *, typed: bool) -> None:
        super().__init__(file, fields, typed=typed)
        self._has_large_rows = False

    def blocks(self) -> Iterator[ColumnBlock]:
        rows = 0
        try:
            for block in self._blocks():
                rows += block.rows
                yield block
        except _LargeRow:
            self._has_large_rows = True
            yield from self._blocks(rows)

    def _blocks(self, skipped_rows: int = 0) -> Iterator[ColumnBlock]:
        first_row = 1
        size_bytes = self.file.data_path.stat().st_size
        last: pa.RecordBatch | None = None
        with self.opened() as reader:
            self._check_names(reader.schema.names, line=1)
            for batch in reader:
                last = batch.slice(min(max(skipped_rows - first_row + 1, 0), batch.num_rows))
                first_row += batch.num_rows - last.num_rows
                arrays = [self._column(last, field, first_row) for field in self.fields]
                first_row += last.num_rows
                if last.num_rows or not skipped_rows:
                    yield ColumnBlock(arrays, last.num_rows, size_bytes)
        if last is not None:
            with self._on_its_line(first_row - 1):
                _check_last_quote(self.file, last)

    def _batches(self, stack: contextlib.ExitStack) -> pa.RecordBatchReader:
        return _open_csv(self.file, stack, has_large_rows=self._has_large_rows)

    def _failure(self, said: str) -> InputInvalid:
        return _csv_failure(self.file, said, has_large_rows=self._has_large_rows)

    def _column(self, batch: pa.RecordBatch, field: Field, first_row: int) -> pa.Array:
        with self._on_its_line():
            return super()._column(batch, field, first_row)

    def _check_content(self, array: pa.Array, column: str, first_row: int) -> None:
        """Skip the check: the parser has checked the encoding and made the offsets itself."""

    @contextlib.contextmanager
    def _on_its_line(self, row: int | None = None) -> Iterator[None]:
        """Add to errors the line on which their row begins; `row` is that of errors without one."""
        try:
            yield
        except InputInvalid as error:
            row = error.line or row
            if row is None:
                raise
            line = _csv_line(self.file, row)
            raise InputInvalid(self.file.alias, error.problem, line=line, column=error.column) from None


class _LargeRow(InputInvalid):
    """A row does not fit a block of the usual size."""


def _open_csv(file: TableFile, stack: contextlib.ExitStack, *, has_large_rows: bool = False) -> pa.RecordBatchReader:
    """Open CSV with every column as text: Arrow would guess types, and 007 is a number only if the manifest says so."""
    with open_binary(file.data_path, file.compression) as head:
        first = head.read(_HEADER_BYTES)
    if not first.strip():
        return pa.RecordBatchReader.from_batches(pa.schema([]), [])
    names = _header_names(file, first)
    is_whole = len(first) < _HEADER_BYTES and first.count(b'"') % 2 == 0
    if is_whole and not {*b"\r\n"} & {*first}:  # a header alone, which Arrow refuses without a line end
        return pa.RecordBatchReader.from_batches(pa.schema([(name, pa.large_string()) for name in names]), [])
    convert = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.large_string()),
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    source = stack.enter_context(open_binary(file.data_path, file.compression))
    block_bytes = _LARGE_BLOCK_BYTES if has_large_rows else BLOCK_BYTES
    return stack.enter_context(
        pyarrow.csv.open_csv(
            source,
            read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=block_bytes),
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
            convert_options=convert,
        )
    )


def _csv_failure(file: TableFile, said: str, *, has_large_rows: bool) -> InputInvalid:
    """Return Arrow's error about a CSV file, with the line and the column if Arrow names them."""
    if "straddling object" in said:
        problem = f"a row is larger than {_LARGE_BLOCK_BYTES >> 20} MiB, or a quotation mark is never closed"
        return (InputInvalid if has_large_rows else _LargeRow)(file.alias, problem)
    row, column = _ROW.search(said), _COLUMN.search(said)
    name = None
    if column is not None:
        with open_binary(file.data_path, file.compression) as head:
            name = _header_names(file, head.read(_HEADER_BYTES))[int(column[1])]
    line = None if row is None else _csv_line(file, int(row[1]) - 1)
    problem = (
        "not valid UTF-8" if "invalid UTF8" in said else f"not readable as csv ({said.splitlines()[0][:_SAID_CHARS]})"
    )
    return InputInvalid(file.alias, problem, line=line, column=name)


def _csv_line(file: TableFile, row: int) -> int:
    """Return the line on which a row begins; rows are counted from 1 without the header, and may span lines.

    Parses the file once more, with Python's own parser: only errors need the line.
    """
    limit = csv.field_size_limit(sys.maxsize)
    try:
        with open_binary(file.data_path, file.compression) as source:
            text = io.TextIOWrapper(io.BufferedReader(source), "utf-8-sig", "replace", newline="")  # type: ignore[type-var]
            rows = csv.reader(text)
            line = 1
            for _, _ in zip(range(row), rows, strict=False):
                line = rows.line_num + 1
            return line
    finally:
        csv.field_size_limit(limit)


def _check_last_quote(file: TableFile, batch: pa.RecordBatch) -> None:
    """Refuse a file that ends within quotes: Arrow takes the rest of the file for the whole cell.

    Raises
    ------
    InputInvalid
        If the last cell is a text in quotes that the file never closes.
    """
    if file.compression is not None or not batch.num_rows or not batch.num_columns:
        return  # a compressed file that is cut short cannot be unpacked
    cell = batch.column(batch.num_columns - 1)[-1].as_py()
    if cell is None:
        return
    open_cell = b'"' + cell.replace('"', '""').encode()
    with file.data_path.open("rb") as source:
        source.seek(max(0, source.seek(0, io.SEEK_END) - len(open_cell) - 1))
        tail = source.read()
    is_closed = not cell and tail.endswith(b'""')
    if tail.endswith(open_cell) and not is_closed:
        name = batch.schema.names[-1]
        raise InputInvalid(file.alias, "the file ends within quotation marks", column=name)


def _header_names(file: TableFile, head: bytes) -> list[str]:
    """Return the column names by Python's own parser, which does not need the whole file."""
    if head.startswith(GZIP_MARK):
        raise InputInvalid(file.alias, GZIP_TEXT)
    line = head.split(b"\n", 1)[0]
    try:
        line.decode()
        return next(csv.reader(io.StringIO(head.decode("utf-8-sig", "replace"), newline="")), [])
    except UnicodeDecodeError as error:
        problem = f"the header is not valid UTF-8 (byte 0x{line[error.start]:02x} at position {error.start})"
        raise InputInvalid(file.alias, problem, line=1) from None
    except csv.Error as error:
        raise InputInvalid(file.alias, f"not readable as csv ({error})", line=1) from None
