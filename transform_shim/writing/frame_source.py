"""Any frame that transform() may return, as one class: named, typed columns that come in batches.

pandas DataFrames (also of a subclass), pyarrow Tables, RecordBatches and RecordBatchReaders, Polars DataFrames and
LazyFrames, DuckDB relations, and any other class with the Arrow PyCapsule interface. Lazy ones are computed
while they are written.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import pandas as pd
import pyarrow as pa

from transform_shim.core.errors import InvalidReturn, OutputInvalid, ResultFailed, ShimError
from transform_shim.core.manifest import ATTRS_KEY, Field, fields_of
from transform_shim.writing.arrow_types import canonical, canonical_type
from transform_shim.writing.column_names import text_names
from transform_shim.writing.dropped_index import check_index
from transform_shim.writing.from_pandas import PlannedColumn, plan_column
from transform_shim.writing.object_columns import MixedColumns
from transform_shim.writing.unsupported_types import refuse_duckdb_types, refuse_polars_types

__all__ = ["Batch", "OutputFrame", "is_frame", "open_frame"]

#: Rows of a batch, fewer where rows are wide. With half as many, 101 MB of JSON lines take a fifth more processor time;
#: with twice as many a tenth less, but 61 MB of memory instead of 45.
_BATCH_ROWS = 16_384
_BATCH_BYTES = 16 << 20
#: Rows of a batch of a lazy query. Polars keeps several, whatever their size: with 32,768 rows of 1 kB that is 150 MB.
_LAZY_ROWS = 8192
#: Rows of a sample, and rows from which on several are taken.
_SAMPLE_ROWS, _MANY_ROWS = 64, 1024
#: Assumed size of a cell as text.
_CELL_BYTES = 12


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows of a frame; ``load`` makes canonical arrays of them, in any thread.

    Texts of pandas 2 may come as a dictionary; see `transform_shim.core.shared_objects`.
    """

    first_row: int
    rows: int
    load: Callable[[], list[pa.Array]]


@dataclass(frozen=True, slots=True)
class OutputFrame:
    """Columns to be written: ``batches`` yields, once, the parts of the frame in order.

    ``sources`` are the fields that columns of these names may carry their types from; ``metadata`` is the source
    metadata that the frame carries itself.
    """

    names: list[str]
    types: list[pa.DataType]
    batches: Iterator[Batch]
    sources: Mapping[str, Field] = field(default_factory=dict)
    metadata: Mapping[str, Any] | None = None


def is_frame(value: object) -> bool:
    """Return whether `value` is a frame that can be written.

    The Arrow interface counts only when the class itself offers it (objects that answer to every name are not taken
    in), and a pandas or Polars Series or an Arrow array offers a column, not a table.
    """
    kind = type(value)
    if isinstance(value, pd.DataFrame) or _is_lazy_polars(value):
        return True
    if isinstance(value, (pa.RecordBatch, pa.Table, pa.RecordBatchReader)):
        return True
    if not any("__arrow_c_stream__" in vars(base) for base in kind.__mro__) or isinstance(value, type):
        return False
    return not isinstance(value, (pd.Series, pa.ChunkedArray, pa.Array)) and not _is_polars(value, "Series")


def open_frame(
    value: Any, inputs: Sequence[Mapping[str, Any]], *, table_rows: int = 0, mixed_columns: MixedColumns = "text"
) -> OutputFrame:
    """Open a returned frame; its rows are read as they are written.

    Parameters
    ----------
    value : frame
        The return value of transform().
    inputs : sequence of mapping
        The source metadata of the tables it was given. Only for frames that carry none of their own across
        operations (all but pandas and Arrow tables): there, a column that kept its name is taken to have kept its type
        if it fits.
    table_rows : int
        Rows of the largest of these tables.
    mixed_columns : {'text', 'error'}
        The treatment of an object column with values of several types.

    Raises
    ------
    InvalidReturn
        If it is not a frame.
    OutputInvalid
        If its names or types cannot be written.
    ResultFailed
        If a lazy frame cannot be computed; also while the batches are taken.
    """
    if not is_frame(value):
        raise InvalidReturn(f"Transform function must return a pandas DataFrame, got {_class_text(value)}")
    if isinstance(value, pd.DataFrame):
        return _from_pandas(value, table_rows, mixed_columns)
    if _is_lazy_polars(value):
        return _from_lazy_polars(value, inputs)
    with _users_code():
        try:
            reader, metadata = _reader(value)
        except (TypeError, ValueError, pa.ArrowInvalid) as error:
            problem = f"Transform function must return a pandas DataFrame, got {_class_text(value)} ({error})"
            raise InvalidReturn(problem) from None
    carried = [metadata] if metadata is not None else inputs
    return _from_batches(reader.schema, _computed(reader), carried)


@contextlib.contextmanager
def _users_code() -> Iterator[None]:
    """Mark what the user's code or query raises, so that it is not taken for a fault of ours."""
    try:
        yield
    except ShimError:
        raise
    except Exception as error:
        raise ResultFailed(f"{type(error).__name__}: {error}") from error


def _computed(parts: Iterable[Any]) -> Iterator[Any]:
    """Yield the parts of a result that the user's code or query makes on demand."""
    with _users_code():
        parts = iter(parts)
    while True:
        with _users_code():
            try:
                part = next(parts)
            except StopIteration:
                return
        yield part


def _class_text(value: object) -> str:
    try:
        return str(type(value))
    except Exception:  # a metaclass of the user's
        return "an object"


