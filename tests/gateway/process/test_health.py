"""The health of a gateway on this machine."""

from __future__ import annotations

import os

import pytest

from gateway.process.health import fetch_status
from gateway.process.pidfile import Running
from tests.support.fake_gateway import FakeGateway


def test_a_gateway_of_this_machine_is_asked_past_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeGateway() as proxy, FakeGateway({"GET /v1/status": lambda asked: (200, {"healthy": True})}) as gateway:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        assert fetch_status(Running.of(os.getpid(), gateway.url)) == {"healthy": True}
        assert proxy.asked == []
