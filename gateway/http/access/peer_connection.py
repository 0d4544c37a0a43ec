"""A request of another member of the cluster, answered by the same handlers as those of HTTP connections."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from tornado.httputil import HTTPConnection, HTTPHeaders, HTTPMessageDelegate, RequestStartLine, ResponseStartLine
from tornado.web import Application

from gateway.http.access.tokens import Token, TokenKind
from gateway.jobs.peers import PeerPart, PeerRequest

#: Size of a part; a handler that has written as much waits until it is fetched.
PART_BYTES = 262_144

M = TypeVar("M", bound=Callable[..., object])


@dataclass(frozen=True, slots=True)
class _Origin:
    """The attributes that Tornado's log reads from a connection."""

    remote_ip: str
    protocol: str = "http"


class PeerConnection(HTTPConnection):
    """Stands in for the connection of a caller: it collects an answer, which is fetched in parts.

    Parameters
    ----------
    request : PeerRequest
        The other member has checked the caller, and sends the name and the kind of its token.
    """

    def __init__(self, request: PeerRequest) -> None:
        self.token = Token(request.token_name, TokenKind(request.token_kind), "")
        self.context = _Origin(request.asker)
        self._status = 0
        self._headers: tuple[tuple[str, str], ...] = ()
        self._written = bytearray()
        self._is_finished = False
        self._news = asyncio.Event()
        self._taken: list[asyncio.Future[None]] = []
        self._on_close: Callable[[], object] | None = None
        self.receiving: asyncio.Task[None] | None = None

    # -- as Tornado's handlers see it

    def write_headers(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders, chunk: bytes | None = None
    ) -> asyncio.Future[None]:
        if isinstance(start_line, ResponseStartLine):  # a server's always is
            self._status, self._headers = start_line.code, tuple(headers.get_all())
        return self.write(chunk or b"")

    def write(self, chunk: bytes) -> asyncio.Future[None]:
        self._written += chunk
        self._news.set()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if len(self._written) < PART_BYTES:
            future.set_result(None)
        else:
            self._taken.append(future)
        return future

    def finish(self) -> None:
        self._is_finished = True
        self._news.set()

    def set_close_callback(self, callback: Callable[[], object] | None) -> None:
        self._on_close = callback

    # -- as a `gateway.jobs.peers.PeerAnswer`

    async def next_part(self) -> PeerPart:
        while not self._is_finished and len(self._written) < PART_BYTES:
            await self._news.wait()
            self._news.clear()
        data = bytes(self._written[:PART_BYTES])
        del self._written[:PART_BYTES]
        if len(self._written) < PART_BYTES:
            self._release()
        return PeerPart(data, self._is_finished and not self._written, self._status, self._headers)

    def close(self) -> None:
        if not self._is_finished and self._on_close is not None:
            self._on_close()
        self._is_finished = True
        self._news.set()  # ends a wait for the next part
        self._release()

    def _release(self) -> None:
        for future in self._taken:
            if not future.done():
                future.set_result(None)
        self._taken.clear()


def for_peers(method: M) -> M:
    """Mark a method of a handler that other members may call; for them no other method exists."""
    vars(method)["is_for_peers"] = True
    return method


def is_for_peers(method: Callable[..., object] | None) -> bool:
    """Return whether `for_peers` marks a method."""
    return getattr(method, "is_for_peers", False)


def answer_peer(application: Application, request: PeerRequest) -> PeerConnection:
    """Return the answer to a request of another member while it is being made.

    Parameters
    ----------
    application : Application
        With the routes.
    request : PeerRequest
        About a job of this gateway.

    Returns
    -------
    PeerConnection
    """
    connection = PeerConnection(request)
    delegate = application.start_request(connection, connection)
    headers = HTTPHeaders({"Host": "member", **request.headers})
    if request.body:
        headers["Content-Length"] = str(len(request.body))
    task = asyncio.create_task(_receive(delegate, request, headers), name="answer to a member")
    connection.receiving = task
    return connection


async def _receive(delegate: HTTPMessageDelegate, request: PeerRequest, headers: HTTPHeaders) -> None:
    prepared = delegate.headers_received(RequestStartLine(request.method, request.uri, "HTTP/1.1"), headers)
    if prepared is not None:
        await prepared
    if request.body and (received := delegate.data_received(request.body)) is not None:
        await received
    delegate.finish()
