"""Calls of `transform-gateway`, in the environment of a test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.gateway_process import GatewayProcess

ROOT = Path(__file__).parents[3]
SECONDS = 90
TOTALS = "def transform(orders):\n    return orders.groupby('status', as_index=False)['amount'].sum()\n"
SLEEPS = "import time\ndef transform():\n    print('started', flush=True)\n    time.sleep(60)\n"


def environment(gateway: GatewayProcess | None = None) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "VIRTUAL_ENV") if name in os.environ}
    kept["PYTHONPATH"] = str(ROOT)
    return kept | ({"TRANSFORM_GATEWAY_URL": gateway.url, "AUTH_TOKEN": gateway.token} if gateway else {})


def call(directory: Path, *arguments: str, gateway: GatewayProcess | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway", *arguments],
        cwd=directory,
        env=environment(gateway),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
