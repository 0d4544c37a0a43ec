"""A launcher that has ended is followed by another one, and nothing of the first is left."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from kernel_spec.client.async_client import LauncherError
from kernel_spec.sandbox.accounting import cgroup_mounts
from tests.kernel_spec.conftest import Desk, is_alive, wait_until
from tests.kernel_spec.launcher.test_loss import descendants

SECONDS = 60


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def test_kernels_start_again_after_each_death_of_the_launcher(new_desk: Callable[..., Desk]) -> None:
    desk = new_desk(workspaces=1, fork_server=False, is_supervised=True)
    restarted: list[int] = []
    desk.launcher.on_restart(lambda: restarted.append(desk.launcher.pid))
    users = set()
    for deaths in (1, 2):
        with desk.kernel() as kernel:
            kernel.run("import subprocess; subprocess.Popen(['sleep', '100'])")
            family = descendants(desk.launcher.pid)
            users.add(kernel.process.uid)
            supervision = desk.launcher._process.supervision
            assert supervision is not None
            supervision.send(b"the supervisor reads nothing")
            os.kill(desk.launcher.pid, signal.SIGKILL)
            assert kernel.ended().cause == "launcher_lost"
            desk.runner.run(asyncio.wait_for(desk.launcher.available(), SECONDS))
        assert desk.launcher.restarts == deaths
        assert restarted[-1] == desk.launcher.pid
        assert wait_until(lambda family=family: not any(map(is_alive, family)))  # type: ignore[misc]
        assert list((desk.state_dir / "workspaces").iterdir()) == []
    assert len(users) == 1, "the gateway cannot join the group of another user"
    desk.runner.run(desk.launcher.aclose())
    stamp = hashlib.sha256(os.fsencode(desk.state_dir)).hexdigest()[:8]
    hierarchies = cgroup_mounts.find_hierarchies()
    assert not [tree for h in hierarchies for tree in h.directory.glob(f"{cgroup_mounts.PREFIX}{stamp}*")]


def test_stop_of_the_client_ends_supervisor_and_launcher(new_desk: Callable[..., Desk]) -> None:
    desk = new_desk(workspaces=1, fork_server=False, is_supervised=True)
    supervisor = parent_of(desk.launcher.pid)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(supervisor, number)
    family = {supervisor, *descendants(supervisor)}
    assert len(family) >= 2
    desk.runner.run(desk.launcher.aclose())
    assert not any(map(is_alive, family))
    with pytest.raises(LauncherError, match="gone"):
        desk.runner.run(desk.launcher.available())


def test_a_launcher_outlives_its_killed_supervisor_and_is_not_replaced(new_desk: Callable[..., Desk]) -> None:
    desk = new_desk(workspaces=1, fork_server=False, is_supervised=True)
    supervisor = parent_of(desk.launcher.pid)
    os.kill(supervisor, signal.SIGKILL)
    with desk.kernel() as kernel:
        assert "3" in kernel.run("print(1 + 2)")
        os.kill(desk.launcher.pid, signal.SIGKILL)
        desk.runner.run(asyncio.wait_for(desk.launcher.lost(), SECONDS))
    with pytest.raises(LauncherError, match="gone"):
        desk.runner.run(desk.launcher.available())
