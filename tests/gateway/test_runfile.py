"""The run file names one process and no other, and is believed only when it is ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.runfile import DaemonError, Running, find_running, locked, run_file_path, write_run_file

HERE = "http://127.0.0.1:1"


def test_process_that_lives_is_found(tmp_path: Path) -> None:
    ours = Running.of(os.getpid(), HERE)
    write_run_file(tmp_path, ours)
    assert find_running(tmp_path) == ours


def test_nothing_is_found_before_a_start(tmp_path: Path) -> None:
    assert find_running(tmp_path) is None


def test_pid_that_passed_to_another_process_is_not_taken_for_the_gateway(tmp_path: Path) -> None:
    ours = Running.of(os.getpid(), HERE)
    write_run_file(tmp_path, replace(ours, started=ours.started - 1))
    assert find_running(tmp_path) is None


def test_process_of_an_earlier_boot_is_not_taken_for_the_gateway(tmp_path: Path) -> None:
    write_run_file(tmp_path, replace(Running.of(os.getpid(), HERE), boot="another"))
    assert find_running(tmp_path) is None


def test_process_that_ended_is_not_running_even_as_a_zombie() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        running = Running.of(process.pid, HERE)
        assert running.alive
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet reaped
        assert not running.alive
    assert not running.alive


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"pid": 1}', "7"])
def test_damaged_run_file_is_named(tmp_path: Path, text: str) -> None:
    run_file_path(tmp_path).write_text(text)
    with pytest.raises(DaemonError, match=r"gateway\.run is damaged"):
        find_running(tmp_path)


def test_link_in_place_of_the_run_file_is_not_followed(tmp_path: Path) -> None:
    write_run_file(tmp_path, Running.of(os.getpid(), HERE))
    elsewhere = run_file_path(tmp_path).rename(tmp_path / "elsewhere")
    run_file_path(tmp_path).symlink_to(elsewhere)
    with pytest.raises(OSError, match="symbolic links"):
        find_running(tmp_path)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to somebody else")
def test_run_file_of_another_user_is_not_believed(tmp_path: Path) -> None:
    write_run_file(tmp_path, Running.of(os.getpid(), HERE))
    os.chown(run_file_path(tmp_path), 65534, 65534)
    with pytest.raises(DaemonError, match="belongs to uid 65534"):
        find_running(tmp_path)


def test_run_file_is_replaced_as_a_whole_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    write_run_file(tmp_path, Running.of(1, "http://first"))
    write_run_file(tmp_path, Running.of(os.getpid(), HERE))
    assert json.loads(run_file_path(tmp_path).read_text())["url"] == HERE
    assert run_file_path(tmp_path).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["gateway.run"]


def test_lock_keeps_a_second_start_waiting_until_the_first_is_done(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from gateway.runfile import locked\nwith locked(pathlib.Path(sys.argv[1])): print('in')"
    )
    with locked(tmp_path):
        second = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
        with pytest.raises(subprocess.TimeoutExpired):
            second.wait(1.0)
    assert second.communicate(timeout=20)[0] == b"in\n"
