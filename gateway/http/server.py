"""The HTTP server: Tornado's, with words for what Tornado refuses before any handler is there to speak."""

from __future__ import annotations

import json
import logging
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream
from tornado.web import Application

from gateway.errors import BadRequest
from gateway.metrics import Metrics
from gateway.settings import Settings

access_log = logging.getLogger("gateway.access")

HEADER_BYTES = 65_536
IDLE_SECONDS = 30.0
BODY_SECONDS = 60.0

BARE_REFUSAL = b"HTTP/1.1 400 Bad Request\r\n\r\n"
"""All that Tornado (6.5, ``HTTP1Connection._read_message_inner``) answers to what is no valid HTTP."""


def _refusal() -> bytes:
    text = "the request is not valid HTTP/1.1: its request line, a header or its chunks are malformed"
    body = json.dumps(BadRequest(text).body()).encode() + b"\n"
    head = (
        "HTTP/1.1 400 Bad Request\r\nServer: transform-gateway\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


REFUSAL = _refusal()


class GatewayServer(HTTPServer):
    """Answers malformed requests in JSON, as every other refusal, and counts them.

    Tornado writes its bare 400 straight to the stream, and offers no hook; so the stream's `write` is told to say it
    better. What is malformed is neither logged nor answered: it may hold a token. Headers above the size limit are not
    answered at all: Tornado closes the connection.
    """

    def initialize(  # type: ignore[override]  # Tornado's way to construct
        self, *args: Any, on_malformed: Callable[[], None], **kwargs: Any
    ) -> None:
        """Take Tornado's arguments, and what to call for each malformed request."""
        super().initialize(*args, **kwargs)
        self._on_malformed = on_malformed

    def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
        """Begin to serve a connection. Called by Tornado."""
        # a strong reference would be a circle, and each connection's buffers would wait for the collector
        stream.write = partial(self._write, weakref.ref(stream), address)  # type: ignore[method-assign]
        super().handle_stream(stream, address)

    def _write(self, stream: weakref.ref[IOStream], address: tuple[Any, ...], data: bytes | memoryview) -> Any:
        writer = stream()
        if writer is None:
            raise AssertionError("who writes to a stream holds it")
        if data == BARE_REFUSAL:
            self._on_malformed()
            access_log.info("malformed request 400 from %s", address[0] if address else "-")
            data = REFUSAL
        return type(writer).write(writer, data)


def make_server(app: Application, settings: Settings, metrics: Metrics) -> GatewayServer:
    """Return the server of `app`, bound to nothing yet.

    `idle_connection_timeout` bounds how long headers may take, `body_timeout` how long a body may; uploads raise it for
    themselves. Bodies are capped by the handlers, which know what they take and answer 413 in words; the server's
    own cap is only a second fence behind the largest of theirs.
    """
    return GatewayServer(
        app,
        on_malformed=metrics.malformed_request,
        max_header_size=HEADER_BYTES,
        idle_connection_timeout=IDLE_SECONDS,
        body_timeout=BODY_SECONDS,
        max_body_size=max(settings.max_upload_bytes, settings.max_body_bytes) + 1,
        xheaders=False,
    )
