"""HTTP requests to object stores over aiohttp: the URL exactly as given, streamed both ways, every wait bounded."""

from __future__ import annotations

import asyncio
import ssl
import urllib.request
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from types import TracebackType
from typing import Self

import aiohttp

from gateway.storage.objects.bodies import Pace, UploadBody
from gateway.storage.objects.errors import StorageError
from gateway.storage.objects.failures import cause, stalled, unanswered
from gateway.storage.objects.hosts import CheckedResolver, refusal
from gateway.storage.objects.target import Target

#: Longest time for DNS, TCP, proxy and TLS together.
CONNECT_SECONDS = 10.0

#: How long an idle connection is kept. Servers close theirs after 5 s or more, so the client closes first.
IDLE_SECONDS = 4.0

CLOSE_SECONDS = 1.0

ERROR_BODY_BYTES = 8192


class ObjectClient:
    """Sends requests to object stores, over connections that are kept for a moment for the next request.

    A small job makes five requests to one store; over TLS a new connection costs two or three round trips and a
    handshake, which is more than the request itself. Use as ``async with``, or call `aclose`.

    Parameters
    ----------
    stall_seconds : float
        Longest wait for the next byte of a server.
    use_proxies : bool
        Whether ``HTTP_PROXY``, ``HTTPS_PROXY`` and ``NO_PROXY`` of the environment apply. Requests to this machine
        never go to a proxy.
    hosts : sequence of str
        Patterns of the hosts that requests may go to; empty allows all but link-local and metadata addresses.
    tls : ssl.SSLContext, optional
        For ``https://``; by default the authorities that the system trusts.

    Attributes
    ----------
    parcels : ObjectClient
        Sends requests to other members of a cluster; this object itself where there is none.
    """

    def __init__(
        self,
        stall_seconds: float,
        *,
        use_proxies: bool = True,
        hosts: Sequence[str] = (),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.stall_seconds = stall_seconds
        self.parcels = self
        self._tls = tls
        self._hosts = tuple(hosts)
        self._proxies = urllib.request.getproxies() if use_proxies else {}
        self._session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: AsyncGenerator[bytes] | bytes | None = None,
        content_bytes: int = 0,
        on_progress: Callable[[int], None] | None = None,
    ) -> AsyncIterator[StorageResponse]:
        """Send one request and yield its answer; the connection is closed unless the answer is read to its end.

        Redirects are answers like any other.

        Parameters
        ----------
        method : str
            HTTP method.
        url : str
            Sent exactly as given.
        headers : mapping, optional
            Sent in addition to ``Host``, ``User-Agent`` and ``Content-Length``.
        content : async generator or bytes, optional
            The request's body. A generator is closed in any case.
        content_bytes : int
            Size of what a generator yields.
        on_progress : callable, optional
            Called with the number of bytes sent so far.

        Yields
        ------
        StorageResponse

        Raises
        ------
        StorageError
            There is no answer, or a success was answered before the whole body was sent.
        """
        target = Target.parse(url)
        reason = self.refusal(target)
        if reason is not None:
            raise StorageError(reason, is_transient=False)
        upload = None
        if content is not None:
            blocks, size = (_single(content), len(content)) if isinstance(content, bytes) else (content, content_bytes)
            upload = UploadBody(blocks, size, self.stall_seconds, on_progress)
        response = None
        try:
            response = await self._send(method, target, headers or {}, upload)
            if upload is not None and response.status < 300 and not upload.is_complete:
                text = f"answered {response.status} after {upload.sent_bytes} of {upload.size} bytes"
                raise StorageError(f"the storage at {target.authority} {text}")
            yield StorageResponse(response, target.authority, self.stall_seconds)
        except BaseException:
            if upload is not None and (response is None or not upload.is_complete):
                upload.abort()
            raise
        finally:
            if response is not None:
                response.close()

    def refusal(self, target: Target) -> str | None:
        """Return the reason why no request is sent to a target, or None if it is allowed."""
        return refusal(target.url, self._hosts)

    async def aclose(self) -> None:
        """Close all connections; closing again is harmless."""
        if self.parcels is not self:
            await self.parcels.aclose()
        session, self._session = self._session, None
        if session is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _send(
        self, method: str, target: Target, headers: Mapping[str, str], upload: UploadBody | None
    ) -> aiohttp.ClientResponse:
        own_headers = {"Host": target.authority}  # aiohttp would leave out a default port, which may be signed
        if target.authorization is not None:
            own_headers["Authorization"] = target.authorization
        connect_seconds = min(CONNECT_SECONDS, self.stall_seconds)
        # aiohttp's read timeout begins when the request is sent. During an upload an interim answer (1xx) would begin
        # it too early, so uploads have the deadline below alone.
        read_seconds = self.stall_seconds if upload is None else None
        # In two iterations the loop reads what servers sent on idle connections: so one that was closed, or got a 408
        # before the close, is not used again.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        try:
            async with asyncio.timeout(connect_seconds + self.stall_seconds) as deadline:
                if upload is not None:
                    upload.deadline = deadline
                return await self._open_session().request(
                    method,
                    target.url,
                    headers={**own_headers, **headers},
                    data=upload,
                    allow_redirects=False,
                    proxy=self._proxy_for(target),
                    timeout=aiohttp.ClientTimeout(total=None, connect=connect_seconds, sock_read=read_seconds),
                )
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if upload is not None and upload.failure is not None:
                raise upload.failure from None
            raise unanswered(error, target.authority, connect_seconds, self.stall_seconds) from None

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # No limit: a job's parallel fetches and uploads must not wait for each other's connections.
                connector=aiohttp.TCPConnector(
                    limit=0, keepalive_timeout=IDLE_SECONDS, resolver=CheckedResolver(), ssl=self._tls or True
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                headers={"User-Agent": "transform-gateway"},
                # A signature may cover any header, so none is sent that the caller did not ask for.
                skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type"),
            )
            # aiohttp would silently repeat PUT and GET once. There is no public switch (3.14); a test counts the
            # requests that a server gets.
            self._session._retry_connection = False
        return self._session

    def _proxy_for(self, target: Target) -> str | None:
        """Return the proxy from the environment, if one applies.

        aiohttp's ``trust_env`` does the same, and also sends credentials from ``~/.netrc``, with which S3 refuses a
        presigned URL; both look-ups cost a thread in each request.
        """
        proxy = self._proxies.get(target.url.scheme)
        if proxy is None or target.is_loopback or urllib.request.proxy_bypass(target.authority, self._proxies):
            return None
        return proxy


