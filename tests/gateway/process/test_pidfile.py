"""The pid file names one process and no other, and is believed only when it is ours."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from gateway.core.errors import ConfigurationError
from gateway.process import pidfile
from gateway.process.pidfile import DaemonError, PidFile, Running, find_running, locked, pid_file_path
from kernel_spec.linux import procfs

HERE = "http://127.0.0.1:1"

#: exit(2), which ends the calling thread alone
EXIT_THREAD = {"x86_64": 60, "aarch64": 93}


def write(state_dir: Path, running: Running) -> None:
    with os.fdopen(os.open(pid_file_path(state_dir), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(asdict(running), file)


def test_gateway_is_found_while_it_runs_and_not_afterwards(tmp_path: Path) -> None:
    assert find_running(tmp_path) is None
    with PidFile(tmp_path) as pid_file:
        assert find_running(tmp_path) is None
        ours = pid_file.write(HERE)
        assert find_running(tmp_path) == ours
        assert (ours.pid, ours.url) == (os.getpid(), HERE)
    assert find_running(tmp_path) is None


def test_file_is_the_only_one_and_its_owner_alone_reads_the_token_in_it(tmp_path: Path) -> None:
    with PidFile(tmp_path) as pid_file, locked(tmp_path):
        assert pid_file.write(HERE).token in pid_file_path(tmp_path).read_text()
        assert [path.name for path in tmp_path.iterdir()] == ["gateway.run"]
        assert pid_file_path(tmp_path).stat().st_mode & 0o777 == 0o600


def test_second_gateway_is_refused_and_the_first_stays_found(tmp_path: Path) -> None:
    with PidFile(tmp_path) as first:
        ours = first.write(HERE)
        with pytest.raises(ConfigurationError, match=f"{HERE}.*STATE_DIR"), PidFile(tmp_path):
            pass
        assert find_running(tmp_path) == ours


def test_gateway_of_the_original_is_not_that_of_a_copy_of_its_directory(tmp_path: Path) -> None:
    original, copy = tmp_path / "original", tmp_path / "copy"
    original.mkdir()
    with PidFile(original) as first:
        ours = first.write(HERE)
        shutil.copytree(original, copy)
        assert find_running(copy) is None, "a stop with the copy would stop this gateway"
        with PidFile(copy) as second:
            assert second.write("http://copy") == find_running(copy)
        assert find_running(original) == ours


def test_file_of_a_gateway_that_was_killed_is_taken_over(tmp_path: Path) -> None:
    write(tmp_path, replace(Running.of(os.getpid(), "http://before"), started=1))
    with PidFile(tmp_path) as pid_file:
        assert pid_file.write(HERE) == find_running(tmp_path)


def test_pid_that_passed_to_another_process_is_not_taken_for_the_gateway(tmp_path: Path) -> None:
    ours = Running.of(os.getpid(), HERE)
    write(tmp_path, replace(ours, started=ours.started - 1))
    assert find_running(tmp_path) is None


def test_process_of_an_earlier_boot_is_not_taken_for_the_gateway(tmp_path: Path) -> None:
    write(tmp_path, replace(Running.of(os.getpid(), HERE), boot="another"))
    assert find_running(tmp_path) is None


def test_process_that_ended_is_not_running_even_as_a_zombie() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        running = Running.of(process.pid, HERE)
        assert running.alive
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet reaped
        assert not running.alive
    assert not running.alive


@pytest.fixture
def ending() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is killed, as its killer sees it: its first thread has ended, and another one has not.

    It ends with its standard input.
    """
    code = (
        "import ctypes, os, threading\n"
        "threading.Thread(target=lambda: (os.read(0, 1), os._exit(0))).start()\n"
        f"ctypes.CDLL(None).syscall({EXIT_THREAD[platform.machine()]}, 0)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while not procfs.is_exiting(process.pid):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield process


def test_process_that_is_ending_runs_until_its_last_thread_has_closed_its_sockets(
    tmp_path: Path, ending: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = Running.of(ending.pid, HERE)
    assert running.alive
    assert running.started > 0
    write(tmp_path, running)
    waits: list[float] = []

    def end(seconds: float) -> None:
        assert running.alive or waits
        waits.append(seconds)
        assert ending.stdin is not None
        ending.stdin.close()

    monkeypatch.setattr(pidfile, "time", SimpleNamespace(monotonic=time.monotonic, sleep=end))
    assert find_running(tmp_path) is None
    assert waits


def test_process_that_does_not_end_is_not_waited_for_without_end(
    tmp_path: Path, ending: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pidfile, "ENDING_SECONDS", 0.1)
    running = Running.of(ending.pid, HERE)
    write(tmp_path, running)
    assert find_running(tmp_path) == running


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"pid": 1}', b"7", b"\0" * 200, b"\xff\xfe"])
def test_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    pid_file_path(tmp_path).write_bytes(content)
    with pytest.raises(DaemonError, match=r"gateway\.run is damaged"):
        find_running(tmp_path)
    with PidFile(tmp_path) as pid_file:
        assert pid_file.write(HERE) == find_running(tmp_path)


def test_link_in_place_of_the_file_is_neither_read_nor_written(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    write(tmp_path, Running.of(os.getpid(), HERE))
    pid_file_path(tmp_path).rename(elsewhere)
    before = elsewhere.read_text()
    pid_file_path(tmp_path).symlink_to(elsewhere)
    with pytest.raises(OSError, match="symbolic links"):
        find_running(tmp_path)
    with pytest.raises(ConfigurationError, match="symbolic links"), PidFile(tmp_path):
        pass
    assert elsewhere.read_text() == before


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to somebody else")
def test_file_of_another_user_is_believed_for_looking_only(tmp_path: Path) -> None:
    theirs = Running.of(os.getpid(), HERE)
    write(tmp_path, theirs)
    os.chown(pid_file_path(tmp_path), 65534, 65534)
    with pytest.raises(DaemonError, match="belongs to uid 65534"):
        find_running(tmp_path)
    with pytest.raises(DaemonError, match="belongs to uid 65534"), locked(tmp_path):
        pass
    assert find_running(tmp_path, of_any_user=True) == theirs


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to somebody else")
def test_stale_file_of_another_user_is_replaced(tmp_path: Path) -> None:
    write(tmp_path, replace(Running.of(os.getpid(), HERE), boot="another"))
    os.chown(pid_file_path(tmp_path), 65534, 65534)
    with PidFile(tmp_path) as pid_file:
        pid_file.write(HERE)
        assert pid_file_path(tmp_path).stat().st_uid == 0


# ------------------------------------------------------------------ state directories of the version before
def test_running_gateway_of_the_version_before_is_found_and_respected(tmp_path: Path) -> None:
    before = asdict(Running.of(os.getpid(), HERE))
    del before["token"]
    pid_file_path(tmp_path).write_text(json.dumps(before))
    assert find_running(tmp_path) == Running.of(os.getpid(), HERE)
    with pytest.raises(ConfigurationError, match="already uses"), PidFile(tmp_path):
        pass


def test_gateway_of_the_version_before_in_the_foreground_is_respected(tmp_path: Path) -> None:
    (tmp_path / "seats").mkdir()
    code = (
        "import fcntl, os, sys\n"
        "fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)\nprint('locked', flush=True)\ninput()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "seats")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as launcher:
        assert launcher.stdout is not None
        launcher.stdout.readline()
        with pytest.raises(ConfigurationError, match="older version"), PidFile(tmp_path):
            pass
        launcher.communicate(b"\n")
    with PidFile(tmp_path):
        pass


def test_files_of_the_version_before_are_removed(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    old = [tmp_path / "gateway.lock", tmp_path / "run" / "gateway.json", tmp_path / "run" / "token"]
    for path in old:
        path.touch()
    with PidFile(tmp_path):
        assert not any(path.exists() for path in old)


def test_lock_keeps_a_second_start_waiting_until_the_first_is_done(tmp_path: Path) -> None:
    code = "import sys, pathlib; from gateway.process.pidfile import locked\nwith locked(pathlib.Path(sys.argv[1])): print('in')"
    with locked(tmp_path):
        second = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
        with pytest.raises(subprocess.TimeoutExpired):
            second.wait(1.0)
    assert second.communicate(timeout=60)[0] == b"in\n"
