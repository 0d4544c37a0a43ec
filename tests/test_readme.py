"""Every command that the README shows is run as it stands, against a real gateway, and does what the text says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gateway_process import GatewayProcess

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
SECONDS = 120

EXPECTED = {
    "/v1/execute": [r'"exit_code": ?0', r'\{\\"n\\":1\}'],
    "/v1/results/": [r'\{"n":1\}\n\{"n":2\}\n\{"n":3\}', r'"base_type": ?"Integer"', r'"events": ?\['],
    "/v1/cancel": [r'"code": ?"not_found"', r'"healthy": ?true'],
    "transform-gateway run": [r"status,amount\nopen,3(\.0)?\npaid,15(\.0)?\n"],
}
"""What each block's output must match, by a text that only that block has."""


def test_every_block_of_commands_has_an_expectation() -> None:
    assert [sum(mark in block for mark in EXPECTED) for block in BLOCKS] == [1] * len(EXPECTED)


@pytest.mark.skipif(shutil.which("curl") is None, reason="the README's examples call curl, which is not installed")
def test_shown_commands_do_what_the_text_says(running_gateway: GatewayProcess, tmp_path: Path) -> None:
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {"PATH": binaries, "AUTH_TOKEN": running_gateway.token, "HOME": str(tmp_path), "LANG": "C.UTF-8"}
    for block in BLOCKS:
        mark = next(mark for mark in EXPECTED if mark in block)
        done = subprocess.run(
            ["sh", "-e", "-c", block.replace("http://localhost:5001", running_gateway.url)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        for pattern in EXPECTED[mark]:
            assert re.search(pattern, done.stdout), f"{pattern} is not in {done.stdout}"


def test_every_target_of_make_that_is_mentioned_exists() -> None:
    mentioned = set(re.findall(r"\bmake ([a-z-]+)", README.partition("## Settings")[0])) - {"it"}
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert mentioned - targets == set()


def test_every_subcommand_that_is_mentioned_exists() -> None:
    shown = set(re.findall(r"transform-gateway (\w+) ", README)) | {"submit", "logs", "cancel", "status"}
    for name in sorted(shown):
        done = subprocess.run(
            [sys.executable, "-m", "gateway", name, "--help"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{name}: {done.stderr}"
        assert name in done.stdout


def test_kernelspec_is_installed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jupyter", "kernelspec", "list"],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    assert re.search(r"^\s*transform\s", done.stdout, re.MULTILINE)
