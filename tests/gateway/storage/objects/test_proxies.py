"""HTTP_PROXY, HTTPS_PROXY and NO_PROXY lead requests as they do for other programs; this machine is never behind one."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import pytest
import trustme

from gateway.storage import ObjectClient, put_object
from gateway.storage.objects import retries
from gateway.storage.objects.errors import StorageError
from tests.gateway.storage.faulty_server import FaultyServer, answer
from tests.gateway.storage.objects.test_client import get
from tests.gateway.storage.proxy import Proxy

HOST = "storage.invalid"


@pytest.fixture(autouse=True)
def _no_other_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(retries, "RETRY_DELAYS_SECONDS", ())


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with FaultyServer([answer(200, b"content", "Connection: close\r\n")]) as server:
        yield server


@pytest.fixture
def proxy(server: FaultyServer) -> Iterator[Proxy]:
    with Proxy({HOST: server.port}) as proxy:
        yield proxy


async def test_http_goes_through_http_proxy_with_its_url_unchanged(
    server: FaultyServer, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    target = "/b%2Fu/k%C3%A9y//a/../b;c=d?X-Amz-Date=1&q=a+b%20c%2f&empty=&flag"
    async with ObjectClient(5.0) as client:
        assert await get(client, f"http://{HOST}:9000{target}") == b"content"
        await put_object(client, f"http://{HOST}:9000{target}", b"x" * 1_000_000, "the output")
    assert proxy.seen == [f"GET http://{HOST}:9000{target}", f"PUT http://{HOST}:9000{target}"]
    assert [request.target for request in server.received] == [target, target]
    assert server.received[0].headers["host"] == f"{HOST}:9000"
    assert server.received[1].body == b"x" * 1_000_000


@pytest.mark.parametrize("password", ["", "user:p%40ss"])
async def test_https_goes_through_a_tunnel_of_https_proxy(password: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert(HOST).configure_cert(tls)
    with FaultyServer([answer(200)], tls=tls) as server, Proxy({HOST: server.port}, password) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        async with ObjectClient(5.0) as client:
            # the certificate at the far end of the tunnel is seen, and this client does not trust it
            with pytest.raises(StorageError, match=f"{HOST} could not be reached: its certificate is not trusted"):
                await get(client, f"https://{HOST}/key")
    assert proxy.seen == [f"CONNECT {HOST}:443"]


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "HTTPS_PROXY"])
async def test_a_refusal_of_the_proxy_is_reported(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Proxy({}, "user:password") as proxy:
        monkeypatch.setenv(variable, f"http://127.0.0.1:{proxy.port}")
        async with ObjectClient(5.0) as client:
            url = f"{variable.partition('_')[0].lower()}://{HOST}/key"
            with pytest.raises(Exception, match=r"the proxy answered 407|the storage answered 407"):
                await put_object(client, url, b"x", "the output")
    assert len(proxy.seen) == 1


async def test_an_unreachable_proxy_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    async with ObjectClient(5.0) as client:
        with pytest.raises(StorageError, match="the proxy cannot be reached: Connection refused"):
            await get(client, f"http://{HOST}/key")


async def test_no_proxy_names_hosts_that_are_reached_directly(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    monkeypatch.setenv("NO_PROXY", "example.com, .invalid")
    async with ObjectClient(5.0) as client:
        with pytest.raises(StorageError, match=f"the storage at {HOST} could not be reached"):
            await get(client, f"http://{HOST}/key")
    assert proxy.seen == []


async def test_this_machine_and_the_embedded_server_are_not_behind_the_proxy(
    server: FaultyServer, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    async with ObjectClient(5.0) as client:
        for host in ("127.0.0.1", "localhost", "LocalHost"):
            assert await get(client, server.url(host=host)) == b"content"
    async with ObjectClient(5.0, use_proxies=False) as client:
        with pytest.raises(StorageError, match="could not be reached"):
            await get(client, f"http://{HOST}/key")
    assert proxy.seen == []
