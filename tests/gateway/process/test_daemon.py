"""A start in the background beside a gateway that is ending; tests/test_makefile.py has the rest, with a real one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from gateway.core.settings import Settings
from gateway.process import daemon
from gateway.process.pidfile import DaemonError, Running, pid_file_path


@pytest.fixture
def earlier(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that the pid file names."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        named = asdict(Running.of(process.pid, "http://127.0.0.1:1"))
        with os.fdopen(os.open(pid_file_path(tmp_path), os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            json.dump(named, file)
        yield process
        process.kill()


def test_start_beside_a_gateway_that_ends_meanwhile_starts_another(
    tmp_path: Path, earlier: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = Running.of(os.getpid(), "http://127.0.0.1:2")
    started: list[Settings] = []

    def wait(state_dir: Path, lives: Callable[[], bool], *more: Any) -> Running | None:
        if started:
            return fresh
        assert lives()
        earlier.kill()
        earlier.wait()
        return None

    monkeypatch.setattr(daemon, "wait_until_up", wait)
    monkeypatch.setattr(daemon, "_spawn", lambda settings, options: started.append(settings))
    settings = Settings(state_dir=tmp_path, port=0)
    assert daemon.start(settings) == (fresh, True)
    assert started == [settings]


def test_start_beside_a_gateway_that_is_not_healthy_starts_no_other(
    tmp_path: Path, earlier: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "START_SECONDS", 0.1)
    with pytest.raises(DaemonError, match="did not become healthy"):
        daemon.start(Settings(state_dir=tmp_path, port=0))
    assert earlier.poll() is None


def test_start_on_all_addresses_looks_at_the_port(tmp_path: Path) -> None:
    with (
        socket.create_server(("0.0.0.0", 0)) as taken,
        pytest.raises(DaemonError, match="on all addresses is in use by another program"),
    ):
        daemon.start(Settings(state_dir=tmp_path, host="", port=taken.getsockname()[1]))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"host": "nosuch.invalid"}, r"cannot listen on port 5001 on nosuch.invalid: .*; change HOST"),
        ({"state_dir": Path("/proc/nosuch")}, "the state directory /proc/nosuch cannot be used: .*; set STATE_DIR"),
    ],
)
def test_start_with_settings_that_the_system_refuses_names_them(
    changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(DaemonError, match=reason):
        daemon.start(Settings(**{"state_dir": tmp_path, **changes}))
