"""The receiving half of an exchange: takes an answer from Tornado's parser and hands it over chunk by chunk."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from tornado.httputil import HTTPHeaders, HTTPMessageDelegate, RequestStartLine, ResponseStartLine


class AnswerReader(HTTPMessageDelegate):
    """Hands the answer over, chunk by chunk; a server that is faster than we are waits.

    Attributes
    ----------
    headed : asyncio.Future
        Done when the headers are there, or when no answer can come any more (`status` is 0 then).
    whole : bool
        Whether the body came to its end.
    keeps_open : bool
        Whether the server lets the connection be used again after this answer.
    detach : callable or None
        Called at the headers of a body of known length; whoever sets it then reads the body from the socket.
    """

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.status = 0
        self.headers = HTTPHeaders()
        self.headed: asyncio.Future[None] = loop.create_future()
        self.whole = False
        self.keeps_open = False
        self.detach: Callable[[], object] | None = None
        self._chunk: bytes | None = None
        self._arrived = asyncio.Event()
        self._taken = asyncio.Event()
        self._closed = False

    def headers_received(
        self, start_line: ResponseStartLine | RequestStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        """Take status and headers; interim answers (1xx) are none."""
        if isinstance(start_line, ResponseStartLine) and start_line.code >= 200:
            self.status, self.headers = start_line.code, headers
            last = [word.strip() for word in headers.get("Connection", "").lower().split(",")]
            self.keeps_open = start_line.version == "HTTP/1.1" and "close" not in last
            if self.detach is not None and self.announced_bytes is not None:
                self.detach()
            if not self.headed.done():
                self.headed.set_result(None)
        return None

    @property
    def announced_bytes(self) -> int | None:
        """Length of the body where it is known and framed by nothing else."""
        if self.status in (204, 304) or "Transfer-Encoding" in self.headers:
            return None
        text = self.headers.get("Content-Length") or ""
        return int(text) if text.isascii() and text.isdigit() else None

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Hold the server back until somebody has taken the chunk."""
        if self._closed:
            return None
        self._chunk = chunk
        self._taken.clear()
        self._arrived.set()
        return self._hand_over()

    async def _hand_over(self) -> None:
        await self._taken.wait()

    def finish(self) -> None:
        """Note that the body is whole."""
        self.whole = True
        self._arrived.set()

    def on_connection_close(self) -> None:
        """Wake whoever waits for a chunk."""
        self._arrived.set()

    async def take(self) -> bytes | None:
        """Return the next chunk, or None when nothing more comes."""
        await self._arrived.wait()
        chunk, self._chunk = self._chunk, None
        if chunk is not None:
            self._arrived.clear()
            self._taken.set()
        return chunk

    def end(self, _: object = None) -> None:
        """Wake whoever waits: no further chunk comes."""
        self._closed = True
        self._taken.set()
        self._arrived.set()
        if not self.headed.done():
            self.headed.set_result(None)
