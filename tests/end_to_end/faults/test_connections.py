"""Connections without a request, of callers without a token, must not keep out those that have one."""

from __future__ import annotations

import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from gateway.http.server import MOST_LINGERING
from tests.support.gateway_process import GatewayProcess

OK = "import pandas as pd\ndef transform():\n    return pd.DataFrame({'x': [1]})"
DESCRIPTORS = 512
IDLE = 1100


def limited(soft: int, hard: int) -> tuple[str, ...]:
    """Return the arguments of a Python that starts the gateway with these limits of open files."""
    code = f"import resource, runpy; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))"
    return ("-c", f"{code}; runpy.run_module('gateway', run_name='__main__', alter_sys=True)")


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewayProcess]:
    with GatewayProcess({}, launch=limited(128, DESCRIPTORS)) as started:
        yield started


@pytest.fixture(scope="module", autouse=True)
def _many_descriptors() -> Iterator[None]:
    """Let this process open more connections than a user's usual limit of 1024 descriptors allows."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def connect(gateway: GatewayProcess, stack: ExitStack, first_bytes: bytes = b"") -> socket.socket:
    opened = stack.enter_context(socket.socket())
    opened.settimeout(60)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # so that answers that are not read do not fit in
    opened.connect(("127.0.0.1", gateway.port))
    if first_bytes:
        opened.sendall(first_bytes)
    return opened


#: Together they are larger than what the gateway can hand to the system at once.
REQUESTS_WITHOUT_TOKEN = 20 * b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
OPEN_ROUTE_WITH_BODY = b"GET /healthz/live HTTP/1.1\r\nHost: x\r\nContent-Length: 65000\r\n\r\n{"


@pytest.mark.parametrize(
    "first_bytes",
    [b"", b"GET /v1/status HTTP/1.1\r\nHost: x\r\n", OPEN_ROUTE_WITH_BODY, REQUESTS_WITHOUT_TOKEN],
    ids=["silent", "half a head", "half a body", "answers not read"],
)
def test_idle_connections_do_not_keep_requests_out(gateway: GatewayProcess, first_bytes: bytes) -> None:
    lines = len(gateway.output)
    with ExitStack() as stack:
        for _ in range(IDLE):
            connect(gateway, stack, first_bytes)
        for number in range(5):
            assert gateway.execute(OK, number).status == 200
            assert gateway.request("GET", "/v1/status").body["healthy"]
    written = gateway.output[lines:]
    assert not any("Traceback" in line for line in written)
    assert sum("gateway.access" not in line for line in written) < 50


def test_a_connection_in_use_is_not_closed_for_a_new_one(gateway: GatewayProcess) -> None:
    with ExitStack() as stack:
        going = connect(gateway, stack)
        body = b'{"request_id": "kept", "code": "import time\\ndef transform():\\n    time.sleep(2)"}'
        head = f"POST /v1/execute HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {gateway.token}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        going.sendall(head.encode() + body)
        for _ in range(DESCRIPTORS):
            connect(gateway, stack)
        assert going.recv(12).startswith(b"HTTP/1.1 500")  # of the transform, which returned None


def test_a_connection_is_refused_when_all_are_in_use() -> None:
    with GatewayProcess({"MAX_CONNECTIONS": "16"}) as gateway, ExitStack() as stack:
        head = f"POST /v1/execute HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {gateway.token}\r\n"
        head += "Content-Type: application/json\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"
        for _ in range(16):
            # the gateway asks for the body when it has the head
            assert connect(gateway, stack, head.encode()).recv(100).startswith(b"HTTP/1.1 100")
        answer = gateway.request("GET", "/v1/status")
        assert (answer.status, answer.body["code"], answer.body["retryable"]) == (503, "too_many_connections", True)
        assert answer.headers["Connection"] == "close"
        for _ in range(2 * MOST_LINGERING):
            connect(gateway, stack, head.encode() + b"{")
        for _ in range(5):
            answer = gateway.request("GET", "/v1/status")
            assert (answer.status, answer.body["code"]) == (503, "too_many_connections")
        stack.close()
        deadline = time.monotonic() + 60
        while gateway.request("GET", "/v1/status").status != 200:
            assert time.monotonic() < deadline, "connections that were closed are still counted"


def test_too_few_descriptors_refuse_to_start() -> None:
    command = [sys.executable, *limited(64, 64)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, env={"STATE_DIR": "/tmp/tg-never"})
    assert ended.returncode == 2
    assert "the limit of open files is 64" in ended.stderr
    assert "Traceback" not in ended.stderr
