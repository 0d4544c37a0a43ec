"""A table that has been parsed once: its blocks in a file that needs no parsing.

`run --watch` has one written for each large text file (`transform_shim.reading.parse_table`), and jobs read it as an
Arrow file (`transform_shim.reading.columnar.arrow_reader`). Blocks of one column may differ in type, so
each is an Arrow stream of its own, behind one without rows that names the fields.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc

from transform_shim.core.errors import InputInvalid
from transform_shim.core.manifest import Field
from transform_shim.core.table_file import TableFile
from transform_shim.reading.values.column_blocks import ColumnBlock

__all__ = ["MAGIC", "ParsedTable", "parsed_fields", "write_parsed"]

MAGIC = b"TRANSFORM-PARSED"
_FIELDS_KEY = b"fields"


def write_parsed(fields: Sequence[Field], blocks: Iterable[ColumnBlock], path: Path) -> None:
    """Write the blocks of a table with these fields."""
    header = json.dumps([[field.name, field.base_type, dict(field.raw)] for field in fields])
    with pa.OSFile(str(path), "wb") as file:
        file.write(MAGIC)
        _write(file, [], [], {_FIELDS_KEY: header.encode()})
        for block in blocks:
            _write(file, block.arrays, [field.name for field in fields], {b"rows": str(block.rows).encode()})


def _write(file: pa.NativeFile, arrays: list[pa.Array], names: list[str], metadata: dict[bytes, bytes]) -> None:
    batch = pa.RecordBatch.from_arrays(arrays, names=names).replace_schema_metadata(metadata)
    with pyarrow.ipc.new_stream(file, batch.schema) as stream:
        stream.write_batch(batch)


def parsed_fields(file: TableFile) -> tuple[Field, ...] | None:
    """Return the fields of a parsed table; None if the file is not one.

    Raises
    ------
    InputInvalid
        The file is damaged.
    """
    with file.data_path.open("rb") as start:
        if start.read(len(MAGIC)) != MAGIC:
            return None
    with _readable(file), pa.memory_map(str(file.data_path)) as source:
        source.seek(len(MAGIC))
        schema = pyarrow.ipc.open_stream(source).schema
        return tuple(Field(*entry) for entry in json.loads(schema.metadata[_FIELDS_KEY]))


@contextlib.contextmanager
def _readable(file: TableFile) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowInvalid, OSError, KeyError, TypeError, ValueError, StopIteration) as error:
        if getattr(error, "errno", None) is not None:  # of the disk; Arrow's own about a file that is cut have none
            raise
        raise InputInvalid(file.alias, f"not readable as arrow ({error})") from None


class ParsedTable:
    """The columns of a parsed table, in the order of `fields`."""

    def __init__(self, file: TableFile, fields: Sequence[Field]) -> None:
        self.file, self.fields = file, tuple(fields)

    def blocks(self) -> Iterator[ColumnBlock]:
        """Yield the blocks that were written.

        Raises
        ------
        InputInvalid
            The file is damaged.
        """
        # not mapped: the pages of a mapped file would not count as the job's memory
        with _readable(self.file), pa.OSFile(str(self.file.data_path)) as source:
            source.seek(len(MAGIC))
            _read(source)
            while source.tell() < source.size():
                batch = _read(source)
                batch.validate(full=True)
                arrays = [batch.column(field.name) for field in self.fields]
                yield ColumnBlock(arrays, int(batch.schema.metadata[b"rows"]), source.tell())


def _read(source: pa.NativeFile) -> pa.RecordBatch:
    """Return the only batch of the stream that begins here, and go to its end."""
    stream = pyarrow.ipc.open_stream(source)
    batch = stream.read_next_batch()
    stream.read_all()
    return batch
