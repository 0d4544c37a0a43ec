"""Connections to object stores: opened with deadlines, and kept for a moment for the next request to the same store.

A small job makes five requests to one store. Over TLS each new connection costs two or three round trips and a
handshake, which is more than the request itself.

Which of two idle connections is still good cannot be known for sure: the server may be closing it now. One that has
anything to read is not used again; one that breaks before any answer is told apart (`StaleConnection`), so that the
request is repeated at once on a new one.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import ssl
import time
from contextlib import suppress
from functools import cache

from tornado.iostream import IOStream, StreamClosedError
from tornado.tcpclient import TCPClient

from gateway.storage.target import ExchangeError, Target

CONNECT_SECONDS = 10.0
STREAM_BUFFER_BYTES = 4 << 20
IDLE_SECONDS = 4.0
"""Shorter than what servers allow (5 s is the shortest default in use), so that it is us who close."""

MOST_IDLE = 16


@cache
def _tls_context() -> ssl.SSLContext:
    return ssl.create_default_context()


class StaleConnection(ExchangeError):
    """A connection that had served before broke before any answer; the request may be repeated on a new one."""


class Connections:
    """Idle connections, by where they lead; the newest is used first, so that surplus ones grow old and are closed."""

    def __init__(self) -> None:
        self._idle: list[tuple[float, tuple[str, str, int], IOStream]] = []
        self._sweeping: asyncio.TimerHandle | None = None

    def take(self, target: Target) -> IOStream | None:
        """Return an idle connection to the target's host and port, owned by the caller from now on, or None."""
        for index in reversed(range(len(self._idle))):
            _, key, stream = self._idle[index]
            if key == _key(target):
                del self._idle[index]
                if _is_quiet(stream):
                    return stream
                stream.close()
        return None

    def give_back(self, target: Target, stream: IOStream) -> None:
        """Keep a connection whose last answer is whole, for a moment."""
        if stream.closed():
            return
        self._idle.append((time.monotonic() + IDLE_SECONDS, _key(target), stream))
        if len(self._idle) > MOST_IDLE:
            self._idle.pop(0)[2].close()
        if self._sweeping is None:
            self._sweep()

    def forget(self, target: Target) -> None:
        """Close every idle connection to the target: one of them broke, which is how a restarted server shows."""
        for entry in [entry for entry in self._idle if entry[1] == _key(target)]:
            self._idle.remove(entry)
            entry[2].close()

    def close(self) -> None:
        """Close all."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        while self._idle:
            self._idle.pop()[2].close()

    def _sweep(self) -> None:
        self._sweeping = None
        while self._idle and self._idle[0][0] <= time.monotonic():
            self._idle.pop(0)[2].close()
        if self._idle:
            pause = self._idle[0][0] - time.monotonic()
            self._sweeping = asyncio.get_running_loop().call_later(max(pause, 0.01), self._sweep)


def _key(target: Target) -> tuple[str, str, int]:
    return target.scheme, target.host, target.port


def _is_quiet(stream: IOStream) -> bool:
    """Whether nothing arrived since the last answer: what would is a farewell, or the end of the connection."""
    if stream.closed():
        return False
    waiting = select.poll()
    waiting.register(stream.fileno(), select.POLLIN | select.POLLHUP | select.POLLERR)
    return not waiting.poll(0)


async def connect(target: Target, seconds: float) -> IOStream:
    """Open a connection, with TLS where the target's scheme says so.

    Raises
    ------
    ExchangeError
        It could not be had within `seconds`; the text says why.
    """
    try:
        stream = await _open(target, seconds)
        stream.set_nodelay(True)
        return stream if target.scheme == "http" else await _start_tls(stream, target, seconds)
    except TimeoutError:
        raise ExchangeError(f"the storage at {target.authority} could not be reached within {seconds:g} s") from None
    except (OSError, StreamClosedError, UnicodeError) as error:
        text = f"the storage at {target.authority} could not be reached: {reason_of(error)}"
        raise ExchangeError(text) from None


async def _open(target: Target, seconds: float) -> IOStream:
    family = _address_family(target.host)
    if family is None:
        return await TCPClient().connect(target.host, target.port, max_buffer_size=STREAM_BUFFER_BYTES, timeout=seconds)
    # An address needs no resolver, which would be a thread and a millisecond.
    stream = IOStream(socket.socket(family), max_buffer_size=STREAM_BUFFER_BYTES)
    try:
        async with asyncio.timeout(seconds):
            return await stream.connect((target.host, target.port))
    except BaseException:
        stream.close()
        raise


def _address_family(host: str) -> socket.AddressFamily | None:
    for family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError):
            socket.inet_pton(family, host)
            return family
    return None


async def _start_tls(stream: IOStream, target: Target, seconds: float) -> IOStream:
    # start_tls moves the socket to a stream that nobody holds until the handshake is over; shutting down a duplicate
    # ends that stream too, so a cancelled handshake does not stay open
    guard = socket.socket(fileno=os.dup(stream.socket.fileno()))
    try:
        async with asyncio.timeout(seconds):
            return await stream.start_tls(False, _tls_context(), server_hostname=target.host)
    except BaseException:
        with suppress(OSError):  # the peer may have been faster
            guard.shutdown(socket.SHUT_RDWR)
        raise
    finally:
        guard.close()


def reason_of(error: BaseException) -> str:
    """Return why a connection broke, in the operating system's or TLS's words."""
    if isinstance(error, StreamClosedError) and error.real_error is not None:
        error = error.real_error
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)) or type(error).__name__
