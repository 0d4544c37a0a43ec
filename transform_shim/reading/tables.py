"""A table in the form that transform() asks for.

================= ==============================================================================
form              what it is
================= ==============================================================================
``pandas``        DataFrame with ``attrs["source_metadata"]``; the default
``arrow``         pyarrow.Table; the schema's metadata carries the source metadata
``arrow_reader``  pyarrow.RecordBatchReader, read as it is consumed, once
``polars``        polars.DataFrame
``polars_lazy``   polars.LazyFrame over the file: collected with ``engine="streaming"`` it needs no memory for the table
``duckdb``        DuckDB relation over the file; every query reads it anew
================= ==============================================================================
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import orjson
import pandas as pd
import pyarrow as pa

from transform_shim.errors import InputInvalid, ShimError
from transform_shim.manifest import ATTRS_KEY
from transform_shim.progress import Progress, Report
from transform_shim.reading.source import TableSource
from transform_shim.reading.stream import ArrowStream
from transform_shim.reading.topandas import frame_of
from transform_shim.reading.unify import unify

__all__ = ["FORMS", "Form", "LoadedTable", "load_table"]

Form = Literal["pandas", "arrow", "arrow_reader", "polars", "polars_lazy", "duckdb"]


class LoadedTable:
    """A table on its way to user code; ``rows`` counts what has been read of it so far."""

    def __init__(self, source: TableSource, report: Report | None = None) -> None:
        self.source = source
        self.progress = Progress(report, "read", source.file.alias)
        self.value: Any = None
        #: What went wrong while the table was read on demand.
        self.failure: ShimError | None = None

    @property
    def rows(self) -> int:
        """Rows read; a stream that is gone through twice counts once."""
        return self.progress.rows

    def stream(self, metadata: dict[bytes, bytes] | None = None) -> ArrowStream:
        """The table, to be read on demand."""

        def note(error: ShimError) -> None:
            self.failure = error

        return ArrowStream(self.source, self.progress, metadata, note)


def load_table(source: TableSource, form: Form, report: Report | None = None) -> LoadedTable:
    """Read a table, or open it for reading on demand, in the given form.

    Raises
    ------
    InputInvalid
        If the file is damaged or contradicts its manifest; for the lazy forms this surfaces while they are consumed.
    """
    table = LoadedTable(source, report)
    table.value = FORMS[form](table)
    return table


def _collect(table: LoadedTable) -> tuple[list[list[pa.Array] | None], int]:
    """All arrays of each column, and the number of rows."""
    file = table.source.select()
    columns: list[list[pa.Array] | None] = [[] for _ in file.fields]
    for block in file.blocks():
        for parts, array in zip(columns, block.arrays, strict=True):
            parts.append(array)  # type: ignore[union-attr]
        table.progress.advance(block.rows, block.end_bytes)
    table.progress.finish()
    return columns, table.progress.rows


def _taker(table: LoadedTable, columns: list[list[pa.Array] | None]) -> Callable[[int], Any]:
    source = table.source

    def take(index: int) -> Any:
        parts, field = columns[index], source.fields[index]
        columns[index] = None
        kind = source.kind(field)
        try:
            column = unify(parts or (), kind) if kind else pa.chunked_array(_same_type(parts or []))
        except pa.ArrowInvalid as error:
            raise InputInvalid(source.file.alias, f"no type holds all values ({error})", column=field.name) from None
        return column, kind

    return take


def _same_type(parts: list[pa.Array]) -> list[pa.Array]:
    return parts or [pa.nulls(0)]


def _pandas(table: LoadedTable) -> pd.DataFrame:
    columns, rows = _collect(table)
    frame = frame_of([field.name for field in table.source.fields], _taker(table, columns), rows)
    if table.source.metadata is not None:
        frame.attrs[ATTRS_KEY] = table.source.metadata
    return frame


def _arrow(table: LoadedTable) -> pa.Table:
    columns, _ = _collect(table)
    take = _taker(table, columns)
    fields = table.source.fields
    arrays = [take(index)[0] for index in range(len(fields))]
    result = pa.Table.from_arrays(arrays, names=[field.name for field in fields])
    return result.replace_schema_metadata(_schema_metadata(table.source))


def _schema_metadata(source: TableSource) -> dict[bytes, bytes] | None:
    metadata = source.metadata
    return None if metadata is None else {ATTRS_KEY.encode(): orjson.dumps(metadata, default=str)}


def _arrow_reader(table: LoadedTable) -> pa.RecordBatchReader:
    stream = table.stream(_schema_metadata(table.source))
    return pa.RecordBatchReader.from_batches(stream.schema, stream.batches())


def _polars(table: LoadedTable) -> Any:
    return sys.modules["polars"].from_arrow(_arrow(table).replace_schema_metadata(None))


def _polars_lazy(table: LoadedTable) -> Any:
    """A scan over our own reader: polars pushes the columns it needs, the filter and the row limit down to it."""
    polars = sys.modules["polars"]
    from polars.io.plugins import register_io_source  # already imported by the user's script, as is polars

    stream = table.stream()
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


def _duckdb(table: LoadedTable) -> Any:
    duckdb = sys.modules["duckdb"]
    # it takes every kernel for a notebook, and would draw a bar into the log of a job that takes more than two seconds
    duckdb.execute("set enable_progress_bar = false")
    return duckdb.from_arrow(table.stream())


FORMS: dict[Form, Callable[[LoadedTable], Any]] = {
    "pandas": _pandas,
    "arrow": _arrow,
    "arrow_reader": _arrow_reader,
    "polars": _polars,
    "polars_lazy": _polars_lazy,
    "duckdb": _duckdb,
}
