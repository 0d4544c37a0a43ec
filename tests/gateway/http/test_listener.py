"""Connections: a listener without descriptors, and callers that do not read their answers."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Never

import pytest

from gateway.http import server
from gateway.http.listener import PAUSE_SECONDS, Listener
from gateway.http.server import GatewayServer
from tests.gateway.http.harness import eventually, head, raw


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


async def test_a_caller_that_reads_no_answer_is_disconnected(
    port: int, http_server: GatewayServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # it needs no token, and each connection that waits is one less for those that have one
    monkeypatch.setattr(server, "STALL_SECONDS", 0.3)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)  # the client reads no further
    try:
        writer.write(500 * head("GET", "/openapi.json", token=None))
        await reader.readexactly(1)
        assert await eventually(lambda: not http_server._connections)
        assert (await raw(port, head("GET", "/healthz/live", "Connection: close", token=None))).status == 200
    finally:
        writer.transport.abort()
