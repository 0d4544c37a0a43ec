"""One HTTP/1.1 exchange with an object store: the URL exactly as given, streamed both ways, every wait
bounded.

It stands on Tornado's `HTTP1Connection` and not on `simple_httpclient`, because that client cannot be
stopped: a cancelled ``fetch`` leaves its connection open until the server ends it, a silent server is only
noticed by the time-out of the whole request, and an answer that comes while the body is still being sent (a
403 to a large PUT) is lost to the reset that follows it.

`HTTP1Connection` has one trap: it swallows whatever is raised inside its delegate, a cancellation too. So the
delegate here never waits for anything of ours but a hand-over, and its reader task is never cancelled:
closing the connection ends it.
"""

from __future__ import annotations

import asyncio
import base64
import urllib.parse
from collections.abc import AsyncGenerator, Awaitable, Mapping
from contextlib import aclosing
from types import TracebackType
from typing import Self

from tornado.http1connection import HTTP1Connection, HTTP1ConnectionParameters
from tornado.httputil import HTTPHeaders, RequestStartLine
from tornado.iostream import IOStream, StreamClosedError

from gateway.storage.answer_reader import AnswerReader
from gateway.storage.connections import CONNECT_SECONDS, Connections, StaleConnection, connect, reason_of
from gateway.storage.target import ExchangeError, Target

BLOCK_BYTES = 1 << 20
SMALL_BYTES = 1 << 16
REFUSAL_BODY_BYTES = 8192
_UNLIMITED_BODY_BYTES = 1 << 62


