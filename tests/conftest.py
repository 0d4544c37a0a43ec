"""Fixtures that more than one folder uses; real parts: a real gateway, real kernels, a real S3 server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.gateway_process import GatewayProcess


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own settings must not decide a test."""
    for name in ("AUTH_TOKEN", "HOST", "PORT", "STATE_DIR", "SLOTS", "ALLOW_NETWORK"):
        if name in os.environ:
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def running_gateway() -> Iterator[GatewayProcess]:
    """One gateway with two slots for all tests that leave it as they found it."""
    with GatewayProcess({"SLOTS": "2"}) as gateway:
        yield gateway


@pytest.fixture
def start_gateway() -> Iterator[Callable[..., GatewayProcess]]:
    """Start gateways with settings of the test's own: ``start_gateway(SLOTS="1")``."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(GatewayProcess(settings))
