"""Multipart requests with tables as files: parts are written to the job's upload directory while they arrive.

=====================  ==================================================================
part                   content
=====================  ==================================================================
``request``            the JSON object, as in a request without files
``table:NAME``         the data of the table NAME; its format by the file name's ending,
                       else by ``data_format``
``manifest:NAME``      its manifest
=====================  ==================================================================
"""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from collections.abc import Coroutine
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from gateway.core.async_files import DISK_FULL, SMALL_BYTES
from gateway.core.errors import BadRequest, DiskFull, GatewayError
from gateway.core.formats import ENDINGS, PACKED_ENDINGS, DataFormat
from gateway.core.job import UploadSource
from gateway.core.settings import Settings
from gateway.core.uploads import Uploads
from gateway.http.bodies.multipart import MultipartParser, PartBegins, PartData, PartEnds, Piece
from gateway.http.bodies.receivers import too_large
from gateway.http.schemas.strict_json import parse_object
from gateway.http.schemas.to_job import Received, ReceivedTable

log = logging.getLogger(__name__)

PACKED = frozenset({*PACKED_ENDINGS, ".zip", ".bz2", ".xz"})
WRITE_BYTES = 1 << 20


class UploadFailed(GatewayError):
    """The gateway could not store the files of a request."""

    retryable = True


def format_of(filename: str) -> DataFormat | None:
    """Return the format of a file by the ending of its name, if the ending is known.

    Raises
    ------
    BadRequest
        The file is compressed; as a table it would fail later with a message about invalid text.
    """
    ending = PurePosixPath(filename.lower()).suffix
    if ending in PACKED:
        raise BadRequest(f"the file {filename[:60]!r} is compressed; send tables uncompressed", field="multipart")
    return ENDINGS.get(ending)


class MultipartBody:
    """Receives a multipart body; tables go to numbered files, so that no text of the caller becomes a path."""

    setting = "MAX_UPLOAD_BYTES"

    def __init__(self, boundary: bytes, settings: Settings) -> None:
        self.cap_bytes = settings.max_upload_bytes
        self._json_cap_bytes = settings.max_body_bytes
        self._parser = MultipartParser(boundary)
        self._uploads = Uploads(settings.state_dir / "uploads" / uuid.uuid4().hex)
        self._is_transferred = False
        self._tables: dict[str, ReceivedTable] = {}
        self._json: bytearray | None = None
        self._collecting = False
        self._file: BinaryIO | None = None
        self._pending = bytearray()
        self._taken_bytes = 0
        self._files = 0
        self._closed = False
        # a write in its thread must end before the directory is removed
        self._lock = asyncio.Lock()

    async def feed(self, chunk: bytes) -> None:
        # returns when the bytes are written, which slows a fast sender down to the speed of the disk
        self._taken_bytes += len(chunk)
        if self._taken_bytes > self.cap_bytes:
            raise too_large(self.cap_bytes, self.setting)
        async with self._lock:
            if self._closed:
                return
            try:
                for piece in self._parser.feed(chunk):
                    await self._take(piece)
            except OSError as error:
                log.error("an upload could not be written: %s", error)
                if error.errno in DISK_FULL:
                    raise DiskFull("the disk of STATE_DIR is too full for the files of the request") from None
                raise UploadFailed("the files that came with the request could not be stored") from None

    @property
    def json_bytes(self) -> int:
        return len(self._json or b"")

    def value(self) -> dict[str, Any]:
        """Return the JSON part.

        Raises
        ------
        BadRequest
            The body is incomplete, or its part ``request`` is missing or not a JSON object.
        """
        self._parser.finish()
        if self._json is None:
            raise BadRequest("the multipart body has no part named request", field="request")
        return parse_object(bytes(self._json))

    def received(self) -> Received:
        """Return the tables; `close` removes their files unless `transfer_ownership` is called."""
        return Received(dict(self._tables))

    def uploads(self) -> Uploads:
        """Return the handle of the files."""
        return self._uploads

    def transfer_ownership(self) -> None:
        """Leave the directory to the job."""
        self._is_transferred = True

    def close(self) -> Coroutine[Any, Any, None]:
        return self._close()

    async def _close(self) -> None:
        async with self._lock:
            self._closed = True
            self._json = None
            if self._file is not None:
                self._file.close()
                self._file = None
            if not self._is_transferred and self._files:
                await asyncio.to_thread(self._uploads.remove)

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
            raise too_large(self._json_cap_bytes, "MAX_BODY_BYTES")
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
        if (known.data if kind == "table" else known.manifest) is not None:
            raise BadRequest(f"the part {name[:60]} came twice", field="multipart")
        source = self._open(kind)
        if kind == "table":
            self._tables[alias] = ReceivedTable(source, known.manifest, format_of(filename))
        else:
            self._tables[alias] = ReceivedTable(known.data, source, known.data_format)

    def _open(self, kind: str) -> UploadSource:
        directory = self._uploads.directory
        if not self._files:
            directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.mkdir(mode=0o700)
        source = UploadSource(f"{self._files}.{kind}")
        self._files += 1
        descriptor = os.open(
            self._uploads.path(source.name), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644
        )
        self._file = os.fdopen(descriptor, "wb", buffering=0)
        return source

    async def _write_out(self) -> None:
        if self._file is not None and self._pending:
            data, self._pending = self._pending, bytearray()
            if len(data) <= SMALL_BYTES:
                _write_all(self._file, data)
            else:
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
