"""The files with which a gateway connects to its broker: what is wrong with one is said before the gateway starts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from gateway.cluster.broker import Broker, NoReply
from gateway.core.errors import ConfigurationError
from gateway.core.settings import Settings
from gateway.http.access.auth import Guard
from gateway.process.checks import check_settings
from gateway.process.privileges import gateway_user
from gateway.process.serve import _reload
from gateway.process.tls import broker_context
from tests.support.gateway_process import GatewayProcess, gateway_command
from tests.support.nats_server import CONFIGURATION, NatsServer

CODE = "import pandas as pd\ndef transform():\n    return pd.DataFrame({'n': [1]})"


@pytest.fixture(scope="module")
def server(nats_installed: None) -> Iterator[NatsServer]:
    with NatsServer(tls=True) as server:
        yield server


def settings_of(variables: dict[str, str]) -> Settings:
    values = {name.lower(): value for name, value in variables.items()}
    files = {name: Path(value) if value else None for name, value in values.items() if name.endswith("_file")}
    settings = Settings(cluster_url=values["cluster_url"], **files)
    check_settings(settings)
    return settings


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"CLUSTER_TLS_KEY_FILE": ""}, "CLUSTER_TLS_KEY_FILE is not set"),
        ({"CLUSTER_TLS_CERT_FILE": ""}, "CLUSTER_TLS_CERT_FILE is not set"),
        ({"CLUSTER_TLS_CA_FILE": "/nonexistent"}, "the authorities /nonexistent (CLUSTER_TLS_CA_FILE): No such file"),
        ({"CLUSTER_TLS_CA_FILE": "{}/member/tls.key"}, "(CLUSTER_TLS_CA_FILE): no certificates in PEM"),
        (
            {"CLUSTER_TLS_CERT_FILE": "/nonexistent"},
            "the certificate /nonexistent (CLUSTER_TLS_CERT_FILE): No such file",
        ),
        ({"CLUSTER_TLS_KEY_FILE": "/nonexistent"}, "the private key /nonexistent (CLUSTER_TLS_KEY_FILE): No such file"),
        ({"CLUSTER_TLS_KEY_FILE": "{}/member/tls.crt"}, "(CLUSTER_TLS_KEY_FILE): other users may read"),
        ({"CLUSTER_TLS_KEY_FILE": "{}/host/tls.key"}, "are not a certificate chain and its key"),
        ({"CLUSTER_CREDENTIALS_FILE": "{}/member/tls.crt"}, "(CLUSTER_CREDENTIALS_FILE): other users may read"),
        ({"CLUSTER_URL": "nats://127.0.0.1:4222"}, "is set, but CLUSTER_URL is nats://, which has no TLS: use tls://"),
        ({"CLUSTER_URL": "nats://localhost,tls://localhost"}, "names servers with TLS and without"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else None,
)
def test_a_file_that_cannot_be_used_is_refused(server: NatsServer, changes: dict[str, str], text: str) -> None:
    variables = server.settings() | {name: value.format(server.directory) for name, value in changes.items()}
    with pytest.raises(ConfigurationError) as refused:
        broker_context(settings_of(variables), gateway_user().uid if os.geteuid() == 0 else os.geteuid())
    assert text in str(refused.value)


def test_the_gateway_does_not_start_with_such_a_file(
    server: NatsServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings = server.settings() | {"CLUSTER_TLS_KEY_FILE": f"{server.directory}/host/tls.key"}
    ended = gateway_command("--port=0", STATE_DIR=str(tmp_path_factory.mktemp("tg")), **settings)
    assert ended.returncode == 2, ended.stderr
    assert "are not a certificate chain and its key" in ended.stderr.splitlines()[-1]


def test_a_certificate_is_replaced_while_a_member_runs(nats_installed: None) -> None:
    with NatsServer(tls=True) as server, GatewayProcess(server.settings()) as gateway:
        assert gateway.execute(CODE, "before").status == 200
        server.kill()
        server.renew_certificates()  # of another authority, which the member does not know yet
        server.start()
        os.kill(gateway.pid, signal.SIGHUP)
        deadline = time.monotonic() + 60
        while gateway.execute(CODE, f"after {time.monotonic()}").status != 200:
            assert time.monotonic() < deadline, gateway.output[-5:]
            time.sleep(0.1)


def test_a_member_stops_in_order_while_the_broker_is_away(nats_installed: None) -> None:
    with NatsServer(tls=True) as server, GatewayProcess(server.settings()) as gateway:
        assert gateway.execute(CODE).status == 200
        server.kill()
        deadline = time.monotonic() + 60
        while not any("Connect call failed" in line for line in gateway.output):
            assert time.monotonic() < deadline, gateway.output[-5:]
            time.sleep(0.05)
        assert gateway.stop() == 0, gateway.output[-30:]
    assert not [line for line in gateway.output if "Traceback" in line]


@asynccontextmanager
async def silent_route(port: int) -> AsyncIterator[tuple[int, Callable[[], None]]]:
    """Yield the port of a way to the broker, and what makes its present connections fall silent as if it had vanished."""
    passing: set[asyncio.Event] = set()
    routes: set[asyncio.Task[Any]] = set()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passes: asyncio.Event) -> None:
        while data := await reader.read(65536):
            await passes.wait()
            writer.write(data)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passes = asyncio.Event()
        passes.set()
        passing.add(passes)
        routes.add(cast("asyncio.Task[Any]", asyncio.current_task()))
        other_reader, other_writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await asyncio.gather(copy(reader, other_writer, passes), copy(other_reader, writer, passes))
        for each in (writer, other_writer):
            each.transport.abort()

    def fall_silent() -> None:
        for passes in passing:
            passes.clear()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1], fall_silent
    server.close()
    for route in routes:
        route.cancel()
    await asyncio.gather(*routes, return_exceptions=True)


async def test_a_broker_that_falls_silent_is_connected_again(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.cluster.broker.connection.PING_SECONDS", 0.1)
    tls = broker_context(settings_of(server.settings()), gateway_user().uid)
    async with silent_route(server.port) as (port, fall_silent):
        broker = await Broker.connect(f"tls://localhost:{port}", "test", tls=tls)
        fall_silent()
        async with asyncio.timeout(25):  # the end of TLS is not waited for, which takes 30 s
            while True:
                with contextlib.suppress(NoReply):
                    await broker.leases.create("silent", b"")
                    break
        await broker.aclose()


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ("tls_cert_file", "the certificate stays as it was: the certificate /nonexistent (TLS_CERT_FILE)"),
        ("cluster_tls_cert_file", "the certificate for the broker stays as it was: the certificate /nonexistent"),
    ],
)
def test_one_file_that_cannot_be_used_holds_up_no_other(
    server: NatsServer, wrong: str, text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine = shutil.copytree(server.directory / "member", tmp_path / "member")  # they are the gateway's user's
    pair = {"cert_file": mine / "tls.crt", "key_file": mine / "tls.key"}
    files = {f"{prefix}tls_{name}": path for name, path in pair.items() for prefix in ("", "cluster_")}
    settings = Settings(cluster_tls_ca_file=mine / "ca.crt", **(files | {wrong: Path("/nonexistent")}))
    port, broker = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with caplog.at_level("INFO"):
        _reload(settings, Guard(settings, ()), port, broker)
    (failed,) = [each.getMessage() for each in caplog.records if each.levelname == "ERROR"]
    (read,) = [each.getMessage() for each in caplog.records if each.levelname == "INFO"]
    assert text in failed
    assert ("broker" in read) is (wrong == "tls_cert_file")
    assert len(broker.get_ca_certs()) == 1


def test_certificates_are_not_written_over(tmp_path: Path) -> None:
    command = [CONFIGURATION / "certificates.sh", tmp_path, "broker.example", "10.0.0.7", "fd00::7"]
    subprocess.run(command, check=True)
    shown = ["openssl", "x509", "-in", tmp_path / "broker/tls.crt", "-noout", "-ext", "subjectAltName"]
    names = subprocess.run(shown, check=True, capture_output=True, text=True).stdout
    for name in ("DNS:broker.example", "IP Address:10.0.0.7", "IP Address:FD00:0:0:0:0:0:0:7"):
        assert name in names
    assert not [path for path in tmp_path.rglob("*.key") if path.stat().st_mode & 0o077]
    assert not list(tmp_path.rglob("ca.key")), "the key of the authority is gone"
    before = (tmp_path / "broker/tls.key").read_bytes()
    again = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (again.returncode, "exists: remove it first" in again.stderr) == (1, True)
    assert (tmp_path / "broker/tls.key").read_bytes() == before
