"""Refusing a request before its body was read, so that the caller still gets to read the answer.

Closing a socket while bytes of the body wait unread in it makes the kernel send RST, and an RST destroys the answer on
its way to the caller (RFC 9112, section 9.6). So the sending side is closed first, and what still comes in is thrown
away, up to a small number of bytes and seconds: enough for the bodies that honest callers send, nothing to an attacker.
"""

from __future__ import annotations

import asyncio
import socket

from tornado.iostream import IOStream, StreamClosedError

LINGER_BYTES = 1 << 20
LINGER_SECONDS = 2.0

_lingering: set[asyncio.Task[None]] = set()


def answer_and_linger(stream: IOStream, response: bytes) -> None:
    """Write `response`, then throw away what comes, then close `stream`, which is owned from now on."""
    task = asyncio.get_running_loop().create_task(_linger(stream, response))
    # the loop keeps only a weak reference to tasks
    _lingering.add(task)
    task.add_done_callback(_lingering.discard)


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
        return  # the caller hung up, or had its time
    finally:
        stream.close()
