"""A request whose tables come along as files: parts are written to the job's upload directory while they arrive.

=====================  ==================================================================
part                   holds
=====================  ==================================================================
``request``            the JSON object, as in a request without files
``table:NAME``         the data of the table NAME; jsonl, csv, parquet or arrow by the file
                       name's ending, else by ``data_format``
``manifest:NAME``      its manifest
=====================  ==================================================================
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import uuid
from collections.abc import Coroutine
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from gateway.errors import BadRequest, GatewayError
from gateway.http.body import parse_object
from gateway.http.build import Received, ReceivedTable
from gateway.http.intake import too_large
from gateway.http.multipart import MultipartParser, PartBegins, PartData, PartEnds, Piece
from gateway.jobs.model import DataFormat
from gateway.settings import Settings

log = logging.getLogger(__name__)

ENDINGS: dict[str, DataFormat] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
PACKED = frozenset({".gz", ".zst", ".zip", ".bz2", ".xz"})
WRITE_BYTES = 1 << 20


class UploadFailed(GatewayError):
    """The gateway's own disk did not take the files."""

    retryable = True


def format_of(filename: str) -> DataFormat | None:
    """Return the format that a file name's ending stands for, if any.

    Raises
    ------
    BadRequest
        A packed file: it would otherwise fail later, as text that is none.
    """
    ending = PurePosixPath(filename.lower()).suffix
    if ending in PACKED:
        raise BadRequest(f"the file {filename[:60]!r} is packed; send tables unpacked", field="multipart")
    return ENDINGS.get(ending)


class MultipartBody:
    """Takes a multipart body; tables go to numbered files, so no text of the caller's becomes a path."""

    def __init__(self, boundary: bytes, settings: Settings) -> None:
        self.cap_bytes = settings.max_upload_bytes
        self._json_cap_bytes = settings.max_body_bytes
        self._parser = MultipartParser(boundary)
        self._directory = settings.state_dir / "uploads" / uuid.uuid4().hex
        self._handed_on = False
        self._tables: dict[str, ReceivedTable] = {}
        self._json: bytearray | None = None
        self._collecting = False
        self._file: BinaryIO | None = None
        self._pending = bytearray()
        self._taken_bytes = 0
        self._files = 0
        self._closed = False
        # a write in its thread must end before the directory is removed under it
        self._lock = asyncio.Lock()

    async def feed(self, chunk: bytes) -> None:
        """Take the next bytes; returns when they are written, which holds a fast caller back."""
        self._taken_bytes += len(chunk)
        if self._taken_bytes > self.cap_bytes:
            raise too_large(self.cap_bytes)
        async with self._lock:
            if self._closed:
                return
            try:
                for piece in self._parser.feed(chunk):
                    await self._take(piece)
            except OSError as error:
                log.error("an upload could not be written: %s", error)
                raise UploadFailed("the files that came with the request could not be stored") from None

    @property
    def json_bytes(self) -> int:
        """Bytes of JSON that wait to be parsed."""
        return len(self._json or b"")

    def value(self) -> dict[str, Any]:
        """Return the JSON part.

        Raises
        ------
        BadRequest
        """
        self._parser.finish()
        if self._json is None:
            raise BadRequest("the multipart body has no part named request", field="request")
        return parse_object(bytes(self._json))

    def received(self) -> Received:
        """Return the files; they are removed by `close` unless `hand_on` is called."""
        return Received(self._directory, dict(self._tables))

    def hand_on(self) -> None:
        """The directory has another owner now."""
        self._handed_on = True

    def close(self) -> Coroutine[Any, Any, None]:
        """Remove what nobody took over, once a write on its way has ended."""
        return self._close()

    async def _close(self) -> None:
        async with self._lock:
            self._closed = True
            self._json = None
            if self._file is not None:
                self._file.close()
                self._file = None
            if not self._handed_on and self._files:
                await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)

    async def _take(self, piece: Piece) -> None:
        match piece:
            case PartBegins(name, filename):
                self._begin(name, filename or "")
            case PartData(data) if self._collecting:
                self._collect(data)
            case PartData(data):
                self._pending += data
                if len(self._pending) >= WRITE_BYTES:
                    await self._write_out()
            case PartEnds():
                await self._end()

    def _collect(self, data: bytes) -> None:
        json = self._json if self._json is not None else bytearray()
        if len(json) + len(data) > self._json_cap_bytes:
            raise too_large(self._json_cap_bytes)
        json += data
        self._json = json

    def _begin(self, name: str, filename: str) -> None:
        kind, _, alias = name.partition(":")
        if name == "request":
            if self._json is not None:
                raise BadRequest("the part request came twice", field="request")
            self._json, self._collecting = bytearray(), True
            return
        if kind not in ("table", "manifest") or ":" not in name:
            raise BadRequest(
                f"unknown part {name[:60]!r}: expected request, table:NAME or manifest:NAME", field="multipart"
            )
        known = self._tables.get(alias, ReceivedTable())
        if (known.data_path if kind == "table" else known.manifest_path) is not None:
            raise BadRequest(f"the part {name[:60]} came twice", field="multipart")
        path = self._open(kind)
        if kind == "table":
            self._tables[alias] = ReceivedTable(path, known.manifest_path, format_of(filename))
        else:
            self._tables[alias] = ReceivedTable(known.data_path, path, known.data_format)

    def _open(self, kind: str) -> Path:
        if not self._files:
            self._directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._directory.mkdir(mode=0o700)
        path = self._directory / f"{self._files}.{kind}"
        self._files += 1
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._file = os.fdopen(descriptor, "wb", buffering=0)
        return path

    async def _write_out(self) -> None:
        if self._file is not None and self._pending:
            data, self._pending = self._pending, bytearray()
            await asyncio.to_thread(_write_all, self._file, data)

    async def _end(self) -> None:
        self._collecting = False
        if self._file is not None:
            await self._write_out()
            self._file.close()
            self._file = None


def _write_all(file: BinaryIO, data: bytearray) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
