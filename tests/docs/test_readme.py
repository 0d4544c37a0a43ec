"""Every command that the README and the pages on calling the gateway show is run as it is written, and works."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.gateway_process import GatewayProcess

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SECONDS = 120

SUMS = r"status,amount\nopen,3(\.0)?\npaid,15(\.0)?\n"
EXPECTED = {
    "README.md": [
        [r'"exit_code": ?0', r'\{\\"n\\":1\}'],
        [SUMS],
        [r"paid +15\.0"],
    ],
    "docs/api.md": [
        [r'"exit_code": ?0', r'\{\\"n\\":1\}'],
        [r'\{"n":1\}\n\{"n":2\}\n\{"n":3\}', r'"base_type": ?"Integer"', r'"events": ?\['],
        [r'"exit_code": ?0', r'\\"status\\":\\"paid\\",\\"amount\\":15\.0'],
        [r'"exit_code": ?0'],
        [r'"state": ?"finished"', r'"next_offset": ?2'],
        [r'"code": ?"not_found"', r'"healthy": ?true'],
        [r'"paused": ?true', r'"paused": ?false'],
        [r'"jobs": ?\['],
    ],
    "docs/command-line.md": [
        [SUMS],
        [r"distribution", r"same as before\.csv: columns, types and rows"],
        [r"totals\.py: "],
        [r"wrote monthly_totals\.py", r'"month":"2025-01"'],
        [r"^totals-1\n", r"Successfully saved 2 rows", r"exit code 0"],
    ],
    "docs/python-client.md": [
        [r"paid +15\.0", r"in transform\(\) \(script\.py, line 2\)$", r"^ZeroDivisionError: division by zero$"],
        [r"^log: 3 orders$", r"^3 rows in copy\.parquet$"],
        [r"^\[1, 2\]$"],
    ],
}
"""Page to what the output of each of its blocks must match, in the order of the blocks."""


def blocks(page: str) -> list[list[str]]:
    """Return each block of a page that is to be run, as a command."""
    shells = {"sh": ["sh", "-e", "-c"], "python": [sys.executable, "-c"]}
    found = re.findall(r"^```(sh|python)\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    return [[*shells[language], text] for language, text in found]


@pytest.mark.parametrize("page", EXPECTED)
@pytest.mark.skipif(shutil.which("curl") is None, reason="the examples call curl, which is not installed")
def test_shown_commands_print_the_documented_output(page: str, running_gateway: GatewayProcess, tmp_path: Path) -> None:
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {"PATH": binaries, "AUTH_TOKEN": running_gateway.token, "HOME": str(tmp_path), "LANG": "C.UTF-8"}
    (tmp_path / "orders.csv").write_text("status,amount\npaid,10.5\nopen,3\npaid,4.5\n")
    commands = blocks(page)
    assert len(commands) == len(EXPECTED[page])
    for (*shell, text), patterns in zip(commands, EXPECTED[page], strict=True):
        done = subprocess.run(
            [*shell, text.replace("http://localhost:5001", running_gateway.url)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        for pattern in patterns:
            assert re.search(pattern, done.stdout, re.MULTILINE), f"{pattern} is not in {done.stdout}"


def test_kernelspec_is_installed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jupyter", "kernelspec", "list"],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    assert re.search(r"^\s*transform\s", done.stdout, re.MULTILINE)
