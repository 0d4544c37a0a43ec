"""HTTPS of a real gateway with the certificate of a private authority, which is replaced while it runs."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from gateway.client import TransformClient, refusals
from gateway.client.errors import GatewayUnreachable
from gateway.companion.protocol import RunTransform
from gateway.companion.runs import Gateways
from gateway.process import privileges
from tests.gateway.storage.faulty_server import FaultyServer
from tests.support.fake_gateway import FakeGateway
from tests.support.gateway_process import TOKEN, GatewayProcess, gateway_command

CODE = "import pandas as pd\ndef transform():\n    return pd.DataFrame({'n': [1]})"


@dataclass
class Files:
    """Certificate, key and authority as files, of which the gateway's user can read what it needs."""

    directory: Path
    authority: trustme.CA

    @property
    def cert(self) -> Path:
        return self.directory / "cert.pem"

    @property
    def key(self) -> Path:
        return self.directory / "key.pem"

    @property
    def settings(self) -> dict[str, str]:
        return {"TLS_CERT_FILE": str(self.cert), "TLS_KEY_FILE": str(self.key)}

    def issue(self) -> None:
        """Issue a new certificate for localhost alone, so that 127.0.0.1 is not in it."""
        made = self.authority.issue_cert("localhost")
        self.cert.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
        self.key.touch(0o600)
        self.key.write_bytes(made.private_key_pem.bytes())
        self.key.chmod(0o600)
        if os.geteuid() == 0:
            os.chown(self.key, privileges.gateway_user().uid, -1)


@pytest.fixture(scope="module")
def files() -> Iterator[Files]:
    directory = Path(tempfile.mkdtemp(prefix="tg-tls-", dir="/tmp"))
    directory.chmod(0o755)
    files = Files(directory, trustme.CA())
    files.authority.cert_pem.write_to_path(directory / "ca.pem")
    files.issue()
    yield files
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def gateway(files: Files) -> Iterator[GatewayProcess]:
    with GatewayProcess(files.settings) as gateway:
        yield gateway


