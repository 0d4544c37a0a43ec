"""A real gateway against its own API description, by schemathesis: statuses, bodies, media types, tokens, methods."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gateway.http.routes import ROUTES
from tests.support.gateway_process import TOKEN, GatewayProcess

CONFIGURATION = Path(__file__).with_name("schemathesis.toml")


# the coverage phase violates each rule of each schema: 1,200 requests more
@pytest.mark.parametrize("phases", ["fuzzing", pytest.param("coverage,fuzzing", marks=pytest.mark.soak)])
def test_every_answer_is_as_described(tmp_path: Path, phases: str) -> None:
    # no job reaches a host, and none holds a kernel
    settings = {"SLOTS": "2", "STORAGE_HOSTS": "127.0.0.1:9", "HELD_KERNELS": "0"}
    with GatewayProcess(settings) as gateway:
        done = subprocess.run(
            [
                Path(sys.executable).with_name("schemathesis"),
                f"--config-file={CONFIGURATION}",
                "run",
                f"{gateway.url}/openapi.json",
                f"--header=Authorization: Bearer {TOKEN}",
                "--exclude-path=/v1/pause",  # the other requests would be refused
                "--exclude-path=/v1/stream",  # it has no end
                f"--phases={phases}",
                "--max-examples=5",
                "--seed=1",
                "--no-shrink",
                "--continue-on-failure",
                "--warnings=off",
                "--request-timeout=60",
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2_000:]
        # all of them but the excluded ones, and the description itself
        assert f"Tested: {len(ROUTES) - 3}\n" in done.stdout, done.stdout
        status = gateway.request("GET", "/v1/status").body
    assert status["healthy"]
    assert status["metrics"]["completed"] > 0
    assert "internal" not in status["metrics"]["failures_by_code"]
    assert not [line for line in gateway.output if "Traceback" in line]
