"""Requests go to allowed hosts only, and never to the metadata service of a cloud, whatever name it has."""

from __future__ import annotations

import asyncio
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from gateway.storage import ObjectClient
from gateway.storage.objects.errors import StorageError
from gateway.storage.objects.hosts import REFUSED_NETWORKS, refusal
from kernel_spec.sandbox.egress import denied_addresses
from tests.gateway.storage.faulty_server import FaultyServer, answer
from tests.gateway.storage.objects.test_client import get

METADATA = (
    "169.254.169.254",
    "169.254.170.2",
    "0xa9fea9fe",
    "2852039166",
    "0251.0376.0251.0376",
    "169.254.43518",
    "169.254.169.254.",
    "[fe80::1]",
    "[fe80::1%25eth0]",
    "[fd00:ec2::254]",
    "[::ffff:169.254.169.254]",
    "[::ffff:a9fe:a9fe]",
    "[64:ff9b::a9fe:a9fe]",
    "[fd00:ec2::23]",
    "[fd20:ce::254]",
    "168.63.129.16",
    "100.100.100.200",
)


@pytest.mark.parametrize("host", METADATA)
def test_metadata_addresses_are_refused_in_every_spelling(host: str) -> None:
    reason = refusal(URL(f"http://{host}:80/latest/meta-data?token=5ecr3t", encoded=True), ["*"])
    assert reason is not None
    assert "link-local or metadata address" in reason
    assert "5ecr3t" not in reason


def test_gateway_and_jobs_are_kept_from_the_same_addresses() -> None:
    assert set(REFUSED_NETWORKS) == set(denied_addresses.METADATA)


@pytest.mark.parametrize("host", ["169.254.169.254", "0xa9fea9fe", "[fe80::1]"])
async def test_no_request_is_sent_to_a_refused_address(host: str, client: ObjectClient) -> None:
    with pytest.raises(StorageError, match="link-local or metadata address") as caught:
        await get(client, f"http://{host}/latest")
    assert not caught.value.is_transient


async def test_name_with_a_refused_address_is_refused(client: ObjectClient, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve = socket.getaddrinfo

    def answer_metadata(host: str, port: Any, *rest: Any, **more: Any) -> Any:
        if host != "harmless.test":
            return resolve(host, port, *rest, **more)
        stream = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*stream, ("127.0.0.1", port)), (*stream, ("169.254.169.254", port))]

    monkeypatch.setattr(socket, "getaddrinfo", answer_metadata)
    with FaultyServer([answer(200, b"x")]) as server:
        with pytest.raises(StorageError, match=r"refused: 169\.254\.169\.254 is a link-local") as caught:
            await get(client, server.url(host="harmless.test"))
        assert await get(client, server.url(host="localhost")) == b"x"
    assert not caught.value.is_transient
    assert len(server.received) == 1


async def test_a_silent_name_server_delays_no_file(client: ObjectClient, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answered = asyncio.Event(), threading.Event()
    loop, resolve = asyncio.get_running_loop(), socket.getaddrinfo
    loop.set_default_executor(ThreadPoolExecutor(1))

    def wait(host: str, *rest: Any, **more: Any) -> Any:
        if host != "silent.test":
            return resolve(host, *rest, **more)
        loop.call_soon_threadsafe(asked.set)
        answered.wait(60)
        raise socket.gaierror(socket.EAI_AGAIN, "no answer")

    monkeypatch.setattr(socket, "getaddrinfo", wait)
    fetching = asyncio.ensure_future(get(client, "http://silent.test/x"))
    try:
        async with asyncio.timeout(30):
            await asked.wait()
            await asyncio.to_thread(Path(__file__).read_bytes)
    finally:
        answered.set()
    with pytest.raises(StorageError, match="no answer"):
        await fetching


@pytest.mark.parametrize(
    ("pattern", "url", "is_allowed"),
    [
        ("s3.example.com", "https://s3.example.com/b/k", True),
        ("s3.example.com", "https://S3.Example.com./b/k", True),
        ("s3.example.com", "https://s3.example.com.evil.test/b/k", False),
        ("s3.example.com", "https://evil.test/s3.example.com", False),
        ("*.example.com", "https://bucket.s3.example.com/k", True),
        ("*.example.com", "https://example.com/k", False),
        ("minio:9000", "http://minio:9000/k", True),
        ("minio:9000", "http://minio/k", False),
        ("s3.example.com:443", "https://s3.example.com/k", True),
        ("127.0.0.1", "http://127.0.0.1:8080/k", True),
        ("127.0.0.1", "http://localhost:8080/k", False),
        ("[::1]:9000", "http://[::1]:9000/k", True),
    ],
)
def test_host_is_compared_as_a_whole(pattern: str, url: str, is_allowed: bool) -> None:
    assert (refusal(URL(url, encoded=True), ["other.test", pattern]) is None) == is_allowed


async def test_client_sends_nothing_to_another_host() -> None:
    with FaultyServer([answer(200, b"x")]) as server:
        async with ObjectClient(5.0, hosts=["127.0.0.1"]) as client:
            assert await get(client, server.url()) == b"x"
            with pytest.raises(StorageError, match="localhost is not one of STORAGE_HOSTS"):
                await get(client, server.url(host="localhost"))
    assert len(server.received) == 1
