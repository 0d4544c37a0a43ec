"""Requests reach the server as they are meant, connections serve again, and a closed one does no harm."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from gateway.core.settings import Settings
from gateway.storage import ObjectClient, fetch_tables, put_object
from gateway.storage.objects import client as module
from gateway.storage.objects import retries
from gateway.storage.objects.errors import StorageError
from tests.gateway.storage.conftest import Recorder, open_descriptors
from tests.gateway.storage.faulty_server import Behave, Conversation, FaultyServer, answer, reset
from tests.gateway.storage.inputs.test_fetch import table
from tests.support.s3 import S3Server


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


async def get(client: ObjectClient, url: str) -> bytes:
    async with client.request("GET", url) as given:
        assert given.status == 200
        return b"".join([chunk async for chunk in given.chunks()])


async def test_requests_one_after_the_other_share_a_connection(client: ObjectClient) -> None:
    with FaultyServer([serve(b"one", b"two", b"")]) as server:
        assert [await get(client, server.url()) for _ in range(3)] == [b"one", b"two", b""]
        await client.aclose()
    assert len(server.received) == 1, "the server counts connections"


async def test_parallel_requests_do_not_wait_for_each_other(client: ObjectClient) -> None:
    together = threading.Barrier(120)

    def wait_for_the_others(conversation: Conversation) -> None:
        together.wait(60)
        conversation.send(200, b"x")

    with FaultyServer([wait_for_the_others]) as server:
        found = await asyncio.gather(*(get(client, server.url()) for _ in range(together.parties)))
    assert found == [b"x"] * together.parties


@pytest.mark.parametrize("headers", ["Connection: close\r\n", "connection: Keep-Alive, Close\r\n"])
async def test_connection_close_is_honoured(headers: str, client: ObjectClient) -> None:
    with FaultyServer([serve(b"one", headers=headers), serve(b"two")]) as server:
        assert [await get(client, server.url()) for _ in range(2)] == [b"one", b"two"]
        await client.aclose()
    assert len(server.received) == 2


async def test_a_body_that_was_not_read_to_its_end_spoils_the_connection(client: ObjectClient) -> None:
    with FaultyServer([serve(b"x" * 3_000_000), serve(b"two")]) as server:
        async with client.request("GET", server.url()) as given:
            async for _ in given.chunks():
                break
        assert await get(client, server.url()) == b"two"
        await client.aclose()
    assert len(server.received) == 2


async def test_a_connection_that_breaks_before_the_answer_is_replaced(client: ObjectClient) -> None:
    with FaultyServer([serve(b"", then="reset"), answer(200)]) as server:
        await get(client, server.url())
        await put_object(client, server.url(), b"content", "the output")
    assert [request.method for request in server.received] == ["GET", "PUT"]
    assert server.received[1].body == b"content"


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "POST"])
async def test_a_request_is_sent_once(method: str, client: ObjectClient) -> None:
    """Also where a client may repeat it: attempts are counted, delayed and bounded by whoever asks for them."""
    with FaultyServer([reset()]) as server:
        with pytest.raises(StorageError, match="closed the connection without an answer"):
            async with client.request(method, server.url()):
                pass
        assert len(server.received) == 1


async def test_a_silent_server_is_reported_after_the_idle_limit(hasty_client: ObjectClient) -> None:
    with FaultyServer([serve(b"one")]) as server:
        assert await get(hasty_client, server.url()) == b"one"
        with pytest.raises(StorageError, match=r"sent and accepted no byte for 0\.3 s"):
            await get(hasty_client, server.url())
    assert len(server.received) == 1, "it was the same connection"


@pytest.mark.parametrize(
    ("farewell", "attempts"), [(b"", 1), (b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n", 2)]
)
async def test_a_connection_that_the_server_ended_meanwhile_does_no_harm(
    farewell: bytes, attempts: int, client: ObjectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "RETRY_DELAYS_SECONDS", (0.01,) * (attempts - 1))
    may_end, ended = threading.Event(), threading.Event()

    def end(conversation: Conversation) -> None:
        conversation.send(200, b"one")
        may_end.wait(60)
        conversation.connection.sendall(farewell)
        conversation.connection.shutdown(socket.SHUT_WR)
        ended.set()
        conversation.wait_for_close()

    with FaultyServer([end, answer(200)]) as server:
        assert await get(client, server.url()) == b"one"
        may_end.set()
        assert ended.wait(60)  # without a turn of the loop, which therefore has not seen it yet
        await put_object(client, server.url(), b"two", "the output")
    assert [request.method for request in server.received] == ["GET", "PUT"]


async def test_idle_connections_are_closed_after_a_while(client: ObjectClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.05)
    closed = threading.Event()

    def wait(conversation: Conversation) -> None:
        conversation.send(200, b"one")
        if conversation.wait_for_close():
            closed.set()

    with FaultyServer([wait]) as server:
        await get(client, server.url())
        assert await asyncio.to_thread(closed.wait, 60)


async def test_a_reset_is_no_end_of_a_body_without_length(client: ObjectClient) -> None:
    read = threading.Event()

    def cut(conversation: Conversation) -> None:
        conversation.connection.sendall(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        read.wait(60)
        conversation.reset()

    with FaultyServer([cut]) as server:
        async with client.request("GET", server.url()) as given:
            chunks = given.chunks()
            assert await anext(chunks) == b"half"
            read.set()
            with pytest.raises(StorageError, match=r"after 4 bytes \(Connection reset by peer\)"):
                await anext(chunks)


async def test_an_answer_that_is_not_http_is_reported(client: ObjectClient) -> None:
    with (
        FaultyServer([lambda conversation: conversation.connection.sendall(b"220 ftp ready\r\n\r\n")]) as server,
        pytest.raises(StorageError, match="answered something that is not HTTP"),
    ):
        await get(client, server.url())


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "a..b", "xn--\u2603".encode("ascii", "replace").decode()])
async def test_host_names_that_dns_cannot_have_are_reported(host: str, client: ObjectClient) -> None:
    with pytest.raises(StorageError, match=r"could not be reached|no host"):
        await get(client, f"http://{host}/key")


@pytest.mark.parametrize(
    ("written", "sent"),
    [("storage.example:80", "storage.example:80"), ("u%73er:p%40ss@Storage.example", "Storage.example")],
)
async def test_host_header_is_as_written_and_credentials_become_a_header(
    written: str, sent: str, client: ObjectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultyServer([answer(200, headers="Set-Cookie: a=b; Path=/\r\nConnection: close\r\n")]) as server:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.port}")
        async with ObjectClient(5.0) as behind_a_proxy:
            for _ in range(2):
                await get(behind_a_proxy, f"http://{written}/key")
    assert [request.headers["host"] for request in server.received] == [sent, sent]
    assert {request.headers.get("authorization") for request in server.received} == {
        "Basic dXNlcjpwQHNz" if "@" in written else None
    }
    assert all("cookie" not in request.headers for request in server.received)


async def test_nothing_stays_open_after_the_end() -> None:
    before = open_descriptors()
    with FaultyServer([serve(b"one")]) as server:
        async with ObjectClient(5.0) as client:
            await get(client, server.url())
        await client.aclose()
    assert open_descriptors() <= before


def test_commands_start_without_it() -> None:
    """It takes a tenth of a second to import, which the gateway has and a command line has not."""
    code = (
        "import importlib, sys\n"
        "from gateway.cli import COMMANDS\n"
        "for module, _ in COMMANDS.values(): importlib.import_module(module)\n"
        "sys.exit('aiohttp' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


async def test_a_real_server_serves_several_jobs_on_the_same_connections(
    s3: S3Server, settings: Settings, tmp_path: Path, client: ObjectClient
) -> None:
    prefix = s3.new_prefix()
    s3.put(f"{prefix}/in", b'{"a":1}\n')
    used = set()
    for number in range(3):
        into = tmp_path / str(number)
        into.mkdir()
        tables = (table(s3.get_url(f"{prefix}/in")),)
        (fetched,) = await fetch_tables(client, tables, into, settings, Recorder())
        assert fetched.data_path.read_bytes() == b'{"a":1}\n'
        await put_object(client, s3.put_url(f"{prefix}/{number}"), b"out", "the output")
        used.add(frozenset(c.laddr for c in psutil.Process().net_connections() if c.raddr and c.raddr.port == s3.port))
        assert s3.get(f"{prefix}/{number}") == b"out"
    assert len(used) == 1