def _reader(value: Any) -> tuple[pa.RecordBatchReader, Mapping[str, Any] | None]:
    if isinstance(value, pa.RecordBatchReader):
        reader = value
    elif isinstance(value, pa.RecordBatch):
        reader = pa.RecordBatchReader.from_batches(value.schema, [value])
    elif isinstance(value, pa.Table):
        reader = value.to_reader(max_chunksize=_BATCH_ROWS)
    elif type(value).__module__.split(".")[0] in ("duckdb", "_duckdb") and hasattr(value, "to_arrow_reader"):
        refuse_duckdb_types(zip(value.columns, value.types, strict=True))
        reader = value.to_arrow_reader(_BATCH_ROWS)  # its PyCapsule interface returns the whole result at once
    else:
        if _is_polars(value, "DataFrame"):
            refuse_polars_types(value.schema.items())
        reader = pa.RecordBatchReader.from_stream(value)
    return reader, _carried_by_schema(reader.schema)


def _carried_by_schema(schema: pa.Schema) -> Mapping[str, Any] | None:
    """Return the source metadata that an Arrow table of ours kept through the user's operations."""
    raw = (schema.metadata or {}).get(ATTRS_KEY.encode())
    try:
        value = None if raw is None else orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _from_batches(schema: pa.Schema, batches: Iterable[Any], carried: Sequence[Mapping[str, Any]]) -> OutputFrame:
    names = text_names(schema.names)
    if not names and any(batch.num_rows for batch in batches):
        raise OutputInvalid("the table has rows and no columns")
    types = [canonical_type(kind, name) for kind, name in zip(schema.types, names, strict=True)]

    def parts() -> Iterator[Batch]:
        row = 0
        for batch in batches:
            step = _rows_of(batch.nbytes, batch.num_rows)
            for start in range(0, batch.num_rows, step):
                part = batch.slice(start, step)
                yield Batch(row, part.num_rows, functools.partial(_canonical_columns, part, names, types, row))
                row += part.num_rows

    metadata = carried[0] if len(carried) == 1 else None
    return OutputFrame(names, types, parts(), _unambiguous(carried), metadata)


def _from_lazy_polars(value: Any, inputs: Sequence[Mapping[str, Any]]) -> OutputFrame:
    """Run the query on the streaming engine and take its batches as they come."""
    polars = sys.modules["polars"]
    with _users_code():
        own_schema = value.collect_schema()
    refuse_polars_types(own_schema.items())
    schema = polars.DataFrame(schema=own_schema).to_arrow().schema
    with _users_code():
        frames = value.collect_batches(chunk_size=_LAZY_ROWS, maintain_order=True, engine="streaming")
    batches = (batch for frame in _computed(frames) for batch in frame.to_arrow().cast(schema).to_batches())
    return _from_batches(schema, batches, inputs)


def _from_pandas(frame: pd.DataFrame, table_rows: int, mixed_columns: MixedColumns) -> OutputFrame:
    check_index(frame, table_rows)
    names = text_names(frame.columns)
    metadata = frame.attrs.get(ATTRS_KEY)
    metadata = metadata if isinstance(metadata, Mapping) else None
    sources = {entry.name: entry for entry in fields_of(metadata)}
    # items(): each frame.iloc[:, i] would copy the attributes, which hold the source's whole manifest
    columns = [
        plan_column(name, series, sources.get(name), mixed_columns)
        for name, (_, series) in zip(names, frame.items(), strict=True)
    ]
    rows = len(frame)

    def parts() -> Iterator[Batch]:
        step = _rows_of(_sampled_bytes(columns, rows), rows)
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            yield Batch(start, stop - start, functools.partial(_slices, columns, start, stop))

    return OutputFrame(names, [column.type for column in columns], parts(), sources, metadata)


def _slices(columns: Sequence[PlannedColumn], start: int, stop: int) -> list[pa.Array]:
    return [column.slice(start, stop) for column in columns]


def _canonical_columns(
    part: pa.RecordBatch, names: Sequence[str], types: Sequence[pa.DataType], first_row: int
) -> list[pa.Array]:
    return [
        canonical(column, name, kind, first_row) for column, name, kind in zip(part.columns, names, types, strict=True)
    ]


def _sampled_bytes(columns: Sequence[PlannedColumn], rows: int) -> int:
    """Estimate the bytes of all rows as Arrow from a few of them; categories are small only in pandas.

    In many rows, texts may be null or short at first: the largest of several places counts.
    """
    sample = min(rows, _SAMPLE_ROWS)
    starts = (0, rows // 3, 2 * rows // 3, rows - sample) if rows >= _MANY_ROWS else (0,)
    sampled_bytes = [sum(int(column.slice(start, start + sample).nbytes) for column in columns) for start in starts]
    return max(sampled_bytes) * rows // max(sample, 1)


def _rows_of(size_bytes: int, rows: int) -> int:
    """Return the rows of a batch of bounded size."""
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES * rows // max(size_bytes, rows * _CELL_BYTES, 1)))


def _unambiguous(carried: Sequence[Mapping[str, Any]]) -> dict[str, Field]:
    """Return fields by name, without names that two tables give different types."""
    found: dict[str, Field] = {}
    ambiguous: set[str] = set()
    for metadata in carried:
        for entry in fields_of(metadata):
            if found.setdefault(entry.name, entry).base_type != entry.base_type:
                ambiguous.add(entry.name)
    return {name: entry for name, entry in found.items() if name not in ambiguous}


def _is_polars(value: object, name: str) -> bool:
    polars = sys.modules.get("polars")
    kind: Callable[..., Any] | None = getattr(polars, name, None)
    return isinstance(kind, type) and isinstance(value, kind)


def _is_lazy_polars(value: object) -> bool:
    return _is_polars(value, "LazyFrame")
