"""Storage behind TLS: a private authority is trusted by SSL_CERT_FILE, what is not trusted is refused by name."""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
from pathlib import Path

import pytest
import trustme

from gateway.core.errors import JobFailed
from gateway.storage import ObjectClient, put_object
from gateway.storage.objects.errors import StorageError
from tests.gateway.storage.faulty_server import Conversation, FaultyServer, answer
from tests.gateway.storage.objects.test_client import get

READ_AND_WRITE = """
import asyncio, sys
from gateway.core.errors import JobFailed
from gateway.storage import ObjectClient, put_object
async def main(url):
    async with ObjectClient(10.0) as client:
        async with client.request("GET", url) as answer:
            print((await answer.read(1000)).decode())
        await put_object(client, url, bytes(3_000_000), "the output")
asyncio.run(main(sys.argv[1]))
"""


def context(authority: trustme.CA, host: str) -> ssl.SSLContext:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(host).configure_cert(tls)
    return tls


async def test_private_authority_is_trusted_by_ssl_cert_file(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with FaultyServer([answer(200, b"content")], tls=context(authority, "localhost")) as server:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", READ_AND_WRITE, server.url(host="localhost"),
            env={**os.environ, "SSL_CERT_FILE": str(tmp_path / "ca.pem")},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        said, complained = await process.communicate()
    assert (said, complained, process.returncode) == (b"content\n", b"", 0)
    assert server.received[-1].body == bytes(3_000_000)


async def test_certificates_that_are_not_trusted_are_named(client: ObjectClient) -> None:
    with FaultyServer([answer(200)], tls=context(trustme.CA(), "localhost")) as server:
        with pytest.raises(StorageError) as caught:
            await get(client, server.url(host="localhost"))
        said = f"the storage at localhost:{server.port} could not be reached: its certificate is not trusted: "
        assert str(caught.value).startswith(said)
        assert server.received == []


async def test_tls_to_a_plain_server_is_reported(client: ObjectClient) -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(StorageError, match="it answered without TLS: its URL must begin with http://"):
            await get(client, f"https://127.0.0.1:{port}/key")


@pytest.mark.parametrize(
    "said",
    [
        b"\x15\x03\x01\x00\x02\x02\x46",  # a TLS alert: protocol_version
        b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n<center>The plain HTTP request was sent to HTTPS port</center>",
    ],
    ids=["alert", "go", "nginx"],
)
async def test_http_to_a_server_of_https_is_reported(said: bytes, client: ObjectClient) -> None:
    def behave(conversation: Conversation) -> None:
        conversation.connection.sendall(said)

    with FaultyServer([behave]) as server, pytest.raises(JobFailed, match="its URL must begin with https://") as caught:
        await put_object(client, server.url(), b"content", "the output")
    assert caught.value.retryable is False
