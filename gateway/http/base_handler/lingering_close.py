"""Refuse a request before its body was read, so that the caller can still read the response.

Closing a socket with unread bytes makes Linux send RST, and an RST destroys the response on its way to the caller
(RFC 9112, section 9.6). So the sending side is closed first, and the rest of the body is read and dropped, up to a
small number of bytes and seconds: enough for ordinary requests, too little to be worth an attack.
"""

from __future__ import annotations

import asyncio
import socket

from tornado.iostream import IOStream, StreamClosedError

LINGER_BYTES = 1 << 20
LINGER_SECONDS = 2.0

#: The oldest is the first.
_lingering: dict[asyncio.Task[None], None] = {}


def answer_and_linger(stream: IOStream, response: bytes) -> None:
    """Write `response`, drop the rest of the request, and close `stream`, which now belongs to this function."""
    task = asyncio.get_running_loop().create_task(_linger(stream, response))
    # the loop keeps only a weak reference to tasks
    _lingering[task] = None
    task.add_done_callback(lambda done: _lingering.pop(done, None))


def lingering() -> int:
    """Return the number of connections that are about to close."""
    return len(_lingering)


def close_lingering() -> bool:
    """Close the connection that lingers longest, so that a new one has its place; return whether there was one."""
    oldest = next(iter(_lingering), None)
    if oldest is None:
        return False
    del _lingering[oldest]
    oldest.cancel()
    return True


async def _linger(stream: IOStream, response: bytes) -> None:
    try:
        async with asyncio.timeout(LINGER_SECONDS):
            await stream.write(response)
            if stream.socket is not None:
                stream.socket.shutdown(socket.SHUT_WR)
            left = LINGER_BYTES
            while left > 0:
                left -= len(await stream.read_bytes(min(left, 65_536), partial=True))
    except (StreamClosedError, TimeoutError, OSError):
        return  # the client disconnected, or the time is over
    finally:
        stream.close()
