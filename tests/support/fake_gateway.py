"""An HTTP server that answers as a test says: the faults that a client must handle."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from gateway.core.version import VERSION


@dataclass
class Asked:
    """One request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


Reply = tuple[int, Any]
Handle = Callable[[Asked], Reply]


@dataclass
class FakeGateway:
    """Answers by ``handlers["METHOD /path"]`` (the path without its query): a status and a JSON value, or bytes."""

    handlers: dict[str, Handle] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    url: str = ""
    version: str = VERSION

    def __enter__(self) -> FakeGateway:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 60

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                asked = Asked(self.command, self.path, headers, body)
                fake.asked.append(asked)
                handle = fake.handlers.get(f"{self.command} {self.path.partition('?')[0]}")
                status, value = handle(asked) if handle else (404, {"error": "unknown", "code": "not_found"})
                content = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                self.send_header("X-Gateway-Version", fake.version)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = handle_any

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join(60)
        self._server.server_close()
