"""Members of a cluster as processes, for tests: real gateways that meet at a real NATS server."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from typing import Any

from tests.support.gateway_process import TOKEN, Answer, GatewayProcess
from tests.support.nats_server import NatsServer
from tests.support.s3 import S3Server

OUTPUT = "import pandas as pd\ndef transform():\n    return pd.DataFrame({'x': [1, 2]})\n"
SLOW = (
    "import time\nimport pandas as pd\n\ndef transform():\n    print('running', flush=True)\n"
    "    time.sleep({seconds})\n    return pd.DataFrame({{'x': [1, 2]}})\n"
)
ROWS = b'{"x":1}\n{"x":2}\n'


def members(
    stack: ExitStack, nats_server: NatsServer, count: int = 2, *, token: str = TOKEN, **settings: str
) -> list[GatewayProcess]:
    """Start members with one slot each, and return when each knows the others."""
    shared = {**nats_server.settings(), "SLOTS": "1", "READY_KERNELS": "0", **settings}
    started = [stack.enter_context(GatewayProcess(dict(shared), token)) for _ in range(count)]
    wait_for_members(started, count)
    return started


def wait_for_members(gateways: list[GatewayProcess], count: int) -> None:
    deadline = time.monotonic() + 60
    for gateway in gateways:
        while (there := len(cluster_of(gateway)["members"])) != count:
            assert time.monotonic() < deadline, f"{there} of {count} members:\n" + "\n".join(gateway.output[-20:])
            time.sleep(0.1)


def cluster_of(gateway: GatewayProcess) -> dict[str, Any]:
    cluster: dict[str, Any] = gateway.request("GET", "/v1/status").body["cluster"]
    return cluster


def urls(storage: S3Server, prefix: str) -> dict[str, str]:
    return {
        "output_url": storage.put_url(f"{prefix}/output"),
        "output_manifest_url": storage.put_url(f"{prefix}/manifest"),
        "events_url": storage.put_url(f"{prefix}/events"),
    }


def in_background(gateway: GatewayProcess, *args: Any, **fields: Any) -> tuple[threading.Thread, list[Answer]]:
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(gateway.execute(*args, **fields)))
    thread.start()
    return thread, answers
