"""The HTTP server: Tornado's, with a JSON answer to requests that Tornado refuses before it has a handler."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import ssl
import time
import weakref
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any

from tornado.http1connection import HTTP1ServerConnection
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPConnection, HTTPHeaders, HTTPMessageDelegate, RequestStartLine, ResponseStartLine
from tornado.iostream import IOStream, SSLIOStream
from tornado.web import Application

from gateway.core.errors import BadRequest, GatewayError, TooManyConnections
from gateway.core.settings import Settings
from gateway.http.base_handler.lingering_close import answer_and_linger, close_lingering, lingering
from gateway.http.listener import LOG_SECONDS, Listener
from gateway.telemetry.metrics import Metrics

log = logging.getLogger(__name__)
access_log = logging.getLogger("gateway.access")

HEADER_BYTES = 65_536
IDLE_SECONDS = 30.0

#: A caller that takes no byte of its answer for this time is disconnected.
STALL_SECONDS = 30.0

#: Interval at which a stop checks whether the last requests are answered.
POLL_SECONDS = 0.02
BODY_SECONDS = 60.0

#: Tornado's whole answer to malformed HTTP (6.5, ``HTTP1Connection._read_message_inner``).
BARE_REFUSAL = b"HTTP/1.1 400 Bad Request\r\n\r\n"


#: Refused connections whose close waits for the caller to read the answer; further ones get it and are closed at once.
MOST_LINGERING = 64


def _refusal(refusal: GatewayError, reason: str, header: str = "") -> bytes:
    body = json.dumps(refusal.body()).encode() + b"\n"
    head = (
        f"HTTP/1.1 {refusal.status} {reason}\r\nServer: transform-gateway\r\nContent-Type: application/json\r\n"
        f"{header}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


REFUSAL = _refusal(
    BadRequest("the request is not valid HTTP/1.1: its request line, a header or its chunks are malformed"),
    "Bad Request",
)

HTTP_ONLY = _refusal(
    BadRequest("this port takes HTTP only: begin the URL with http://, or set TLS_CERT_FILE"), "Bad Request"
)

#: First byte of a client that begins with TLS (RFC 8446, section 5.1). No method of HTTP has it.
TLS_HANDSHAKE = 0x16

HTTPS_ONLY = _refusal(BadRequest("this port takes HTTPS only: begin the URL with https://"), "Bad Request")


class GatewayServer(HTTPServer):
    """Answers malformed requests in JSON, like every other refusal, and counts them; bounds its connections.

    Tornado writes its bare 400 straight to the stream and offers no hook, so the stream's `write` replaces it. The
    malformed bytes are neither logged nor quoted in the answer, because they may contain a token. Headers above the
    size limit get no answer: Tornado closes the connection.

    A connection needs no token, so each caller could take all of them. At the limit a new connection replaces the one
    that has waited longest without a complete request, as in nginx, or else the one whose request without a token is
    the oldest: its caller may not read the answer. It is refused with 503 only while each of the others has a request
    with a token in progress. The system bounds how long such a caller may read nothing (TCP_USER_TIMEOUT, tcp(7));
    Tornado would wait for ever.
    """

    def initialize(  # type: ignore[override]  # Tornado's way to construct
        self, *args: Any, metrics: Metrics, max_connections: int, **kwargs: Any
    ) -> None:
        super().initialize(*args, **kwargs)
        self._metrics = metrics
        self._max_connections = max_connections
        text = f"{max_connections} connections have requests in progress (MAX_CONNECTIONS)"
        self._overload = _refusal(TooManyConnections(text), "Service Unavailable", "Retry-After: 5\r\n")
        self._next_log_at = 0.0
        #: Connections without a complete request; the one that has waited longest is the first.
        self._idle: dict[HTTP1ServerConnection, None] = {}
        #: Connections with a request that needs no token, or whose token is not checked yet; the oldest is the first.
        self._unprotected: dict[HTTP1ServerConnection, None] = {}
        #: Connections from which no request was read yet, and all that had one.
        self._unread: set[object] = set()
        self._known: weakref.WeakSet[HTTP1ServerConnection] = weakref.WeakSet()

    def add_sockets(self, sockets: Iterable[socket.socket]) -> None:
        for sock in sockets:
            self._sockets[sock.fileno()] = sock
            self._handlers[sock.fileno()] = Listener(sock, self._handle_connection, self._close_idle).close

    def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
        if len(self._connections) + lingering() >= self._max_connections:
            self._tell_full()
            has_place = len(self._connections) < self._max_connections
            if not self._close_idle() and not (has_place and close_lingering()):
                self._refuse(stream)
                return
        stream.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * STALL_SECONDS))
        # a strong reference would be a cycle, and each connection's buffers would wait for the garbage collector
        stream.write = partial(self._write, weakref.ref(stream), address)  # type: ignore[method-assign]
        stream.close_fd = partial(self._close_fd, weakref.ref(stream))  # type: ignore[method-assign]
        if not isinstance(stream, SSLIOStream):
            stream.read_from_fd = partial(self._read_first, weakref.ref(stream), address)  # type: ignore[method-assign]
        super().handle_stream(stream, address)

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        # called when a connection is new or its last response is sent, before the first byte of the next request
        if isinstance(server_conn, HTTP1ServerConnection):
            self._unprotected.pop(server_conn, None)
            self._idle[server_conn] = None
            # as above, no strong reference
            protect = partial(self._protect, weakref.ref(server_conn))
            request_conn.protect = protect  # type: ignore[attr-defined]  # see `BaseHandler.protect_connection`
            if server_conn not in self._known:
                self._known.add(server_conn)
                self._unread.add(server_conn)
        delegate = super().start_request(server_conn, request_conn)
        return _RequestDelegate(delegate, partial(self._has_headers, server_conn))

    def _has_headers(self, server_conn: object) -> None:
        self._unread.discard(server_conn)
        if isinstance(server_conn, HTTP1ServerConnection) and server_conn in self._idle:
            del self._idle[server_conn]
            self._unprotected[server_conn] = None

    def _protect(self, server_conn: weakref.ref[HTTP1ServerConnection]) -> None:
        protected = server_conn()
        if protected is not None:
            self._unprotected.pop(protected, None)

    async def stop_answering(self, seconds: float) -> None:
        """Accept no more connections, and return when those with a request are answered.

        A connection counts whose first request was not read yet: its caller cannot know whether it was.

        Parameters
        ----------
        seconds : float
            The longest wait.
        """
        self.stop()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            waiting = [each for each in self._connections if each not in self._idle or each in self._unread]
            if not waiting:
                return
            await asyncio.sleep(POLL_SECONDS)

    def on_close(self, server_conn: object) -> None:
        self._unread.discard(server_conn)
        for waiting in (self._idle, self._unprotected):
            waiting.pop(server_conn, None)  # type: ignore[call-overload]  # Tornado names no type here
        self._connections.discard(server_conn)

    def _close_idle(self) -> bool:
        """Close the connection that has waited longest without a request or, if there is none, with one that has no
        token; return whether there was one.
        """
        waiting = self._idle or self._unprotected
        oldest = next(iter(waiting), None)
        if oldest is None:
            return False
        del waiting[oldest]
        self._connections.discard(oldest)
        oldest.stream.close()
        self._metrics.connection_dropped("idle")
        return True

    def _refuse(self, stream: IOStream) -> None:
        self._metrics.connection_dropped("refused")
        if lingering() < MOST_LINGERING:
            answer_and_linger(stream, self._overload)
            return
        try:
            # The close may destroy the answer on its way to a caller that still sends; one that has sent all reads it.
            stream.socket.send(self._overload)
            stream.socket.recv(HEADER_BYTES)
        except OSError:
            pass  # the caller has disconnected or has sent nothing yet, or TLS is not established
        finally:
            stream.close()

    def _tell_full(self) -> None:
        if time.monotonic() >= self._next_log_at:
            self._next_log_at = time.monotonic() + LOG_SECONDS
            text = "%d connections are open (MAX_CONNECTIONS); new ones replace those without a request"
            log.warning(text, self._max_connections)

    def _read_first(
        self, stream: weakref.ref[IOStream], address: tuple[Any, ...], buffer: bytearray | memoryview
    ) -> int | None:
        """Read the first bytes of a connection; refuse one that begins with TLS, which would wait for an answer."""
        reader = stream()
        if reader is None:
            raise AssertionError("the caller holds a reference to the stream")
        count = type(reader).read_from_fd(reader, buffer)
        if count is None:  # nothing has arrived yet
            return None
        del reader.read_from_fd
        if not count or buffer[0] != TLS_HANDSHAKE:
            return count
        self._metrics.malformed_request()
        access_log.info("request by HTTPS 400 from %s: this port takes HTTP only", address[0] if address else "-")
        with contextlib.suppress(OSError):
            reader.socket.send(HTTP_ONLY)  # TLS clients tell by an answer in plain text that there is no TLS
        return 0  # as if the client had closed it

    def _close_fd(self, stream: weakref.ref[IOStream]) -> None:
        """Close a connection; one whose handshake failed because the caller speaks HTTP gets an answer in HTTP."""
        closing = stream()
        if closing is None:
            raise AssertionError("the caller holds a reference to the stream")
        if isinstance(closing.error, ssl.SSLError) and closing.error.reason == "HTTP_REQUEST":
            self._metrics.malformed_request()
            with contextlib.suppress(OSError):
                descriptor = closing.socket.fileno()  # the socket itself takes TLS only
                os.write(descriptor, HTTPS_ONLY)
                os.read(descriptor, HEADER_BYTES)  # bytes that nobody has read would destroy the answer
        type(closing).close_fd(closing)

    def _write(self, stream: weakref.ref[IOStream], address: tuple[Any, ...], data: bytes | memoryview) -> Any:
        writer = stream()
        if writer is None:
            raise AssertionError("the writer holds a reference to the stream")
        if data == BARE_REFUSAL:
            self._metrics.malformed_request()
            access_log.info("malformed request 400 from %s", address[0] if address else "-")
            data = REFUSAL
        return type(writer).write(writer, data)


class _RequestDelegate(HTTPMessageDelegate):
    """Forwards a request, and calls back when its headers are complete."""

    def __init__(self, delegate: HTTPMessageDelegate, on_headers: Callable[[], object]) -> None:
        self._delegate = delegate
        self._on_headers = on_headers

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        self._on_headers()
        return self._delegate.headers_received(start_line, headers)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        return self._delegate.data_received(chunk)

    def finish(self) -> None:
        self._delegate.finish()

    def on_connection_close(self) -> None:
        self._delegate.on_connection_close()


def make_server(
    app: Application, settings: Settings, metrics: Metrics, tls: ssl.SSLContext | None = None
) -> GatewayServer:
    """Return the server of `app`, not bound to an address yet.

    `idle_connection_timeout` bounds the time for headers, `body_timeout` the time for a body; uploads raise it. The
    handlers limit the size of bodies, because they know their limits and answer 413 with a message; the server's own
    limit is above the largest of theirs.
    """
    return GatewayServer(
        app,
        metrics=metrics,
        max_connections=settings.max_connections,
        max_header_size=HEADER_BYTES,
        idle_connection_timeout=IDLE_SECONDS,
        body_timeout=BODY_SECONDS,
        max_body_size=max(settings.max_upload_bytes, settings.max_body_bytes) + 1,
        xheaders=False,
        ssl_options=tls,
    )
