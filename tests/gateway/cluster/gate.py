"""Stands between a member and the hosts that fetch its parcels: sees each request, and can hold one in its middle."""

from __future__ import annotations

import contextlib
import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

from tests.support.ports import free_port

WAIT_SECONDS = 60


class Gate:
    """A proxy for the port of a member; use as a context manager.

    Attributes
    ----------
    member_port : int
        Where the member is to listen.
    asked : list of (str, str, int)
        Method, path and status of each request, in the order of their ends.
    hold : tuple of (str, int) or None
        Method and number, from 0, of the request that is held.
    held, release : threading.Event
        Half of the held body has passed; the rest may pass.
    is_cut : bool
        Whether the rest of the held body is dropped, as if the host had ended.
    """

    def __init__(self) -> None:
        self.member_port = free_port()
        self.asked: list[tuple[str, str, int]] = []
        self.hold: tuple[str, int] | None = None
        self.held, self.release = threading.Event(), threading.Event()
        self.is_cut = False
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        gate = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with contextlib.suppress(OSError):
                    gate._get(self)

            def do_PUT(self) -> None:
                with contextlib.suppress(OSError):
                    gate._put(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Gate:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()

    def paths(self, method: str) -> list[str]:
        """Return the paths that were asked for by a method, in order."""
        return [path for asked, path, _ in self.asked if asked == method]

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Ask the member itself, as somebody who has learned of a URL."""
        connection = http.client.HTTPConnection("127.0.0.1", self.member_port, timeout=WAIT_SECONDS)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def _is_held(self, method: str) -> bool:
        with self._lock:
            number = self._counts.get(method, 0)
            self._counts[method] = number + 1
        return self.hold == (method, number)

    def _pause(self) -> None:
        self.held.set()
        assert self.release.wait(WAIT_SECONDS)

    def _get(self, handler: BaseHTTPRequestHandler) -> None:
        is_held = self._is_held("GET")
        status, content = self.ask("GET", handler.path)
        self.asked.append(("GET", handler.path, status))
        self._begin(handler, status, content)
        half = len(content) // 2
        handler.wfile.write(content[:half])
        if is_held:
            self._pause()
            if self.is_cut:
                handler.close_connection = True
                return
        handler.wfile.write(content[half:])

    def _put(self, handler: BaseHTTPRequestHandler) -> None:
        is_held = self._is_held("PUT")
        size = int(handler.headers["Content-Length"])
        content = handler.rfile.read(size)
        if len(content) < size:
            return
        connection = http.client.HTTPConnection("127.0.0.1", self.member_port, timeout=WAIT_SECONDS)
        try:
            connection.putrequest("PUT", handler.path)
            connection.putheader("Content-Length", str(size))
            connection.endheaders(content[: size // 2])
            if is_held:
                self._pause()
                if self.is_cut:
                    handler.close_connection = True
                    return
            connection.send(content[size // 2 :])
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        self.asked.append(("PUT", handler.path, answer.status))
        self._begin(handler, answer.status, body)
        handler.wfile.write(body)

    def _begin(self, handler: BaseHTTPRequestHandler, status: int, content: bytes) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
