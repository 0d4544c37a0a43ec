"""A table as a stream of record batches of one schema, in bounded memory.

A stream must name its types before the first row. Most follow from the manifest. It does not say how many digits a
decimal column has, whether a ``numeric`` column of whole numbers exceeds 64 bits, and whether fractions of a second
reach nanoseconds; so a first pass reads the columns whose database type leaves that open.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from transform_shim.core.base_types import Kind
from transform_shim.core.errors import InputInvalid, NoType, ShimError
from transform_shim.core.manifest import Field
from transform_shim.core.progress import Progress
from transform_shim.reading.table_source import TableSource
from transform_shim.reading.values.common_type import DecimalType, common_type

__all__ = ["ArrowStream"]

#: Database types whose whole numbers fit 64 bits, and whose fractions of a second end at microseconds.
_PLAIN_TYPES = frozenset(
    {
        *("int", "int2", "int4", "int8", "int16", "int32", "int64", "integer", "bigint", "smallint", "tinyint"),
        *("mediumint", "long", "short", "serial", "bigserial", "smallserial", "uint8", "uint16", "uint32"),
        *("date", "date32", "timestamp", "timestamptz", "datetime", "smalldatetime"),
    }
)


class ArrowStream:
    """The rows of a table as record batches; each call of :meth:`batches` reads the file again.

    Has the Arrow PyCapsule interface, so that DuckDB and others can take it for a table.
    """

    def __init__(
        self,
        source: TableSource,
        progress: Progress,
        decimal: DecimalType,
        metadata: dict[bytes, bytes] | None = None,
        on_error: Callable[[ShimError], None] | None = None,
    ) -> None:
        self._source, self._progress, self._on_error = source, progress, on_error
        types = _column_types(source, decimal)
        self.schema: pa.Schema = pa.schema([(f.name, types[f.name]) for f in source.fields], metadata)
        self._passes = 0

    def batches(self, names: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Read the columns `names` (all without).

        Raises
        ------
        InputInvalid
            At the row that cannot be read, while iterating.
        """
        try:
            yield from self._batches(names)
        except ShimError as error:
            if self._on_error is not None:
                self._on_error(error)
            raise

    def _batches(self, names: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
        self._passes += 1
        is_first = self._passes == 1  # only the first pass counts rows
        file = self._source.select(names)
        schema = pa.schema([self.schema.field(f.name) for f in file.fields], self.schema.metadata)
        first_row = 1
        for block in file.blocks():
            arrays = [self._cast(array, field, first_row) for array, field in zip(block.arrays, schema, strict=True)]
            first_row += block.rows
            if is_first:
                self._progress.advance(block.rows, block.end_bytes)
            # last: a consumer may stop here
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)
        if is_first:
            self._progress.finish()

    def __arrow_c_stream__(self, requested_schema: object = None) -> Any:
        """Return a new pass over the file as an Arrow stream capsule."""
        reader = pa.RecordBatchReader.from_batches(self.schema, self.batches())
        return reader.__arrow_c_stream__(requested_schema)

    def _cast(self, array: pa.Array, field: pa.Field, first_row: int) -> pa.Array:
        try:
            return array.cast(field.type)
        except pa.ArrowInvalid as error:
            problem = f"a value from row {first_row} on does not fit {field.type} ({error})"
            raise InputInvalid(self._source.file.alias, problem, column=field.name) from None


def _column_types(source: TableSource, decimal: DecimalType) -> dict[str, pa.DataType]:
    types: dict[str, pa.DataType] = {}
    unknown: list[Field] = []
    for field in source.fields:
        kind = source.kind(field)
        if kind is None or _is_open(kind, field):
            unknown.append(field)
        else:
            types[field.name] = common_type((), kind, decimal)
    if unknown:
        types.update(_looked_up(source, unknown, decimal))
    return types


def _is_open(kind: Kind, field: Field) -> bool:
    if kind is Kind.DECIMAL:
        return True
    return kind in (Kind.INTEGER, Kind.NUMBER, Kind.DATETIME, Kind.INSTANT) and field.database_type not in _PLAIN_TYPES


def _looked_up(source: TableSource, fields: list[Field], decimal: DecimalType) -> dict[str, pa.DataType]:
    """Return the types that hold all values of these columns, from one pass over them."""
    found: list[set[pa.DataType]] = [set() for _ in fields]
    blocks = source.select([field.name for field in fields]).blocks()
    if all(source.kind(field) is None for field in fields):
        blocks = itertools.islice(blocks, 1)  # a columnar file has one type per column
    for block in blocks:
        for field, types, array in zip(fields, found, block.arrays, strict=True):
            if array.null_count < len(array) or source.kind(field) is None:
                types.add(array.type)
    chosen = {}
    for field, types in zip(fields, found, strict=True):
        try:
            chosen[field.name] = common_type(types, source.kind(field), decimal)
        except NoType as error:
            raise InputInvalid(source.file.alias, str(error), column=field.name) from None
    return chosen
