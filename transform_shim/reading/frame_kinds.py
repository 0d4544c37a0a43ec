"""A table as the frame kind that transform() asks for.

================= ==============================================================================
kind              object
================= ==============================================================================
``pandas``        DataFrame with ``attrs["source_metadata"]``; the default
``arrow``         pyarrow.Table; the schema's metadata carries the source metadata
``arrow_reader``  pyarrow.RecordBatchReader, read as it is consumed, once
``polars``        polars.DataFrame
``polars_lazy``   polars.LazyFrame over the file: collected with ``engine="streaming"`` it needs no memory for the table
``duckdb``        DuckDB relation over the file; every query reads it again
================= ==============================================================================
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, get_args

import orjson
import pandas as pd
import pyarrow as pa

from transform_shim.core.decimals import arrow_decimal, engine_decimal
from transform_shim.core.errors import InputInvalid, InvalidReturn, NoType, ShimError
from transform_shim.core.manifest import ATTRS_KEY, Field
from transform_shim.core.notices import warn
from transform_shim.core.progress import Progress, Report
from transform_shim.reading.arrow_stream import ArrowStream
from transform_shim.reading.table_source import TableSource
from transform_shim.reading.to_pandas import column_values, frame_of
from transform_shim.reading.values.common_type import DecimalType, cast_to_common_type

__all__ = ["FRAME_KINDS", "FrameKind", "TableReader", "load_table", "refuse_read_reader"]

FrameKind = Literal["pandas", "arrow", "arrow_reader", "polars", "polars_lazy", "duckdb"]
FRAME_KINDS: tuple[FrameKind, ...] = get_args(FrameKind)


class TableReader:
    """Reads one table for user code; ``rows`` counts the rows that have been read so far."""

    def __init__(self, source: TableSource, report: Report | None = None) -> None:
        self.source = source
        self.progress = Progress(report, "read", source.file.alias)
        self.value: Any = None
        #: The error of a read on demand.
        self.failure: ShimError | None = None

    @property
    def rows(self) -> int:
        """Rows read; a second pass over a stream does not count."""
        return self.progress.rows

    def stream(self, decimal: DecimalType, metadata: dict[bytes, bytes] | None = None) -> ArrowStream:
        """Return the table as a stream that is read on demand; `decimal` chooses the types of decimals."""

        def note(error: ShimError) -> None:
            self.failure = error

        return ArrowStream(self.source, self.progress, decimal, metadata, note)


def load_table(source: TableSource, frame_kind: FrameKind, report: Report | None = None) -> TableReader:
    """Read a table, or open it for reading on demand, as the given frame kind.

    Raises
    ------
    InputInvalid
        If the file is damaged or contradicts its manifest; for the lazy kinds this surfaces while they are consumed.
    """
    table = TableReader(source, report)
    table.value = _READERS[frame_kind](table)
    return table


def refuse_read_reader(returned: object, tables: Iterable[TableReader]) -> None:
    """Refuse the reader of a table as a result after rows of it were read, which are gone.

    Raises
    ------
    InvalidReturn
        If it is one.
    """
    for table in tables:
        if returned is table.value and isinstance(returned, pa.RecordBatchReader) and table.rows:
            alias, rows = table.source.file.alias, f"{table.rows:,} row{'s' * (table.rows != 1)}"
            problem = f"Transform function returned the reader of table {alias!r} after {rows} of it had been read"
            way = f"a reader gives its rows once: annotate the parameter as pa.Table to use {alias} several times"
            raise InvalidReturn(problem, hint=way)


def _collect(table: TableReader) -> tuple[list[list[pa.Array] | None], int]:
    """Read all arrays of each column; return them and the number of rows."""
    file = table.source.select()
    columns: list[list[pa.Array] | None] = [[] for _ in file.fields]
    for block in file.blocks():
        for parts, array in zip(columns, block.arrays, strict=True):
            parts.append(array)  # type: ignore[union-attr]
        table.progress.advance(block.rows, block.end_bytes)
    table.progress.finish()
    return columns, table.progress.rows


def _pandas(table: TableReader) -> pd.DataFrame:
    columns, rows = _collect(table)
    fields = table.source.fields

    def take(index: int) -> Any:
        parts, field = columns[index] or [], fields[index]
        columns[index] = None
        with _naming(table.source, field):
            values, notice = column_values(parts, table.source.kind(field))
        if notice is not None:
            warn(f"Table '{table.source.file.alias}', column '{field.name}': {notice}")
        return values

    frame = frame_of([field.name for field in fields], take, rows)
    if table.source.metadata is not None:
        frame.attrs[ATTRS_KEY] = table.source.metadata
    return frame


@contextlib.contextmanager
def _naming(source: TableSource, field: Field) -> Iterator[None]:
    """Give an error about the values of a column the names of table and column."""
    try:
        yield
    except (NoType, pa.ArrowInvalid) as error:
        raise InputInvalid(source.file.alias, str(error), column=field.name) from None


def _arrow(table: TableReader, decimal: DecimalType = arrow_decimal) -> pa.Table:
    columns, _ = _collect(table)
    fields, arrays = table.source.fields, []
    for index, field in enumerate(fields):
        parts = columns[index] or []
        columns[index] = None
        with _naming(table.source, field):
            arrays.append(cast_to_common_type(parts, table.source.kind(field), decimal))
    result = pa.Table.from_arrays(arrays, names=[field.name for field in fields])
    return result.replace_schema_metadata(_schema_metadata(table.source))


def _schema_metadata(source: TableSource) -> dict[bytes, bytes] | None:
    metadata = source.metadata
    return None if metadata is None else {ATTRS_KEY.encode(): orjson.dumps(metadata, default=str)}


def _arrow_reader(table: TableReader) -> pa.RecordBatchReader:
    stream = table.stream(arrow_decimal, _schema_metadata(table.source))
    return pa.RecordBatchReader.from_batches(stream.schema, stream.batches())


def _polars(table: TableReader) -> Any:
    found = _arrow(table, engine_decimal).replace_schema_metadata(None)
    _refuse_intervals(table, found.schema)
    return sys.modules["polars"].from_arrow(found)


def _refuse_intervals(table: TableReader, schema: pa.Schema) -> None:
    """Refuse a column for Polars that it would not take, with an error about a variable of the environment."""
    for field in schema:
        if pa.types.is_interval(field.type):
            problem = "Polars has no intervals of months; annotate the parameter as pa.Table, or send them as text"
            raise InputInvalid(table.source.file.alias, problem, column=field.name)


def _polars_lazy(table: TableReader) -> Any:
    """Return a scan over our own reader; Polars pushes columns, filter and row limit down to it."""
    polars = sys.modules["polars"]
    from polars.io.plugins import register_io_source  # already imported by the user's script, as is polars

    stream = table.stream(engine_decimal)
    _refuse_intervals(table, stream.schema)
    schema = polars.from_arrow(stream.schema.empty_table()).schema

    def scan(columns: Sequence[str] | None, predicate: Any, row_limit: int | None, _: int | None) -> Iterator[Any]:
        # the filter's columns are among those wanted; of a request for none, one column still counts the rows
        names = list(columns) if columns is not None else None
        left = row_limit
        for batch in stream.batches(names or (stream.schema.names[:1] if names is not None else None)):
            frame = polars.from_arrow(pa.Table.from_batches([batch]))
            if left is not None:
                frame = frame.head(left)
                left -= frame.height
            yield frame if predicate is None else frame.filter(predicate)
            if left == 0:
                return

    return register_io_source(scan, schema=schema, is_pure=True)


def _duckdb(table: TableReader) -> Any:
    duckdb = sys.modules["duckdb"]
    # DuckDB treats every kernel as a notebook, and would draw a bar into the log of a query of more than two seconds
    with contextlib.suppress(duckdb.InvalidInputException):  # without ipywidgets it cannot draw it, and refuses this
        duckdb.execute("set enable_progress_bar = false")
    return duckdb.from_arrow(table.stream(engine_decimal))


_READERS: dict[FrameKind, Callable[[TableReader], Any]] = {
    "pandas": _pandas,
    "arrow": _arrow,
    "arrow_reader": _arrow_reader,
    "polars": _polars,
    "polars_lazy": _polars_lazy,
    "duckdb": _duckdb,
}
