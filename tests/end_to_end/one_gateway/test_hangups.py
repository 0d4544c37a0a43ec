"""SIGHUP while the gateway starts, and after nohup(1)."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.process import privileges
from tests.support.gateway_process import TOKEN, GatewayProcess

SIMPLE = "import pandas as pd\ndef transform():\n    return pd.DataFrame({'n': [1]})"
NOHUP = (
    "import signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); from gateway.cli import main; sys.exit(main())"
)


@pytest.fixture
def directory() -> Iterator[Path]:
    """Make a directory that the gateway's user can enter."""
    with tempfile.TemporaryDirectory(prefix="tg-", dir="/tmp") as path:
        Path(path).chmod(0o755)
        yield Path(path)


def test_a_hangup_of_the_start_reads_the_files_again(directory: Path) -> None:
    """As after a change of the file by a tool that does not know how long the gateway has been running."""
    tokens, configuration = directory / "tokens", directory / "config.py"
    tokens.write_text(f"ops admin {TOKEN}\n")
    tokens.chmod(0o600)
    if os.geteuid() == 0:
        os.chown(tokens, privileges.gateway_user().uid, -1)
    configuration.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGHUP)\n")  # Python, run at the start
    settings = {"AUTH_TOKEN": "", "AUTH_TOKEN_FILE": str(tokens)}
    with GatewayProcess(settings, launch=("-m", "gateway", f"--config={configuration}")) as gateway:
        assert gateway.execute(SIMPLE, 1).status == 200
        assert [line for line in gateway.output if "SIGHUP: read" in line]


def test_a_gateway_under_nohup_outlives_its_terminal() -> None:
    with GatewayProcess(launch=("-c", NOHUP)) as gateway:
        os.kill(gateway.pid, signal.SIGHUP)
        for number in range(3):
            assert gateway.execute(SIMPLE, number).status == 200
        assert not [line for line in gateway.output if "stopping" in line]
