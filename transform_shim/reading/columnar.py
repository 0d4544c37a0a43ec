"""CSV, Parquet and Arrow IPC files as blocks of columns, with the types the manifest announces."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.ipc
import pyarrow.parquet

from transform_shim.basetypes import Kind
from transform_shim.errors import InputInvalid
from transform_shim.manifest import Field
from transform_shim.reading.convert import TEMPORAL, array_of
from transform_shim.reading.jsonlines import Columns
from transform_shim.reading.jsontext import json_text
from transform_shim.reading.lines import BLOCK_BYTES, open_binary
from transform_shim.reading.numbers import WIDE, tighten
from transform_shim.reading.temporal import NotTemporal
from transform_shim.request import TableFile

__all__ = ["ColumnarFile", "own_fields"]

_BATCH_ROWS = 65_536
_ARROW_FILE_MAGIC = b"ARROW1"
#: The names of a CSV file must end within its first bytes, this many.
_HEADER_BYTES = 1 << 20
_CAST_TARGETS: dict[Kind, pa.DataType] = {
    Kind.INTEGER: pa.int64(),
    Kind.NUMBER: pa.int64(),
    Kind.FLOAT: pa.float64(),
    Kind.DECIMAL: WIDE,
    Kind.BOOLEAN: pa.bool_(),
}
#: Which Arrow types hold a kind's values as they are.
_FITTING: dict[Kind, Any] = {
    Kind.INTEGER: lambda t: pa.types.is_integer(t) or (pa.types.is_decimal(t) and t.scale == 0),
    Kind.NUMBER: lambda t: pa.types.is_integer(t) or pa.types.is_decimal(t),
    Kind.FLOAT: pa.types.is_floating,
    Kind.DECIMAL: pa.types.is_decimal,
    Kind.BOOLEAN: pa.types.is_boolean,
    Kind.TEXT: pa.types.is_large_string,
    Kind.JSON_TEXT: pa.types.is_large_string,
    Kind.DATE: pa.types.is_date32,
    Kind.DATETIME: lambda t: pa.types.is_timestamp(t) and t.tz is None,
    Kind.INSTANT: lambda t: pa.types.is_timestamp(t) and t.tz is not None,
}


class ColumnarFile:
    """A table in CSV, Parquet or Arrow IPC, with these fields in this order.

    ``typed`` says that the fields know their kinds; otherwise the file's own types stay. Errors count rows from 1: a
    Parquet file has no lines, and a line of CSV need not be a row.
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
        first_row = 1
        size_bytes = self.file.data_path.stat().st_size
        try:
            with _open(self.file) as reader:
                for batch in reader:
                    arrays = [self._column(batch, field, first_row) for field in self.fields]
                    first_row += batch.num_rows
                    yield Columns(arrays, batch.num_rows, size_bytes)
        except pa.ArrowInvalid as error:
            problem = f"not readable as {self.file.data_format} ({error})"
            raise InputInvalid(self.file.alias, problem, line=first_row) from None

    def _column(self, batch: pa.RecordBatch, field: Field, first_row: int) -> pa.Array:
        index = batch.schema.get_field_index(field.name)
        if index < 0:
            return pa.nulls(batch.num_rows)
        array = batch.column(index)
        if isinstance(array, pa.DictionaryArray):
            array = array.dictionary_decode()
        if pa.types.is_string(array.type) or pa.types.is_string_view(array.type):
            array = array.cast(pa.large_string())
        if not self._typed:
            return array
        return _adapt(array, field, self.file.alias, first_row)


def own_fields(file: TableFile) -> tuple[Field, ...]:
    """The columns that the file itself names, without types."""
    with _open(file) as reader:
        return tuple(Field(name) for name in dict.fromkeys(reader.schema.names))


@contextlib.contextmanager
def _open(file: TableFile) -> Iterator[pa.RecordBatchReader]:
    """The file as a reader of batches; both forms of Arrow IPC are recognised."""
    try:
        with contextlib.ExitStack() as stack:
            yield _OPENERS[file.data_format](file, stack)
    except pa.ArrowInvalid as error:
        raise InputInvalid(file.alias, f"not readable as {file.data_format} ({error})") from None


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


def _open_csv(file: TableFile, stack: contextlib.ExitStack) -> pa.RecordBatchReader:
    """CSV with every column as text: its own types are guesses, and 007 is no number until the manifest says so."""
    with open_binary(file.data_path, file.compression) as head:
        first = head.read(_HEADER_BYTES)
    if not first.strip():
        return pa.RecordBatchReader.from_batches(pa.schema([]), [])
    convert = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(_header_names(first), pa.large_string()),
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    source = stack.enter_context(open_binary(file.data_path, file.compression))
    return stack.enter_context(
        pyarrow.csv.open_csv(
            source,
            read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
            convert_options=convert,
        )
    )


def _header_names(head: bytes) -> list[str]:
    """Column names of a CSV file, as Python's own parser sees them: it needs no whole file to do so."""
    return next(csv.reader(io.StringIO(head.decode("utf-8-sig", "replace"))), [])


_OPENERS: dict[str, Callable[[TableFile, contextlib.ExitStack], Any]] = {
    "csv": _open_csv,
    "parquet": _open_parquet,
    "arrow": _open_arrow,
}


def _adapt(array: pa.Array, field: Field, table: str, first_row: int) -> pa.Array:
    """A column as its kind wants it, or InputInvalid."""
    kind = field.kind
    if array.null_count == len(array):
        return pa.nulls(len(array))
    if _FITTING[kind](array.type):
        return array
    try:
        if pa.types.is_large_string(array.type):
            return _from_text(array, kind)
        if kind in (Kind.TEXT, Kind.JSON_TEXT) and not pa.types.is_nested(array.type):
            return array.cast(pa.large_string())
        if kind is Kind.DATE and pa.types.is_timestamp(array.type):
            return array.cast(pa.timestamp(array.type.unit)).cast(pa.date32(), safe=False)
        if kind is Kind.DATETIME and pa.types.is_date(array.type):
            return array.cast(pa.timestamp("us"))
        if kind in _CAST_TARGETS and not pa.types.is_nested(array.type):
            return array.cast(_CAST_TARGETS[kind])
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, NotTemporal):
        pass
    rows = range(first_row, first_row + len(array))
    return array_of([_plain(value) for value in array.to_pylist()], kind, table, field.name, rows)


def _from_text(array: pa.Array, kind: Kind) -> pa.Array:
    if kind in TEMPORAL:
        return TEMPORAL[kind](array)
    if kind is Kind.BOOLEAN:
        return pc.utf8_lower(array).cast(pa.bool_())
    cast = array.cast(_CAST_TARGETS[kind])
    return tighten(cast) if kind is Kind.DECIMAL else cast


def _plain(value: object) -> object:
    """A value of CSV text or an Arrow scalar as the JSON value it stands for."""
    if isinstance(value, (dict, list, tuple)):
        return json_text(value)
    return value
