"""The output file and its manifest, written as the frame's batches come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from transform_shim.core.formats import FORMATS, DataFormat
from transform_shim.core.manifest import write_manifest
from transform_shim.core.parallel_map import ordered_map
from transform_shim.core.progress import Progress
from transform_shim.writing.column_types import ColumnFacts, facts_of, output_field
from transform_shim.writing.frame_source import Batch, OutputFrame
from transform_shim.writing.hashing_file import HashingFile

__all__ = ["Encoder", "Written", "write_output"]


@dataclass(frozen=True, slots=True)
class Written:
    """The facts about the output file; of each column its name and base type."""

    rows: int
    columns: tuple[tuple[str, str], ...]
    output_bytes: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class _Part:
    """One batch, encoded: ``data`` is bytes, or a record batch for the columnar formats."""

    data: Any
    rows: int
    facts: list[ColumnFacts]


class Encoder(Protocol):
    """The writer of a format; its class is called with the frame and the open file."""

    def encode(self, arrays: list[pa.Array], first_row: int) -> Any: ...

    def write(self, data: Any) -> None: ...

    def close(self) -> None: ...


def write_output(
    frame: OutputFrame,
    data_format: DataFormat,
    output_path: Path,
    manifest_path: Path,
    progress: Progress,
    check: Callable[[], None] | None = None,
    *,
    checksum: bool = True,
) -> Written:
    """Write data and manifest; after an error neither file is left.

    A frame without columns has no rows either. An empty frame becomes an empty JSON lines file: Metabase's loader
    takes a blank line for a row of nulls. `check` is called after the last row and may raise.
    Without `checksum` the SHA-256 is not computed.

    Raises
    ------
    OutputInvalid
        If a value cannot be written.
    OSError
        If the file cannot be written (EFBIG: larger than the limit).
    """
    with HashingFile(output_path, is_hashed=checksum) as sink:
        facts = [ColumnFacts() for _ in frame.names]
        encoder: Encoder = FORMATS[data_format].load_writer()(frame, sink)
        for part in _encoded(frame, encoder) if frame.names else ():
            encoder.write(part.data)
            facts = [known | new for known, new in zip(facts, part.facts, strict=True)]
            progress.advance(part.rows, sink.written_bytes)
        if check is not None:
            check()
        encoder.close()
        progress.finish()
        fields = [
            output_field(name, kind, known, frame.sources.get(name))
            for name, kind, known in zip(frame.names, frame.types, facts, strict=True)
        ]
        write_manifest(manifest_path, data_format, fields, frame.metadata)
        columns = tuple((entry["name"], entry["base_type"]) for entry in fields)
        return Written(progress.rows, columns, sink.written_bytes, sink.hexdigest())


def _encoded(frame: OutputFrame, encoder: Encoder) -> Iterator[_Part]:
    sources = [frame.sources.get(name) for name in frame.names]

    def encode(batch: Batch) -> _Part:
        arrays = batch.load()
        facts = [facts_of(array, source) for array, source in zip(arrays, sources, strict=True)]
        return _Part(encoder.encode(arrays, batch.first_row), batch.rows, facts)

    return ordered_map(encode, frame.batches)
