"""A small HTTP server that misbehaves as told: what an object store does on a bad day."""

from __future__ import annotations

import socket
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
        """Say whether the peer closes within a few seconds."""
        self.connection.settimeout(5)
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
    """Answers the n-th request as the n-th of `behaviours` says, further ones as the last does."""

    behaviours: list[Behave] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)
    closed_by_peer: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> FaultyServer:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._stopped = False
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped = True
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join(5)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def url(self, path: str = "/bucket/key") -> str:
        return f"http://127.0.0.1:{self.port}{path}?X-Amz-Signature=5ecr3t"

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
        connection.settimeout(10)
        with connection:
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


def answer(status: int, body: bytes = b"", headers: str = "") -> Behave:
    def behave(conversation: Conversation) -> None:
        conversation.read_body()
        conversation.send(status, body, headers=headers)

    return behave


def truncate(body: bytes) -> Behave:
    """Announce all of `body`, send half of it, and close."""
    return lambda conversation: conversation.send(200, body[: len(body) // 2], announced=len(body))


def reset() -> Behave:
    return lambda conversation: conversation.reset()


def stall(seconds: float, body: bytes = b"") -> Behave:
    """Send the head of an answer and `body`, then nothing more."""

    def behave(conversation: Conversation) -> None:
        conversation.send(200, body, announced=len(body) + 10)
        time.sleep(seconds)

    return behave
