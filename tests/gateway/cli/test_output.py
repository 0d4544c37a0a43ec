"""The output and the arguments that a shell gives a command: closed, full, in another encoding."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gateway.cli.commands import SECONDS, call, environment
from tests.support.gateway_process import GatewayProcess


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["-m gateway --help-all", "-m gateway --version", "-m gateway run --help", "-m gateway help",
                                     "-m gateway completion bash", "-P -m gateway.process.daemon status"])  # fmt: skip
def test_reader_that_ends_and_a_full_disk_leave_no_traceback(command: str, unbuffered: str, tmp_path: Path) -> None:
    settings = environment() | {"PYTHONUNBUFFERED": unbuffered, "STATE_DIR": str(tmp_path)}
    for output, said in (
        ("| true", ""),
        (">/dev/full", "transform-gateway: standard output: No space left on device\n"),
    ):
        done = subprocess.run(["bash", "-c", f'"$0" {command} {output}', sys.executable], cwd=tmp_path, env=settings,
                              capture_output=True, text=True, timeout=SECONDS, check=False)  # fmt: skip
        assert done.stderr == said


@pytest.mark.parametrize("arguments", [("logs", b"\xff"), ("jobs", "--label", b"\xff"), ("status", b"\xff")])
def test_argument_that_is_not_utf_8_is_wrong_usage(
    arguments: tuple[str | bytes, ...], tmp_path: Path, running_gateway: GatewayProcess
) -> None:
    done = call(tmp_path, *map(os.fsdecode, arguments), gateway=running_gateway)
    assert (done.returncode, done.stderr) == (2, "transform-gateway: an argument has '\\udcff', which is not UTF-8\n")
