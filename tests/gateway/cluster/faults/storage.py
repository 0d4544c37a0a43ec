"""An object store that counts what it accepts: an object alone does not tell how often it was put."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.support.machines import HERE, Machine

#: Small, so that an upload stands still soon while nobody reads it.
RECEIVE_BYTES = 65_536


@dataclass
class Pause:
    """Holds up the next upload of one object in its middle."""

    reached: threading.Event = field(default_factory=threading.Event)
    goes_on: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Upload:
    """One object that was accepted whole."""

    key: str
    body: bytes
    at: float


class CountingStorage:
    """Keeps objects in memory; use as a context manager. As S3, it keeps nothing of an upload that is not complete.

    Attributes
    ----------
    uploads : list of Upload
        In the order in which they were accepted.
    incomplete : list of str
        Keys of the uploads that ended too early.
    """

    def __init__(self, machine: Machine = HERE) -> None:
        self.uploads: list[Upload] = []
        self.incomplete: list[str] = []
        self._objects: dict[str, bytes] = {}
        self._pauses: dict[str, Pause] = {}
        self._made: list[Pause] = []
        self._server = _Server(("", 0), _Handler, bind_and_activate=False)
        self._server.storage = self
        self._server.socket.close()
        self._server.socket = machine.listen(machine.storage_address)
        self._server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        self._url = f"http://{machine.storage_address}:{self._server.socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> CountingStorage:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for pause in self._made:
            pause.goes_on.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(60)

    def get_url(self, key: str) -> str:
        return f"{self._url}/{key}"

    put_url = get_url

    def put(self, key: str, content: bytes) -> None:
        self._objects[key] = content

    def pause(self, key: str) -> Pause:
        """Hold up the next upload of an object in its middle."""
        self._pauses[key] = made = Pause()
        self._made.append(made)
        return made

    def accepted(self, prefix: str) -> dict[str, int]:
        """Return how often each object below a prefix was accepted."""
        keys = [upload.key.removeprefix(f"{prefix}/") for upload in self.uploads if upload.key.startswith(f"{prefix}/")]
        return {key: keys.count(key) for key in keys}

    def bodies(self, key: str) -> list[bytes]:
        return [upload.body for upload in self.uploads if upload.key == key]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    storage: CountingStorage

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients that vanish are what this is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        content = self.server.storage._objects.get(self.path[1:])
        self._answer(404 if content is None else 200, content or b"")

    def do_PUT(self) -> None:
        storage, key = self.server.storage, self.path[1:]
        length = int(self.headers["Content-Length"])
        pause, body = storage._pauses.pop(key, None), b""
        if pause is not None:
            body = self.rfile.read(length // 4)
            pause.reached.set()
            pause.goes_on.wait(120)
        with suppress(OSError):
            body += self.rfile.read(length - len(body))
        if len(body) < length:
            storage.incomplete.append(key)
            self.close_connection = True
            return
        storage.uploads.append(Upload(key, body, time.time()))
        storage.put(key, body)
        self._answer(200, b"")

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
