"""Connections to a store serve again, and one that the store has closed meanwhile does no harm."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.settings import Settings
from gateway.storage import Connections, fetch_tables
from gateway.storage.connections import StaleConnection
from gateway.storage.exchange import Exchange
from gateway.storage.target import ExchangeError, Target
from gateway.storage.upload import put_object
from tests.gateway.storage.faulty_server import Behave, Conversation, FaultyServer, answer
from tests.gateway.storage.test_fetch import Recorder, table
from tests.s3 import S3Server


@pytest.fixture
def connections() -> Iterator[Connections]:
    made = Connections()
    yield made
    made.close()


def serve(*bodies: bytes, then: str = "wait", headers: str = "") -> Behave:
    """Answer so many requests on one connection, then wait for the peer's close or reset the connection."""

    def behave(conversation: Conversation) -> None:
        for number, body in enumerate(bodies):
            if number:
                head = b""
                while b"\r\n\r\n" not in head:
                    data = conversation.connection.recv(1)
                    if not data:
                        return
                    head += data
            conversation.send(200, body, headers=headers)
        if then == "reset":
            conversation.connection.recv(1)  # the next request begins
            conversation.reset()
        else:
            conversation.wait_for_close()

    return behave


async def get(url: str, connections: Connections) -> bytes:
    async with Exchange("GET", url, {}, 5, connections) as exchange:
        assert await exchange.answer() == 200
        return b"".join([bytes(chunk) async for chunk in exchange.chunks()])


async def test_requests_one_after_the_other_share_a_connection(connections: Connections) -> None:
    with FaultyServer([serve(b"one", b"two", b"")]) as server:
        assert [await get(server.url(), connections) for _ in range(3)] == [b"one", b"two", b""]
        connections.close()
    assert len(server.received) == 1, "the server counts connections"
    assert server.received[0].headers["connection"] == "keep-alive"


@pytest.mark.parametrize("headers", ["Connection: close\r\n", "connection: Keep-Alive, Close\r\n"])
async def test_a_server_that_says_close_is_believed(headers: str, connections: Connections) -> None:
    with FaultyServer([serve(b"one", headers=headers), serve(b"two")]) as server:
        assert [await get(server.url(), connections) for _ in range(2)] == [b"one", b"two"]
        connections.close()
    assert len(server.received) == 2


async def test_a_body_that_was_not_read_to_its_end_spoils_the_connection(connections: Connections) -> None:
    with FaultyServer([serve(b"x" * 3_000_000), serve(b"two")]) as server:
        async with Exchange("GET", server.url(), {}, 5, connections) as exchange:
            await exchange.answer()
            async for _ in exchange.chunks():
                break
        assert await get(server.url(), connections) == b"two"
        connections.close()
    assert len(server.received) == 2


async def test_a_connection_that_breaks_before_the_answer_is_replaced_at_once(
    connections: Connections, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.storage.transfer.RETRY_DELAYS_SECONDS", ())  # no other attempt would help
    with FaultyServer([serve(b"", then="reset"), answer(200)]) as server:
        await get(server.url(), connections)
        await put_object(server.url(), b"content", settings, "the output", connections=connections)
    assert [request.method for request in server.received] == ["GET", "PUT"]
    assert server.received[1].body == b"content"


async def test_a_server_that_falls_silent_is_not_taken_for_a_connection_that_was_closed(
    connections: Connections,
) -> None:
    with FaultyServer([serve(b"one")]) as server:
        assert await get(server.url(), connections) == b"one"
        with pytest.raises(ExchangeError, match=r"no byte for 0\.2 s") as caught:
            async with Exchange("GET", server.url(), {}, 0.2, connections) as exchange:
                await exchange.answer()
    assert not isinstance(caught.value, StaleConnection)
    assert len(server.received) == 1, "it was the same connection"


async def test_a_connection_with_something_to_read_is_not_used_again(connections: Connections) -> None:
    def farewell(conversation: Conversation) -> None:
        conversation.send(200, b"one")
        conversation.connection.sendall(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")

    with FaultyServer([farewell, serve(b"two")]) as server:
        assert await get(server.url(), connections) == b"one"
        for _, _, stream in connections._idle:
            peer = socket.socket(fileno=os.dup(stream.socket.fileno()))
            with peer:
                peer.setblocking(True)
                peer.recv(1, socket.MSG_PEEK)  # the farewell, or the end, has arrived
        assert await get(server.url(), connections) == b"two"
        connections.close()


async def test_idle_connections_are_closed_after_a_while(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.storage.connections.IDLE_SECONDS", 0.05)
    with FaultyServer([serve(b"one")]) as server:
        await get(server.url(), connections)
        # leaving the block waits for the server, which waits until we have closed
        for thread in server._threads:
            while thread.is_alive():  # noqa: ASYNC110 - a thread sets no event of ours
                await asyncio.sleep(0.01)
    assert connections.take(Target.parse(server.url())) is None


async def test_a_real_server_serves_several_jobs_on_the_same_connections(
    s3: S3Server, settings: Settings, tmp_path: Path, connections: Connections
) -> None:
    prefix = s3.new_prefix()
    s3.put(f"{prefix}/in", b'{"a":1}\n')
    for number in range(3):
        into = tmp_path / str(number)
        into.mkdir()
        (fetched,) = await fetch_tables((table(s3.get_url(f"{prefix}/in")),), into, settings, Recorder(), connections)
        assert fetched.data_path.read_bytes() == b'{"a":1}\n'
        await put_object(s3.put_url(f"{prefix}/{number}"), b"out", settings, "the output", connections=connections)
        assert s3.get(f"{prefix}/{number}") == b"out"
    assert len(connections._idle) == 1
