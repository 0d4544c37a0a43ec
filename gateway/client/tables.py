"""The tables of a request as a multipart body: files as they are, data frames as Arrow streams."""

from __future__ import annotations

import json
import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from gateway.core.formats import ENDINGS
from gateway.table_files.kinds import kind_of
from gateway.table_files.readable import ReadableFiles

CHUNK_BYTES = 1 << 20


class Frame(Protocol):
    """A data frame of any library with the Arrow C stream interface: pandas, Polars, pyarrow, DuckDB."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Return a capsule with a stream of record batches."""


@dataclass(frozen=True, slots=True)
class _Part:
    head: bytes
    content: bytes | Path
    size_bytes: int


class TableFiles:
    """The tables of one request; use it in a ``with`` statement, which removes the files of data frames.

    Parameters
    ----------
    tables : mapping
        Name to a file or a data frame. A file that no job reads, such as a workbook, is converted before anything is
        sent.
    manifests : mapping
        Name to a file or the manifest itself.
    """

    def __init__(
        self,
        tables: Mapping[str, str | Path | Frame],
        manifests: Mapping[str, str | Path | Mapping[str, Any]],
    ) -> None:
        self._boundary = f"transform-{uuid.uuid4().hex}"
        self._tables = tables
        self._manifests = manifests
        self._parts: list[_Part] = []
        self._directory: tempfile.TemporaryDirectory[str] | None = None

    @property
    def content_type(self) -> str:
        return f"multipart/form-data; boundary={self._boundary}"

    def __enter__(self) -> Self:
        try:
            for number, (name, table) in enumerate(self._tables.items()):
                if isinstance(table, str | os.PathLike):
                    path = self._readable(Path(table))
                else:
                    path = self._written(number, table)
                self._add_file(f"table:{name}", path, ENDINGS[path.suffix.lower()])
            for name, manifest in self._manifests.items():
                if isinstance(manifest, Mapping):
                    self._add(f"manifest:{name}", "manifest.json", json.dumps(manifest).encode())
                else:
                    self._add_file(f"manifest:{name}", Path(manifest), "json")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._directory is not None:
            self._directory.cleanup()

    def __bool__(self) -> bool:
        return bool(self._parts)

    def multipart_bytes(self, request: bytes) -> int:
        """Return the length of the whole body, for its Content-Length."""
        parts = [self._part("request", None, request, len(request)), *self._parts]
        return sum(len(part.head) + part.size_bytes + 2 for part in parts) + len(self._end)

    def multipart(self, request: bytes) -> Iterator[bytes]:
        """Yield the body: the JSON part, then each file in pieces.

        Raises
        ------
        OSError
            A file cannot be read, or became shorter after its size was read.
        """
        for part in (self._part("request", None, request, len(request)), *self._parts):
            yield part.head
            if isinstance(part.content, bytes):
                yield part.content
            else:
                yield from _pieces(part.content, part.size_bytes)
            yield b"\r\n"
        yield self._end

    @property
    def _end(self) -> bytes:
        return f"--{self._boundary}--\r\n".encode()

    def _add_file(self, name: str, path: Path, ending: str) -> None:
        if not path.is_file():
            raise FileNotFoundError(2, "No such file", str(path))
        # the file name is needed for the format only; the caller's path is not sent
        self._parts.append(self._part(name, f"table.{ending}", path, path.stat().st_size))

    def _add(self, name: str, filename: str, content: bytes) -> None:
        self._parts.append(self._part(name, filename, content, len(content)))

    def _part(self, name: str, filename: str | None, content: bytes | Path, size_bytes: int) -> _Part:
        disposition = f'form-data; name="{_escaped(name)}"'
        if filename is not None:
            disposition += f'; filename="{filename}"'
        head = f"--{self._boundary}\r\nContent-Disposition: {disposition}\r\n\r\n"
        return _Part(head.encode(), content, size_bytes)

    def _place(self) -> Path:
        if self._directory is None:
            self._directory = tempfile.TemporaryDirectory(prefix="transform-client-")
        return Path(self._directory.name)

    def _readable(self, path: Path) -> Path:
        if kind_of(path).is_plain:
            return path
        place = self._place() / f"{len(self._parts)}"
        place.mkdir()
        return ReadableFiles(place).readable(path)

    def _written(self, number: int, frame: Frame) -> Path:
        """Write a data frame as an Arrow stream, which keeps the types, unlike CSV and JSON."""
        if not hasattr(frame, "__arrow_c_stream__"):
            raise TypeError(f"a table must be a path or a data frame, not {type(frame).__name__}")
        import pyarrow as pa  # needed for data frames only

        labels: Any = getattr(frame, "columns", None)
        if getattr(labels, "nlevels", 1) > 1:  # of pandas; named as in the result of a job
            names = ["_".join(part for part in map(str, label) if part) for label in labels]
            frame = frame.set_axis(names, axis=1)  # type: ignore[attr-defined]
        path = self._place() / f"{number}.arrow"
        try:
            reader = pa.RecordBatchReader.from_stream(frame)
        except OverflowError:  # from objects of pandas, without the name of the column
            raise TypeError(
                f"{_beyond_64_bits(frame)} has integers beyond 64 bits: make them decimal.Decimal"
            ) from None
        schema = reader.schema
        for field in schema:  # pandas gives a period as its number of months, days and so on since 1970
            if isinstance(field.type, pa.BaseExtensionType) and field.type.extension_name.startswith("pandas."):
                kind = field.type.extension_name.removeprefix("pandas.")
                raise TypeError(f"column {field.name!r} has the type {kind}: make it text with .astype(str)")
        # pandas gives an index without a name, such as that of a filtered frame, as a column of this name
        levels = (schema.pandas_metadata or {}).get("index_columns", ())
        unnamed = {f"__index_level_{level}__" for level in range(len(levels))}
        places = [place for place, name in enumerate(schema.names) if name not in unnamed]
        schema = pa.schema([schema.field(place) for place in places])
        # a stream, because a file has one dictionary for all batches, and tables may be of several
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
            for batch in reader:
                writer.write_batch(batch.select(places))
        return path


def _pieces(path: Path, size_bytes: int) -> Iterator[bytes]:
    left = size_bytes
    with path.open("rb") as file:
        while left:
            piece = file.read(min(CHUNK_BYTES, left))
            if not piece:
                raise OSError(5, "became shorter while it was sent", str(path))
            left -= len(piece)
            yield piece


def _beyond_64_bits(frame: Any) -> str:
    import pyarrow as pa

    for name, column in frame.items():
        try:
            pa.array(column, from_pandas=True)
        except OverflowError:
            return f"column {name!r}"
    return "a column"


def _escaped(text: str) -> str:
    """Escape a form name like browsers do (HTML standard, multipart/form-data encoding)."""
    return text.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