class Exchange:
    """One request and its answer; use as ``async with``, which closes the connection whatever happens.

    Parameters
    ----------
    url : str
        Used exactly as given; redirects are answers like any other.
    method : str
    headers : mapping
        Sent besides ``Host``, ``User-Agent`` and ``Connection``. A request with a body needs ``Content-Length``.
    stall_seconds : float
        Longest wait for the next sign of life.
    connections : Connections, optional
        Where the connection may come from, and goes to when the answer was read to its end.
    """

    def __init__(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        stall_seconds: float,
        connections: Connections | None = None,
    ) -> None:
        self._target = Target.parse(url)
        self._method = method
        self._headers = headers
        self._stall_seconds = stall_seconds
        self._connections = connections
        self._after = "close" if connections is None else "keep-alive"
        self._was_used = False
        self._unsent_bytes = int(headers.get("Content-Length", "0"))
        self._is_headed = False
        self._left_bytes = 0
        self._stream: IOStream | None = None
        self._connection: HTTP1Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._detached = False

    @property
    def status(self) -> int:
        """Status of the answer; 0 before it came."""
        return self._reader.status

    @property
    def authority(self) -> str:
        """Host and port of the URL, the part of it that may be told."""
        return self._target.authority

    @property
    def announced_bytes(self) -> int | None:
        """Length of the answer's body, where the server told it."""
        return self._reader.announced_bytes

    @property
    def headers(self) -> HTTPHeaders:
        """Headers of the answer."""
        return self._reader.headers

    async def __aenter__(self) -> Self:
        self._reader = AnswerReader()
        try:
            self._stream = await self._connect()
            params = HTTP1ConnectionParameters(max_body_size=_UNLIMITED_BODY_BYTES)
            self._connection = HTTP1Connection(self._stream, True, params)
            if "Content-Length" not in self._headers:
                self._reader.detach = self._detach
            # the answer is read from the start: a server may refuse long before it took the whole body
            self._task = asyncio.create_task(self._read(self._connection))
            if not self._unsent_bytes:
                await self._send_headers(self._connection)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def send(self, chunk: bytes) -> bool:
        """Send a piece of the body; returns False when the server has answered already and wants no more."""
        connection = self._live()
        self._unsent_bytes -= len(chunk)
        if not self._is_headed and len(chunk) <= SMALL_BYTES:
            # A small body goes out with its headers: the server reads it in one go, and need not be woken twice.
            await self._send_headers(connection, chunk)
        else:
            if not self._is_headed:
                await self._send_headers(connection)
            writing = asyncio.ensure_future(connection.write(chunk))
            await self._first_of(writing, self._reader.headed)
        # An answer to all of it may be there by now, and is none that came too soon.
        return not (self._unsent_bytes and self._reader.headed.done())

    async def answer(self) -> int:
        """End the request and return the status of the answer; the body then comes from `chunks`."""
        connection = self._live()
        if not self._is_headed:
            await self._send_headers(connection)
        # an answer that came before the whole body is the last one on this connection
        if not self._detached and not (self._unsent_bytes and self._reader.headed.done()):
            connection.finish()
        await self._first_of(self._reader.headed)
        if not self._reader.status:
            raise self._broken("closed the connection without an answer")
        return self._reader.status

    async def chunks(self) -> AsyncGenerator[bytes | bytearray]:
        """Yield the body of the answer as it comes.

        Raises
        ------
        ExchangeError
            The server fell silent, or closed the connection before the end that it had announced.
        """
        if self._detached:
            async for block in self._blocks():
                yield block
            return
        received = 0
        while True:
            chunk = await self._in_time(self._reader.take())
            if chunk is None:
                break
            received += len(chunk)
            yield chunk
        if not self._reader.whole:
            announced = self.headers.get("Content-Length")
            of = f" of {announced}" if announced else ""
            raise self._broken(f"closed the connection after {received}{of} bytes")

    async def whole(self, most_bytes: int) -> bytes | None:
        """Return the body of the answer, or None when it is larger than `most_bytes`."""
        answer = bytearray()
        async with aclosing(self.chunks()) as chunks:
            async for chunk in chunks:
                answer += chunk
                if len(answer) > most_bytes:
                    return None
        return bytes(answer)

    async def _blocks(self) -> AsyncGenerator[bytearray]:
        """Yield a body of known length, read straight from the socket into blocks.

        Passing it through `HTTP1Connection` in 64 KiB chunks costs twice the processor time.
        """
        stream, size = self._stream, self._reader.announced_bytes
        if stream is None or size is None:
            raise RuntimeError("the exchange is used outside of its `async with`")
        while self._left_bytes:
            block = bytearray(min(BLOCK_BYTES, self._left_bytes))
            filled = 0
            while filled < len(block):
                try:
                    async with asyncio.timeout(self._stall_seconds):
                        filled += await stream.read_into(memoryview(block)[filled:], partial=True)  # type: ignore[arg-type]
                except TimeoutError:
                    raise self._stalled() from None
                except (StreamClosedError, OSError):
                    received = size - self._left_bytes + filled
                    raise self._broken(f"closed the connection after {received} of {size} bytes") from None
            self._left_bytes -= filled
            yield block
            await asyncio.sleep(0)  # reading data that is there never yields to the loop by itself

    def _detach(self) -> None:
        self._live().detach()
        self._detached = True
        self._left_bytes = self._reader.announced_bytes or 0

    async def refusal_body(self) -> bytes:
        """Return the beginning of an answer that is only worth a look, whole or not."""
        body = b""
        try:
            async with aclosing(self.chunks()) as chunks:
                async for chunk in chunks:
                    body += chunk
                    if len(body) >= REFUSAL_BODY_BYTES:
                        break
        except ExchangeError:
            pass  # the status is known, which is what counts; the text behind it is a courtesy
        return body[:REFUSAL_BODY_BYTES]

    async def _connect(self) -> IOStream:
        stream = None if self._connections is None else self._connections.take(self._target)
        self._was_used = stream is not None
        return stream or await connect(self._target, min(CONNECT_SECONDS, self._stall_seconds))

    async def _send_headers(self, connection: HTTP1Connection, chunk: bytes | None = None) -> None:
        self._is_headed = True
        headers = HTTPHeaders(
            {"Host": self._target.authority, "User-Agent": "transform-gateway", "Connection": self._after}
        )
        if self._target.user_info:
            text = urllib.parse.unquote(self._target.user_info).encode()
            headers["Authorization"] = "Basic " + base64.b64encode(text).decode("ascii")
        for name, value in self._headers.items():
            headers[name] = value
        start = RequestStartLine(self._method, self._target.request_target, "HTTP/1.1")
        await self._first_of(
            asyncio.ensure_future(connection.write_headers(start, headers, chunk)), self._reader.headed
        )

    async def _read(self, connection: HTTP1Connection) -> None:
        try:
            await connection.read_response(self._reader)
        except (StreamClosedError, OSError):
            pass  # seen by whoever waits: the reader has no status or is not whole
        finally:
            self._reader.end()

    async def _first_of(self, *futures: asyncio.Future[None]) -> None:
        """Wait for one of `futures` or the end of the connection."""
        waiting: set[asyncio.Future[None]] = {*futures}
        if self._task is not None:
            waiting.add(self._task)
        done, _ = await asyncio.wait(waiting, timeout=self._stall_seconds, return_when=asyncio.FIRST_COMPLETED)
        for future in waiting - done:
            if future is not self._task and future is not self._reader.headed:
                future.add_done_callback(_forget)
        if not done:
            raise self._stalled()
        for future in done:
            if not future.cancelled() and future.exception() is not None and not self._reader.status:
                raise self._broken("closed the connection")
        if self._reader.headed.done() and not self._reader.status:
            raise self._broken("closed the connection without an answer")

    async def _in_time(self, work: Awaitable[bytes | None]) -> bytes | None:
        try:
            async with asyncio.timeout(self._stall_seconds):
                return await work
        except TimeoutError:
            raise self._stalled() from None

    async def _close(self) -> None:
        self._reader.end()
        if self._is_reusable() and self._connections is not None and self._stream is not None:
            if not self._detached:
                self._live().detach()
            self._connections.give_back(self._target, self._stream)
        else:
            if self._connection is not None and not self._detached:
                self._connection.close()
            if self._stream is not None:
                self._stream.close()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=1.0)

    def _is_reusable(self) -> bool:
        """Whether request and answer both came to their end, and the server keeps the connection open."""
        if self._task is None or self._unsent_bytes or not (self._detached or self._task.done()):
            return False
        whole = self._left_bytes == 0 if self._detached else self._reader.whole
        return whole and self._reader.keeps_open

    def _live(self) -> HTTP1Connection:
        if self._connection is None:
            raise RuntimeError("the exchange is used outside of its `async with`")
        return self._connection

    def _stalled(self) -> ExchangeError:
        # Never a stale connection, used before or not: that one is closed, this one is silent, and costs as much again.
        text = f"sent and took no byte for {self._stall_seconds:g} s"
        return ExchangeError(f"the storage at {self._target.authority} {text}")

    def _broken(self, what: str) -> ExchangeError:
        if self._was_used and not self._reader.status and self._connections is not None:
            self._connections.forget(self._target)
            return StaleConnection(f"the storage at {self._target.authority} {what}")
        error = self._stream.error if self._stream is not None else None
        reason = f" ({reason_of(error)})" if error is not None else ""
        return ExchangeError(f"the storage at {self._target.authority} {what}{reason}")


def _forget(future: asyncio.Future[None]) -> None:
    """Look at the outcome of a write that nobody waits for any more, so that the loop does not report it."""
    if not future.cancelled():
        future.exception()
