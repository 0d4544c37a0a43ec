"""Progress that a transform reports, on its way to the status and to a terminal."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from tests.gateway.cli.commands import SECONDS, environment
from tests.support.gateway_process import GatewayProcess

#: It goes on until it is cancelled. The description tries to be markup, and to take over the terminal.
SCRIPT = """
import time
from tqdm.auto import tqdm
from transform_shim import progress
def transform():
    outer = progress(total=8, description="fit [/] \\x1b[31m")
    outer.update(2)
    for _ in tqdm(iter(int, 1), desc="rows", initial=1500):
        outer.update(0)
        time.sleep(0.05)
"""
ID = "reports-progress"


@pytest.fixture
def job(running_gateway: GatewayProcess) -> Iterator[str]:
    running = threading.Thread(
        target=running_gateway.execute, args=(SCRIPT, ID), kwargs={"timeout": 600, "label": "progress"}
    )
    running.start()
    try:
        yield ID
    finally:
        running_gateway.request("POST", "/v1/cancel", {"request_id": ID})
        running.join(60)


def bars_of(gateway: GatewayProcess) -> list[dict[str, Any]]:
    """Return the bars of the job, when both have come as far as they are asserted."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        answer = gateway.request("GET", f"/v1/status?request_id={ID}")
        bars = [each for each in answer.body.get("progress", []) if each.get("bar") is not None]
        if len(bars) == 2 and bars[0]["done"] == 2:
            return bars
        time.sleep(0.05)
    raise AssertionError("the job reported no progress")


def terminal(gateway: GatewayProcess, here: Path, *arguments: str) -> pexpect.spawn:
    return pexpect.spawn(
        sys.executable,
        ["-m", "gateway", *arguments],
        cwd=str(here),
        env=environment(gateway),
        encoding="utf-8",
        timeout=SECONDS,
        dimensions=(40, 200),
    )


def test_progress_of_a_running_job_is_in_its_status_and_on_terminals(
    job: str, tmp_path: Path, running_gateway: GatewayProcess
) -> None:
    outer, inner = bars_of(running_gateway)
    assert outer == {
        "stage": "transform",
        "table": None,
        "rows": None,
        "bytes": None,
        "bar": 0,
        "description": "fit [/] ?[31m",
        "done": 2,
        "total": 8,
    }
    assert (inner["bar"], inner["description"], inner["total"]) == (1, "rows", None)
    assert inner["done"] >= 1500
    assert running_gateway.log(ID) == [], "nothing of tqdm's bar is in the log"
    for arguments in (("jobs", "--follow"), ("logs", ID, "--follow")):
        following = terminal(running_gateway, tmp_path, *arguments)
        following.expect(r"transform fit \[/\] \?\[31m 2 of 8 \(25 %\) · rows \d,\d\d\d")
        following.terminate(force=True)
