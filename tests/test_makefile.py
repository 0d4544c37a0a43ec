"""What `make` promises about the gateway in the background, with a real one in a copy of the top folder."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.gateway_process import alive
from tests.support.ports import free_port

ROOT = Path(__file__).parents[1]
SECONDS = 120


class Checkout:
    """A copy of the files that `make` looks at, with a state directory and a port of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.state_dir = directory / "s"
        self.port = free_port()

    def make(
        self, *targets: str, environment: Mapping[str, str] = os.environ, **settings: str
    ) -> subprocess.CompletedProcess[str]:
        """Run make with this test run's own environment in place of one that it would install."""
        ours = {
            "VENV": sys.prefix,
            "STATE_DIR": str(self.state_dir),
            "PORT": str(self.port),
            "AUTH_TOKEN": "",
        } | settings
        command = ["make", "--old-file", f"{sys.prefix}/.project", *targets]
        command += [f"{name}={value}" for name, value in ours.items()]
        # `make test ARGS=...` exports its variables, which are not those of this make
        passed = {name: value for name, value in environment.items() if not name.startswith(("MAKE", "ARGS"))}
        return subprocess.run(
            command, cwd=self.directory, env=passed, capture_output=True, text=True, timeout=SECONDS, check=False
        )

    def pid(self) -> int:
        return int(re.search(r"pid (\d+)", self.make("status").stdout)[1])  # type: ignore[index]


@pytest.fixture
def checkout() -> Iterator[Checkout]:
    # below /tmp, not pytest's own directory: kernels run as other users and must be able to pass, and paths stay short
    directory = Path(tempfile.mkdtemp(prefix="tg-make-", dir="/tmp"))
    directory.chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "requirements.lock", "requirements-pandas3.lock", "README.md"):
        shutil.copy2(ROOT / name, directory)
    (directory / "gateway").mkdir()
    (directory / "gateway" / "__init__.py").touch()
    copy = Checkout(directory)
    yield copy
    copy.make("stop")
    shutil.rmtree(directory)


def test_help_explains_every_target(checkout: Checkout) -> None:
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    shown = dict(re.findall(r"^  make (\S+) +(\S.*)$", checkout.make("help").stdout, re.MULTILINE))
    assert set(shown) == targets
    assert {"run", "status", "logs", "stop", "restart", "smoke-test", "test", "soak", "check", "bench"} <= targets
    assert {"console", "doctor", "dev-setup", "rebuild", "clean", "help"} <= targets


@pytest.mark.parametrize("pandas", ["2", "3"])
def test_notebook_asks_for_all_locked_packages_and_keeps_the_version_of_pandas(checkout: Checkout, pandas: str) -> None:
    shutil.copy2(ROOT / "requirements-notebooks.lock", checkout.directory)
    venv = checkout.directory / "venv"
    venv.mkdir()
    (venv / ".project").touch()
    target = [f"--old-file={venv}/.project", f"{venv}/.notebooks"]
    made = checkout.make(*target, VENV=str(venv), UV="true", PANDAS=pandas)
    assert made.returncode == 0, made.stderr
    locked, asked = (
        set(re.findall(r"^([\w.-]+)==", path.read_text(), re.MULTILINE))
        for path in (ROOT / "requirements-notebooks.lock", venv / "notebooks.txt")
    )
    assert "jupyterlab" in asked
    assert locked - asked == ({"pandas"} if pandas == "3" else set())


def test_run_starts_shows_a_result_and_names_the_next_commands(checkout: Checkout) -> None:
    first = checkout.make("run")
    assert first.returncode == 0, first.stdout + first.stderr
    for text in (
        "started",
        "sandbox   tier ",
        "running a transform on 336,776 flights",
        f"http://127.0.0.1:{checkout.port}/v1/execute",
        "make logs",
        "make stop",
    ):
        assert text in first.stdout
    pid = checkout.pid()
    again = checkout.make("run")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "already running with the settings of its start; `make restart`" in again.stdout
    assert checkout.pid() == pid

    call = next(line for line in again.stdout.splitlines() if line.startswith("call it")).removeprefix("call it")
    answer = subprocess.run(["sh", "-c", call], capture_output=True, text=True, timeout=SECONDS, check=True)
    assert '"exit_code":0' in answer.stdout.replace(" ", "")

    # a library may have put the height of a terminal into the environment, as readline does
    for settings, expected in (({}, True), ({"LINES": "1"}, False)):
        terminal = {**os.environ, "LINES": "1"}
        shown = checkout.make("logs", environment=terminal, **settings).stdout.splitlines()
        assert (len(shown) > 1) is expected
    assert checkout.make("restart").returncode == 0
    assert checkout.pid() != pid
    assert "stopped" in checkout.make("stop").stdout


def test_status_and_stop_of_a_gateway_that_does_not_run(checkout: Checkout) -> None:
    status = checkout.make("status")
    assert "not running" in status.stdout
    assert status.returncode != 0
    stop = checkout.make("stop")
    assert f"not running: there is no state directory {checkout.state_dir}" in stop.stdout
    assert stop.returncode == 0
    assert not checkout.state_dir.exists(), "made for a name that may be mistyped"


def test_path_of_a_checkout_may_have_blanks(checkout: Checkout) -> None:
    directory = checkout.directory / "with a blank"
    directory.mkdir()
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy2(checkout.directory / name, directory)
    (directory / "gateway").mkdir()
    (directory / "gateway" / "__init__.py").touch()
    (directory / ".venv").symlink_to(sys.prefix)
    command = ["make", "-C", str(directory), "--old-file", ".venv/.project", "stop", "doctor", "ARGS=--help"]
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: transform-gateway doctor" in done.stdout


def test_taken_port_names_the_setting_to_change(checkout: Checkout) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", checkout.port))
        other.listen()
        result = checkout.make("start")
    assert result.returncode != 0
    assert f"port {checkout.port} on 127.0.0.1 is in use" in result.stderr
    assert "PORT" in result.stderr
    assert "not running" in checkout.make("status").stdout


def test_start_that_fails_shows_the_end_of_the_log_and_leaves_nothing(checkout: Checkout) -> None:
    result = checkout.make("start", HOST="127.0.0.1", SLOTS="none")
    assert result.returncode != 0
    assert "SLOTS" in result.stderr
    assert "not running" in checkout.make("status").stdout


def test_gateway_that_was_killed_can_be_started_again(checkout: Checkout) -> None:
    assert checkout.make("start").returncode == 0
    pid = checkout.pid()
    os.kill(pid, signal.SIGKILL)
    result = checkout.make("start")
    assert result.returncode == 0, result.stderr
    assert "started" in result.stdout
    assert checkout.pid() != pid


def test_clean_stops_the_gateway_and_leaves_nothing_behind(checkout: Checkout) -> None:
    before = sorted(path.name for path in checkout.directory.iterdir())
    state_dir = str(checkout.directory / ".state")
    started = checkout.make("start", STATE_DIR=state_dir)
    assert started.returncode == 0, started.stderr
    pid = int(re.search(r"pid (\d+)", started.stdout)[1])  # type: ignore[index]
    assert checkout.make("clean", STATE_DIR=state_dir).returncode == 0
    assert sorted(path.name for path in checkout.directory.iterdir()) == before
    assert not alive(pid)
