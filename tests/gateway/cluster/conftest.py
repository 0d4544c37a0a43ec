"""A NATS server for the tests of this folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.gateway.cluster.members import members
from tests.support.gateway_process import GatewayProcess
from tests.support.nats_server import NatsServer
from tests.support.s3 import S3Server

NEEDS_SERVER = "nats-server is not installed (Debian: apt install nats-server)"


@pytest.fixture(scope="session")
def nats_installed() -> None:
    if shutil.which("nats-server") is None:
        pytest.skip(NEEDS_SERVER)


@pytest.fixture
def nats_server(nats_installed: None) -> Iterator[NatsServer]:
    with NatsServer() as server:
        yield server


@pytest.fixture(scope="module")
def storage() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


@pytest.fixture(scope="module")
def pair() -> Iterator[list[GatewayProcess]]:
    """Two members, with certificates, for all tests that leave them as they found them."""
    if shutil.which("nats-server") is None:
        pytest.skip(NEEDS_SERVER)
    with ExitStack() as opened:
        yield members(opened, opened.enter_context(NatsServer(tls=True)))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened
