"""A proxy in front of an S3 server that keeps what was uploaded: an object alone does not tell how often it was put."""

from __future__ import annotations

import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType


class RecordingProxy:
    """Forwards PUTs to a server of loopback, with the Host that the caller signed.

    Attributes
    ----------
    uploads : dict
        By path, the content of each upload that the server confirmed.
    """

    def __init__(self, server_port: int) -> None:
        self.uploads: dict[str, list[bytes]] = {}
        lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_PUT(handler) -> None:
                body = handler.rfile.read(int(handler.headers["Content-Length"]))
                server = http.client.HTTPConnection("127.0.0.1", server_port, timeout=30)
                try:
                    server.request("PUT", handler.path, body, dict(handler.headers))
                    answer = server.getresponse()
                    content = answer.read()
                except (OSError, http.client.HTTPException):
                    handler.close_connection = True  # as the server did
                    return
                finally:
                    server.close()
                if answer.status == 200:
                    with lock:
                        self.uploads.setdefault(handler.path.partition("?")[0], []).append(body)
                handler.send_response(answer.status)
                handler.send_header("Content-Length", str(len(content)))
                handler.end_headers()
                handler.wfile.write(content)

            def log_message(handler, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> RecordingProxy:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
