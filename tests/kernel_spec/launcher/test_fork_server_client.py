"""A fork server that ends, hangs or must not fork costs no kernel."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.kernel_spec.conftest import KERNEL_MODULES, Desk


def test_killed_fork_server_hurts_no_kernel_and_comes_back(new_desk: Callable[..., Desk]) -> None:
    desk = new_desk(workspaces=3, modules=KERNEL_MODULES)
    desk.wait_for_fork_server("ready")
    with desk.kernel() as kernel:
        first = desk.status()["fork_server"]["pid"]
        os.kill(first, signal.SIGKILL)
        desk.wait_for_fork_server("waiting")
        assert kernel.run("print('alive')") == "alive\n"
        with desk.kernel() as plain:
            assert plain.process.started_by == "plain"
            assert plain.run("print('too')") == "too\n"
        desk.wait_for_fork_server("ready")
        with desk.kernel() as forked:
            assert forked.process.started_by == "fork"
        status = desk.status()
        assert status["plain_starts"] == 1
        assert status["fork_server"]["deaths"] == 1
        assert status["fork_server"]["pid"] != first
        assert kernel.run("print('alive')") == "alive\n"


def test_files_of_a_fork_server_that_is_killed_in_its_rehearsal_go_with_the_next_launcher(
    new_desk: Callable[..., Desk],
) -> None:
    desk = new_desk(is_supervised=True)
    left = [path.parent for path in soon(lambda: list((desk.state_dir / "workspaces").glob("try-*/left.data")))]
    os.kill(desk.status()["fork_server"]["pid"], signal.SIGKILL)
    desk.wait_for_fork_server("waiting")
    assert left[0].exists()
    os.kill(desk.launcher.pid, signal.SIGKILL)
    assert soon(lambda: not left[0].exists())


def soon(look: Callable[[], Any]) -> Any:
    """Return what a look finds; it is too short for pauses in between."""
    deadline = time.monotonic() + 60
    while not (found := look()):
        assert time.monotonic() < deadline
    return found


@pytest.mark.soak  # 27 s, in which nothing happens
def test_stopped_fork_server_does_not_hold_up_a_start_for_ever(new_desk: Callable[..., Desk]) -> None:
    desk = new_desk(workspaces=2)
    desk.wait_for_fork_server("ready")
    os.kill(desk.status()["fork_server"]["pid"], signal.SIGSTOP)
    with desk.kernel() as kernel:
        assert kernel.process.started_by == "plain"
        assert kernel.run("print(1)") == "1\n"


def test_unfit_fork_server_is_replaced_by_plain_starts(new_desk: Callable[..., Desk]) -> None:
    desk = new_desk(workspaces=2, modules=("tests.kernel_spec.threaded_module",))
    desk.wait_for_fork_server("waiting")
    assert "2 threads" in str(desk.launcher.fork_server_status()["reason"])
    with desk.kernel() as kernel:
        assert kernel.process.started_by == "plain"
