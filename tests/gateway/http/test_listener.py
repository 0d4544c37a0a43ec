"""A listener that is closed while the process has no more descriptors."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Never

from gateway.http.listener import PAUSE_SECONDS, Listener


class Exhausted(socket.socket):
    """A socket whose connections get no descriptor."""

    asked = 0

    def accept(self) -> Never:
        self.asked += 1
        raise OSError(errno.EMFILE, "Too many open files")


async def test_a_closed_listener_does_not_accept_after_a_pause() -> None:
    with Exhausted() as listening, socket.socket() as caller:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.setblocking(False)
        paused, passed = asyncio.Event(), asyncio.Event()
        listener = Listener(listening, lambda *_: None, paused.set)
        caller.connect(listening.getsockname())
        async with asyncio.timeout(60):
            await paused.wait()
            listener.close()
            asked = listening.asked
            # timers run in their order, so those of the listener would be first
            asyncio.get_running_loop().call_later(3 * PAUSE_SECONDS, passed.set)
            await passed.wait()
        assert listening.asked == asked
