"""The protocol between kernel and companion: JSON objects with a length prefix on a stream socket.

A message is a uint32 (network order) and that many bytes of UTF-8 JSON. A request may have one descriptor
(SCM_RIGHTS, unix(7)) with its first byte. The kernel's side is ``transform_shim.notebook.companion``.

Every response has the request's ``id`` and an ``event``: any number of ``log``, ``progress`` and ``state``, then one
``done`` with a ``result`` or one ``error`` with a ``message`` for the user of the notebook.
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

from gateway.core.formats import DEFAULT_FORMAT, DataFormat

LARGEST_MESSAGE_BYTES = 256 << 20
_LENGTH = struct.Struct("!I")
_Name = Annotated[str, Field(min_length=1, max_length=1000)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    id: int


class LoadTable(_Request):
    """Copy a table into the kernel's inputs: from a file, a URL, or a live Metabase (``metabase:...``)."""

    op: Literal["load"]
    name: _Name
    source: _Name
    manifest: str | None = None
    data_format: DataFormat | None = None


class TakeFrame(_Request):
    """Keep a data frame of the kernel as a table; the descriptor with the request is an Arrow file."""

    op: Literal["frame"]
    manifest: dict[str, Any] | None = None


class RunTransform(_Request):
    """Run a script on an ephemeral gateway or, with `running`, on the running gateway."""

    op: Literal["run"]
    running: bool
    code: str
    library: dict[str, str] = {}
    tables: dict[str, int] = {}
    timeout: float | None = None
    output_format: DataFormat = DEFAULT_FORMAT
    hold_minutes: float | None = None
    profile: bool = False


class ForgetFiles(_Request):
    """Remove the files of these numbers; unknown numbers are ignored."""

    op: Literal["forget"]
    numbers: list[int]


class ListFiles(_Request):
    """List the files whose paths begin with `prefix`, for completion."""

    op: Literal["files"]
    prefix: str


class Cancel(_Request):
    """Cancel the request of this id if it is not finished."""

    op: Literal["cancel"]


Request = LoadTable | TakeFrame | RunTransform | ForgetFiles | ListFiles | Cancel
_REQUEST: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="op")])


class Closed(ConnectionError):
    """The kernel has closed the connection."""


class NotUnderstood(ValueError):
    """A message that is not a request; the error goes to `request_id`, if it had one."""

    def __init__(self, text: str, request_id: int | None) -> None:
        super().__init__(text)
        self.request_id = request_id


class Wire:
    """The companion's end of the socket; `send` is safe to call from several threads."""

    def __init__(self, endpoint: socket.socket) -> None:
        self._socket = endpoint
        self._lock = threading.Lock()

    def receive(self) -> tuple[Request, int | None]:
        """Return the next request and its descriptor, which then belongs to the caller.

        Raises
        ------
        Closed
            End of file.
        NotUnderstood
            The message is not a request: users can pass any value to the functions of the notebook, or write to the
            socket.
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
                # the location begins with the name of the request
                where = ".".join(map(str, first["loc"][1:]))
                raise NotUnderstood(f"{where}: {first['msg']}" if where else first["msg"], _id_of(body)) from None
        except BaseException:
            if descriptor is not None:
                os.close(descriptor)
            raise

    def send(self, request_id: int, event: str, **fields: Any) -> None:
        """Send a response; nothing happens if the kernel has closed the connection, which `receive` reports."""
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
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        request_id = json.loads(body)["id"]
        return request_id if isinstance(request_id, int) else None
    return None
