"""A small HTTP server with the faults that a test asks for, as an object store may have."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

Behave = Callable[["Conversation"], None]


@dataclass
class Received:
    """One request as it came."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes = b""


@dataclass
class Conversation:
    """One connection, after the request's head was read."""

    connection: socket.socket
    request: Received
    rest: bytes

    def read_body(self) -> bytes:
        length = int(self.request.headers.get("content-length", "0"))
        while len(self.rest) < length:
            data = self.connection.recv(1 << 16)
            if not data:
                break
            self.rest += data
        self.request.body = self.rest
        return self.rest

    def send(self, status: int, body: bytes = b"", *, announced: int | None = None, headers: str = "") -> None:
        length = len(body) if announced is None else announced
        head = f"HTTP/1.1 {status} Said\r\nContent-Length: {length}\r\n{headers}\r\n"
        self.connection.sendall(head.encode() + body)

    def reset(self) -> None:
        """Close so that the peer sees ECONNRESET."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    def wait_for_close(self) -> bool:
        """Say whether the peer closes."""
        self.connection.settimeout(60)
        try:
            while self.connection.recv(1 << 16):
                pass
        except TimeoutError:
            return False
        except OSError:
            pass
        return True


@dataclass
class FaultyServer:
    """Answers the first request of the n-th connection as the n-th of `behaviours` says, later ones as the last does."""

    behaviours: list[Behave] = field(default_factory=list)
    tls: ssl.SSLContext | None = None
    received: list[Received] = field(default_factory=list)
    closed_by_peer: threading.Event = field(default_factory=threading.Event)
    port: int = 0

    def __enter__(self) -> FaultyServer:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join(60)
        self._listener.close()
        for connection in tuple(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # or one that waits for its peer would wait for our event loop
        for thread in self._threads:
            thread.join(60)

    def url(self, path: str = "/bucket/key", host: str = "127.0.0.1") -> str:
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}{path}?X-Amz-Signature=5ecr3t"

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection, len(self._threads)))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        connection.settimeout(60)
        if self.tls is not None:
            try:
                connection = self.tls.wrap_socket(connection, server_side=True)
            except OSError:  # the peer does not trust the certificate
                connection.close()
                return
        self._open.add(connection)
        with connection, contextlib.ExitStack() as stack:
            stack.callback(self._open.discard, connection)
            head = b""
            while b"\r\n\r\n" not in head:
                data = connection.recv(1 << 16)
                if not data:
                    return
                head += data
            head, _, rest = head.partition(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")
            method, target, _ = first.split(" ")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            request = Received(method, target, headers)
            self.received.append(request)
            behave = self.behaviours[min(number, len(self.behaviours) - 1)]
            try:
                behave(Conversation(connection, request, rest))
            except (BrokenPipeError, ConnectionResetError):
                self.closed_by_peer.set()


def answer(status: int, body: bytes = b"", headers: str = "Connection: close\r\n") -> Behave:
    """Answer, and close: a client that is not told sends its next request there, and has to try again."""

    def behave(conversation: Conversation) -> None:
        conversation.read_body()
        conversation.send(status, body, headers=headers)

    return behave


def truncate(body: bytes) -> Behave:
    """Announce all of `body`, send half of it, and close."""
    return lambda conversation: conversation.send(200, body[: len(body) // 2], announced=len(body))


def reset() -> Behave:
    return lambda conversation: conversation.reset()


def stall(body: bytes = b"") -> Behave:
    """Send the head of an answer and `body`, then nothing more until the peer has enough of it."""

    def behave(conversation: Conversation) -> None:
        conversation.send(200, body, announced=len(body) + 10)
        conversation.wait_for_close()

    return behave


def drip(head: str = "") -> Behave:
    """Send `head`, then one byte after the other, so that no silence is long; end when the peer has enough of it."""

    def behave(conversation: Conversation) -> None:
        conversation.connection.sendall(head.encode())
        for byte in b"HTTP/1.1 200 OK" + b"x" * 1000:
            time.sleep(0.02)
            conversation.connection.sendall(bytes([byte]))

    return behave
