"""CSV files as batches of texts, and where in the file a row of theirs stands."""

from __future__ import annotations

import contextlib
import csv
import io
import re
import sys

import pyarrow as pa
import pyarrow.csv

from transform_shim.errors import InputInvalid
from transform_shim.reading.lines import BLOCK_BYTES, open_binary
from transform_shim.request import TableFile

__all__ = ["LargeRow", "check_last_quote", "csv_failure", "csv_line", "open_csv"]

#: The names of a CSV file must end within its first bytes, this many.
_HEADER_BYTES = 1 << 20
#: Arrow wants a whole row in a block; a file of larger rows is read in blocks of this, or as a whole.
_LARGE_BLOCK_BYTES = 64 << 20
#: Where Arrow's messages say what is wrong; it counts the header as a row.
_ROW = re.compile(r"Row #(\d+)")
_SAID_CHARS = 200
_COLUMN = re.compile(r"CSV column #(\d+)")


class LargeRow(InputInvalid):
    """A row does not fit a block of the usual size."""


def open_csv(file: TableFile, stack: contextlib.ExitStack, *, has_large_rows: bool = False) -> pa.RecordBatchReader:
    """CSV with every column as text: its own types are guesses, and 007 is no number until the manifest says so."""
    with open_binary(file.data_path, file.compression) as head:
        first = head.read(_HEADER_BYTES)
    if not first.strip():
        return pa.RecordBatchReader.from_batches(pa.schema([]), [])
    convert = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(_header_names(file, first), pa.large_string()),
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


def csv_failure(file: TableFile, said: str, *, has_large_rows: bool) -> InputInvalid:
    """What Arrow says of a CSV file it cannot read, with the line and the column where it says which."""
    if "straddling object" in said:
        problem = f"a row is larger than {_LARGE_BLOCK_BYTES >> 20} MiB, or a quotation mark is never closed"
        return (InputInvalid if has_large_rows else LargeRow)(file.alias, problem)
    row, column = _ROW.search(said), _COLUMN.search(said)
    name = None
    if column is not None:
        with open_binary(file.data_path, file.compression) as head:
            name = _header_names(file, head.read(_HEADER_BYTES))[int(column[1])]
    line = None if row is None else csv_line(file, int(row[1]) - 1)
    problem = (
        "not valid UTF-8" if "invalid UTF8" in said else f"not readable as csv ({said.splitlines()[0][:_SAID_CHARS]})"
    )
    return InputInvalid(file.alias, problem, line=line, column=name)


def csv_line(file: TableFile, row: int) -> int:
    """The line on which a row begins; rows are counted from 1 without the header, and may span lines.

    Goes through the file once more, with Python's own parser: only an error asks for it.
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


def check_last_quote(file: TableFile, batch: pa.RecordBatch) -> None:
    """Refuse a file that ends within quotes: Arrow takes what is there for the whole cell.

    Raises
    ------
    InputInvalid
        If the last cell is what follows a quotation mark at the very end of the file.
    """
    if file.compression is not None or not batch.num_rows or not batch.num_columns:
        return  # what is packed and cut short cannot be unpacked
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
    """Column names, as Python's own parser sees them: it needs no whole file to do so."""
    line = head.split(b"\n", 1)[0]
    try:
        line.decode()
        return next(csv.reader(io.StringIO(head.decode("utf-8-sig", "replace"), newline="")), [])
    except UnicodeDecodeError as error:
        problem = f"the header is not valid UTF-8 (byte 0x{line[error.start]:02x} at position {error.start})"
        raise InputInvalid(file.alias, problem, line=1) from None
    except csv.Error as error:
        raise InputInvalid(file.alias, f"not readable as csv ({error})", line=1) from None