class StorageResponse:
    """The answer to a request.

    Attributes
    ----------
    status : int
    headers : mapping
        Names match in any case.
    authority : str
        Host and port of the URL, which error texts may name.
    """

    def __init__(self, response: aiohttp.ClientResponse, authority: str, stall_seconds: float) -> None:
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers
        self.authority = authority
        self._response = response
        self._stall_seconds = stall_seconds
        self._protocol = response.connection.protocol if response.connection is not None else None

    @property
    def announced_bytes(self) -> int | None:
        """Length of the body, if the server announced it."""
        return self._response.content_length

    async def chunks(self) -> AsyncGenerator[bytes]:
        """Yield the body as it arrives.

        Raises
        ------
        StorageError
            The server stalled, was too slow, or closed the connection before the end of the body.
        """
        pace = Pace(self._stall_seconds)
        received = 0
        while True:
            try:
                async with asyncio.timeout(self._stall_seconds):
                    chunk = await self._response.content.readany()
            except TimeoutError:
                raise stalled(self.authority, self._stall_seconds) from None
            except (aiohttp.ClientError, OSError) as error:
                raise self._cut_short(received, error) from None
            if not chunk:
                break
            received += len(chunk)
            pace.check(received)
            yield chunk
        # The end of the connection may be the end of the body, but a reset is not.
        ended_by = self._protocol.exception() if self._protocol is not None else None
        if self.announced_bytes is None and isinstance(ended_by, OSError):
            raise self._cut_short(received, ended_by)

    async def read(self, max_bytes: int) -> bytes | None:
        """Return the body, or None when it is larger than `max_bytes`.

        Parameters
        ----------
        max_bytes : int
            Largest body that is accepted.

        Returns
        -------
        bytes or None

        Raises
        ------
        StorageError
            As in `chunks`.
        """
        body = bytearray()
        async with aclosing(self.chunks()) as chunks:
            async for chunk in chunks:
                body += chunk
                if len(body) > max_bytes:
                    return None
        return bytes(body)

    async def read_error_body(self) -> bytes:
        """Return the beginning of an error's body, as much of it as arrives in time.

        Returns
        -------
        bytes
        """
        body = bytearray()
        # The status is known and matters most, so a body that fails to arrive is not another error.
        with suppress(StorageError, TimeoutError):
            async with asyncio.timeout(self._stall_seconds), aclosing(self.chunks()) as chunks:
                async for chunk in chunks:
                    body += chunk
                    if len(body) >= ERROR_BODY_BYTES:
                        break
        return bytes(body[:ERROR_BODY_BYTES])

    def _cut_short(self, received: int, error: Exception) -> StorageError:
        of = f" of {self.announced_bytes}" if self.announced_bytes is not None else ""
        text = f"closed the connection after {received}{of} bytes{cause(error)}"
        return StorageError(f"the storage at {self.authority} {text}")


async def _single(content: bytes) -> AsyncGenerator[bytes]:
    yield content
