"""What kernel and companion say to each other: JSON objects behind their length, on a stream socket.

A message is a uint32 (network order) and that many bytes of UTF-8 JSON. A request may bring one descriptor
(SCM_RIGHTS, unix(7)) with its first byte. The kernel's side of this is ``transform_shim.notebook.companion``.

Every answer carries the request's ``id`` and an ``event``: any number of ``log``, ``progress`` and ``state``, then one
``done`` with a ``result`` or one ``error`` with a ``message`` for the person at the notebook.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import threading
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from gateway.jobs.model import DataFormat

LARGEST_MESSAGE_BYTES = 256 << 20
_LENGTH = struct.Struct("!I")
_Name = Annotated[str, Field(min_length=1, max_length=1000)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    id: int


class LoadTable(_Request):
    """Bring a table into the kernel's inputs: from a file, a URL, or a live Metabase (``metabase:...``)."""

    op: Literal["load"]
    name: _Name
    source: _Name
    manifest: str | None = None
    data_format: DataFormat | None = None


class TakeFrame(_Request):
    """Keep a data frame of the kernel as a table: an Arrow file, as the descriptor that comes along."""

    op: Literal["frame"]
    name: _Name
    manifest: dict[str, Any] | None = None


class RunTransform(_Request):
    """Run a script through a gateway: one of the companion's own, or the one that runs."""

    op: Literal["run"]
    running: bool
    code: str
    library: dict[str, str] = {}
    tables: dict[str, int] = {}
    timeout: float | None = None
    output_format: DataFormat = "jsonl"
    hold_minutes: float | None = None


class ForgetFiles(_Request):
    """Remove what was brought under these numbers; unknown ones are no error."""

    op: Literal["forget"]
    numbers: list[int]


class ListFiles(_Request):
    """Name the files that begin like this, for completion."""

    op: Literal["files"]
    prefix: str


class Cancel(_Request):
    """End the request of this id, if it is still going on."""

    op: Literal["cancel"]


Request = LoadTable | TakeFrame | RunTransform | ForgetFiles | ListFiles | Cancel
_REQUEST: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="op")])


class Closed(ConnectionError):
    """The kernel is gone."""


class NotUnderstood(ValueError):
    """A message that is no request. Who sent it waits for an answer, which goes to `request_id` if there was one."""

    def __init__(self, text: str, request_id: int | None) -> None:
        super().__init__(text)
        self.request_id = request_id


class Wire:
    """The companion's end of the socket; sending is safe from several threads."""

    def __init__(self, endpoint: socket.socket) -> None:
        self._socket = endpoint
        self._lock = threading.Lock()

    def receive(self) -> tuple[Request, int | None]:
        """Return the next request, and the descriptor that came with it, which the caller owns.

        Raises
        ------
        Closed
            End of file.
        NotUnderstood
            Not a request: the functions of the notebook pass on what they are given, and the kernel is the user's own,
            so a person may have written to the socket.
        """
        head, descriptor = self._exactly(_LENGTH.size)
        try:
            (length,) = _LENGTH.unpack(head)
            if length > LARGEST_MESSAGE_BYTES:
                raise Closed(f"a message of {length} bytes")
            body, extra = self._exactly(length)
            if extra is not None:
                os.close(extra)
            try:
                return _REQUEST.validate_json(body), descriptor
            except ValidationError as error:
                first = error.errors()[0]
                # a place begins with the name of the request
                where = ".".join(map(str, first["loc"][1:]))
                raise NotUnderstood(f"{where}: {first['msg']}" if where else first["msg"], _id_of(body)) from None
        except BaseException:
            if descriptor is not None:
                os.close(descriptor)
            raise

    def send(self, request_id: int, event: str, **fields: Any) -> None:
        """Send an answer; a kernel that is gone is no error, `receive` will tell."""
        body = json.dumps({"id": request_id, "event": event, **fields}, ensure_ascii=True).encode()
        try:
            with self._lock:
                self._socket.sendall(_LENGTH.pack(len(body)) + body)
        except (BrokenPipeError, ConnectionResetError):
            return

    def _exactly(self, count: int) -> tuple[bytes, int | None]:
        found = bytearray()
        descriptor: int | None = None
        while len(found) < count:
            data, descriptors, _, _ = socket.recv_fds(self._socket, min(count - len(found), 1 << 20), 4)
            for extra in descriptors[1:] if descriptor is None else descriptors:
                os.close(extra)
            if descriptors and descriptor is None:
                descriptor = descriptors[0]
            if not data:
                if descriptor is not None:
                    os.close(descriptor)
                raise Closed("end of file")
            found += data
        return bytes(found), descriptor


def _id_of(body: bytes) -> int | None:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        request_id = json.loads(body)["id"]
        return request_id if isinstance(request_id, int) else None
    return None
