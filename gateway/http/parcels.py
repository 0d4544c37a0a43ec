"""``/v1/parcels/TOKEN``: a host of the cluster fetches and uploads files of a job that this member accepted.

The token in the path is the authority, so no log and no answer has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

from gateway.core.async_files import DISK_FULL, FileWriter
from gateway.core.errors import DiskFull, NotFound
from gateway.http.base_handler.handler import BaseHandler
from gateway.http.bodies.receivers import BodyReceiver, NoBody, too_large
from gateway.http.bodies.uploads import UploadFailed
from gateway.http.handlers.execute import UPLOAD_SECONDS
from gateway.http.handlers.results import send_blocks
from gateway.storage.parcels import ExpectedParcel, Parcels

log = logging.getLogger(__name__)


class ParcelBody:
    """Receives a file, which gets its place when all of it has arrived, and is removed otherwise."""

    setting = ""
    json_bytes = 0

    def __init__(self, parcel: ExpectedParcel) -> None:
        self.cap_bytes = parcel.max_bytes
        self._parcel = parcel
        self._file: tuple[Path, FileWriter] | None = None
        self._is_closed = False
        # a write in its thread must end before the file is removed
        self._lock = asyncio.Lock()

    async def feed(self, chunk: bytes) -> None:
        async with self._lock:
            if self._is_closed:
                return
            with _refusals_of_the_disk():
                _, writer = self._open()
                if writer.written_bytes + len(chunk) > self.cap_bytes:
                    raise too_large(self.cap_bytes)
                await writer.write(chunk)

    async def take(self) -> None:
        """Move the file, which is complete, into its place.

        Raises
        ------
        NotFound
            The attempt of the job has ended meanwhile.
        DiskFull, UploadFailed
            The disk cannot be written.
        """
        async with self._lock:
            if self._is_closed:
                return  # its sender is gone, and gets no answer
            with _refusals_of_the_disk():
                draft, writer = self._open()
                await writer.finish()
                self._parcel.take(draft, writer.written_bytes)

    def close(self) -> Coroutine[Any, Any, None]:
        return self._close()

    async def _close(self) -> None:
        async with self._lock:
            self._is_closed = True
            if self._file is not None:
                draft, writer = self._file
                writer.close()
                with contextlib.suppress(OSError):
                    draft.unlink()

    def _open(self) -> tuple[Path, FileWriter]:
        if self._file is None:
            draft, fd = self._parcel.draft()
            self._file = draft, FileWriter(fd)
        return self._file


class ParcelHandler(BaseHandler):
    """Sends the tables of a job to its host, and receives the results."""

    is_open = True

    def body_receiver(self) -> BodyReceiver:
        if self.request.method != "PUT":
            return NoBody()
        parcel = self._parcels().expected(self.path_args[0])
        self.protect_connection()
        length = self.request.headers.get("Content-Length", "0")
        self.context.service.check_disk(int(length) if length.isdecimal() else 0)
        connection: Any = self.request.connection
        connection.set_body_timeout(UPLOAD_SECONDS)
        connection.set_max_body_size(parcel.max_bytes + 1)
        return ParcelBody(parcel)

    async def get(self, token: str) -> None:
        with self._parcels().open(token) as opened:
            self.protect_connection()
            self.set_header("Content-Type", "application/octet-stream")
            self.set_header("Content-Length", opened.size_bytes)
            await send_blocks(self, opened)

    async def put(self, token: str) -> None:
        self.check_body()
        if isinstance(self.body, ParcelBody):
            await self.body.take()
        self.respond({})

    def _parcels(self) -> Parcels:
        peers = self.context.service.peers
        if peers is None or peers.parcels is None:
            raise NotFound("this gateway has no parcels")
        return peers.parcels


@contextlib.contextmanager
def _refusals_of_the_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        log.error("a parcel could not be written: %s", error.strerror)
        if error.errno in DISK_FULL:
            raise DiskFull("the disk of STATE_DIR is too full for the file") from None
        raise UploadFailed("the file could not be stored") from None
