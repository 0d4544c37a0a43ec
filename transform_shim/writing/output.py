"""The output file and its manifest, written as the frame's batches come."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from transform_shim.manifest import write_manifest
from transform_shim.ordered import ordered_map
from transform_shim.progress import Progress
from transform_shim.request import DataFormat
from transform_shim.sink import HashingFile
from transform_shim.writing.frames import Batch, OutputFrame
from transform_shim.writing.outtypes import ColumnFacts, facts_of, output_field
from transform_shim.writing.rows import csv_header, csv_rows, json_rows

__all__ = ["Written", "write_output"]


#: What becomes lines at once. All at once, a batch of 200 columns takes 200 MB of memory instead of 105, and one of
#: texts of 1 kB 70 MB instead of 40.
_LINES_CELLS, _LINES_BYTES = 1 << 19, 4 << 20
_FEW_ROWS = 256


@dataclass(frozen=True, slots=True)
class Written:
    """What went into the output file."""

    rows: int
    fields: int
    output_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class _Part:
    """One batch, encoded: ``data`` is bytes, or a record batch for the columnar formats."""

    data: Any
    rows: int
    facts: list[ColumnFacts]


class _Encoder(Protocol):
    def encode(self, arrays: list[pa.Array], first_row: int) -> Any: ...

    def write(self, data: Any) -> None: ...

    def close(self) -> None: ...


def write_output(
    frame: OutputFrame, data_format: DataFormat, output_path: Path, manifest_path: Path, progress: Progress
) -> Written:
    """Write data and manifest; after an error neither file is left.

    A frame without columns has no rows either. An empty frame becomes an empty JSON lines file: Metabase's loader
    takes a blank line for a row of nulls.

    Raises
    ------
    OutputInvalid
        If a value cannot be written.
    OSError
        If the file cannot be written (EFBIG: larger than the limit).
    """
    with HashingFile(output_path) as sink:
        facts = [ColumnFacts() for _ in frame.names]
        encoder = _ENCODERS[data_format](frame, sink)
        for part in _encoded(frame, encoder) if frame.names else ():
            encoder.write(part.data)
            facts = [known | new for known, new in zip(facts, part.facts, strict=True)]
            progress.advance(part.rows, sink.written_bytes)
        encoder.close()
        progress.finish()
        fields = [
            output_field(name, kind, known, frame.sources.get(name))
            for name, kind, known in zip(frame.names, frame.types, facts, strict=True)
        ]
        write_manifest(manifest_path, data_format, fields, frame.metadata)
        return Written(progress.rows, len(fields), sink.written_bytes, sink.hexdigest())


def _encoded(frame: OutputFrame, encoder: _Encoder) -> Iterator[_Part]:
    sources = [frame.sources.get(name) for name in frame.names]

    def encode(batch: Batch) -> _Part:
        arrays = batch.load()
        facts = [facts_of(array, source) for array, source in zip(arrays, sources, strict=True)]
        return _Part(encoder.encode(arrays, batch.first_row), batch.rows, facts)

    return ordered_map(encode, frame.batches)


class _Lines:
    """JSON lines."""

    _render: Callable[[Sequence[str], Sequence[pa.Array], int], list[memoryview]] = staticmethod(json_rows)

    def __init__(self, frame: OutputFrame, sink: HashingFile) -> None:
        self._names, self._sink = frame.names, sink

    def encode(self, arrays: list[pa.Array], first_row: int) -> Any:
        rows, step = len(arrays[0]), _rows_at_once(arrays)
        blocks = []
        for start in range(0, rows, step):
            part = arrays if step >= rows else [array.slice(start, step) for array in arrays]
            blocks += self._render(self._names, part, first_row + start)
        return blocks

    def write(self, data: Any) -> None:
        for block in data:
            self._sink.write(block)

    def close(self) -> None:
        """Nothing follows the last row."""


def _rows_at_once(arrays: list[pa.Array]) -> int:
    """Rows whose texts, which are copied once before they are put together, lie in bounds."""
    rows = len(arrays[0])
    if rows <= _FEW_ROWS:
        return rows
    size_bytes = sum(int(array.nbytes) for array in arrays)
    return max(_FEW_ROWS, min(rows, _LINES_CELLS // len(arrays), _LINES_BYTES * rows // max(size_bytes, 1)))


class _Csv(_Lines):
    """CSV with a header line."""

    _render = staticmethod(csv_rows)

    def __init__(self, frame: OutputFrame, sink: HashingFile) -> None:
        super().__init__(frame, sink)
        if frame.names:
            sink.write(csv_header(frame.names))


class _Columnar:
    """Parquet or Arrow IPC (file form), both compressed with zstd."""

    def __init__(self, frame: OutputFrame, sink: HashingFile, open_writer: Callable[..., Any]) -> None:
        self._schema = pa.schema(list(zip(frame.names, frame.types, strict=True)))
        self._writer = open_writer(sink, self._schema)

    def encode(self, arrays: list[pa.Array], first_row: int) -> Any:
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)

    def write(self, data: Any) -> None:
        self._writer.write_batch(data)

    def close(self) -> None:
        self._writer.close()


def _parquet(frame: OutputFrame, sink: HashingFile) -> _Encoder:
    def open_writer(file: HashingFile, schema: pa.Schema) -> Any:
        return pyarrow.parquet.ParquetWriter(pa.PythonFile(file, mode="w"), schema, compression="zstd")

    return _Columnar(frame, sink, open_writer)


def _arrow(frame: OutputFrame, sink: HashingFile) -> _Encoder:
    def open_writer(file: HashingFile, schema: pa.Schema) -> Any:
        options = pyarrow.ipc.IpcWriteOptions(compression="zstd")
        return pyarrow.ipc.new_file(pa.PythonFile(file, mode="w"), schema, options=options)

    return _Columnar(frame, sink, open_writer)


_ENCODERS: dict[DataFormat, Callable[[OutputFrame, HashingFile], _Encoder]] = {
    "jsonl": _Lines,
    "csv": _Csv,
    "parquet": _parquet,
    "arrow": _arrow,
}
