"""The pytest plugin, which the entry point ``pytest11`` loads in each run: so it imports no more than it must."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from gateway.testing.tester import TransformTester


@pytest.fixture(scope="session")
def transform_gateway() -> Iterator[TransformTester]:
    """Run transforms in the sandbox, on one gateway for all tests: that of TRANSFORM_GATEWAY_URL, or a new one."""
    from gateway.client.client import TransformClient
    from gateway.client.ephemeral_gateway import EphemeralGateway
    from gateway.testing.tester import TransformTester

    if url := os.environ.get("TRANSFORM_GATEWAY_URL"):
        yield TransformTester(TransformClient(url, os.environ.get("AUTH_TOKEN", "")))
        return
    with EphemeralGateway() as gateway:
        yield TransformTester(TransformClient(gateway.url, gateway.token))