def serial_number(gateway: GatewayProcess, files: Files) -> str:
    context = ssl.create_default_context(cafile=files.directory / "ca.pem")
    with (
        socket.create_connection(("127.0.0.1", gateway.port), 10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        certificate = connection.getpeercert()
        assert certificate is not None
        return str(certificate["serialNumber"])


def hang_up(gateway: GatewayProcess, text: str) -> None:
    seen = len(gateway.output)
    os.kill(gateway.pid, signal.SIGHUP)
    deadline = time.monotonic() + 60
    while not any("SIGHUP" in line and text in line for line in gateway.output[seen:]):
        assert time.monotonic() < deadline, gateway.output[-5:]
        time.sleep(0.02)


def test_a_client_with_the_authority_runs_a_job(
    gateway: GatewayProcess, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"https://localhost:{gateway.port}"
    with pytest.raises(GatewayUnreachable, match=r"certificate verify failed: [a-z ,-]+$"):
        TransformClient(url, TOKEN).run(CODE)
    with pytest.raises(refusals.BadRequest, match="takes HTTPS only: begin the URL with https://"):
        TransformClient(f"http://localhost:{gateway.port}", TOKEN).status()
    monkeypatch.setenv("SSL_CERT_FILE", str(files.directory / "ca.pem"))
    assert TransformClient(url, TOKEN).run(CODE).frame()["n"].tolist() == [1]
    done = gateway_command("status", "--url", url, AUTH_TOKEN=TOKEN, SSL_CERT_FILE=str(files.directory / "ca.pem"))
    assert "health    ok" in done.stdout, done.stderr


def test_a_url_with_the_wrong_scheme_is_told() -> None:
    alert = b"\x15\x03\x01\x00\x02\x02\x46"  # protocol_version
    with (
        FaultyServer([lambda conversation: conversation.connection.sendall(alert)]) as server,
        pytest.raises(GatewayUnreachable, match="it answered with TLS: the URL must begin with https://"),
    ):
        TransformClient(f"http://127.0.0.1:{server.port}").status()
    with FakeGateway() as fake, pytest.raises(GatewayUnreachable, match="without TLS: the URL must begin with http://"):
        TransformClient(fake.url.replace("http:", "https:")).status()


def test_tls_on_a_port_without_it_is_refused_at_once(running_gateway: GatewayProcess) -> None:
    """A client would wait for the rest of its handshake, and the log would say nothing."""
    with pytest.raises(GatewayUnreachable, match="without TLS: the URL must begin with http://"):
        TransformClient(running_gateway.url.replace("http:", "https:"), timeout_seconds=300).status()
    deadline = time.monotonic() + 60
    while not any("takes HTTP only" in line for line in running_gateway.output):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert running_gateway.request("GET", "/v1/status").status == 200


def test_commands_on_the_same_machine_take_exactly_its_certificate(gateway: GatewayProcess, files: Files) -> None:
    local = {"STATE_DIR": str(gateway.state_dir / "s"), "PORT": str(gateway.port), **files.settings}
    assert gateway_command("held", **local).stdout == "no kernel is held\n"
    assert "health    ok" in gateway_command("status", **local).stdout, "as the health check of a container"
    other = files.directory / "other.pem"
    trustme.CA().issue_cert("localhost").cert_chain_pems[0].write_to_path(other)
    assert gateway_command("status", **local | {"TLS_CERT_FILE": str(other)}).returncode == 3


@pytest.mark.parametrize("by_pid_file", [True, False])
def test_a_notebook_on_the_same_machine_submits_to_it(
    by_pid_file: bool, gateway: GatewayProcess, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRANSFORM_GATEWAY_URL", raising=False)
    place = {"STATE_DIR": str(gateway.state_dir / "s")} if by_pid_file else {"STATE_DIR": str(tmp_path)}
    for name, value in {"AUTH_TOKEN": TOKEN, "PORT": str(gateway.port), **files.settings, **place}.items():
        monkeypatch.setenv(name, value)
    request = RunTransform(id=1, op="run", running=True, code=CODE)
    outcome = Gateways().run(request, {}, tmp_path / "out", lambda event, **fields: None, threading.Event())
    assert (outcome["code"], outcome["rows"]) == ("ok", 1)


def test_a_certificate_is_replaced_while_the_gateway_runs(gateway: GatewayProcess, files: Files) -> None:
    first = serial_number(gateway, files)
    files.issue()
    assert serial_number(gateway, files) == first
    hang_up(gateway, "again")
    second = serial_number(gateway, files)
    assert second != first
    certificate = files.cert.read_bytes()
    files.cert.write_bytes(b"no certificate")
    hang_up(gateway, "the certificate stays as it was")
    assert serial_number(gateway, files) == second
    files.issue()
    files.cert.write_bytes(certificate)
    hang_up(gateway, "the certificate stays as it was")
    assert serial_number(gateway, files) == second, "a key of another certificate"
    files.issue()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"TLS_KEY_FILE": ""}, "TLS_KEY_FILE is empty"),
        ({"TLS_CERT_FILE": "/nonexistent/cert.pem"}, "the certificate /nonexistent/cert.pem (TLS_CERT_FILE): No such"),
        ({"TLS_KEY_FILE": "/etc/passwd"}, "the private key /etc/passwd (TLS_KEY_FILE): other users may read"),
    ],
)
def test_files_that_cannot_be_used_start_nothing(files: Files, changes: dict[str, str], text: str) -> None:
    state_dir = files.directory / "s"
    done = gateway_command(STATE_DIR=str(state_dir), **files.settings | changes)
    assert done.returncode == 2
    assert text in done.stderr
    assert done.stderr.count("\n") == 1
    with contextlib.suppress(FileNotFoundError):
        assert not list(state_dir.iterdir())
