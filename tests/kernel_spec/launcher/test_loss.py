"""The end of the launcher or of its gateway, and a launcher that does not answer: nothing is left of a kernel."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kernel_spec.client.async_client import LauncherClient, LauncherError, LauncherOptions
from kernel_spec.kernel.environment import interpreter_command, interpreter_environment
from kernel_spec.protocol.channel import Channel, pair
from kernel_spec.protocol.messages import GATEWAY_ANSWERS, ForkServerChanged, Hello, Refused, Status, StatusReport
from tests.kernel_spec.conftest import Desk, is_alive, wait_until


def descendants(pid: int) -> set[int]:
    found = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(line.split()[0]): int(line.split()[1]) for line in found.splitlines()}
    wanted = {pid}
    while more := {child for child, parent in parents.items() if parent in wanted} - wanted:
        wanted |= more
    return wanted


def test_nothing_is_left_when_the_gateway_is_gone(tmp_path: Path) -> None:
    with Gateway() as gateway:
        gateway.start_kernel_with_daemon()
        everything = descendants(gateway.launcher_pid)
        assert len(everything) >= 3  # launcher, kernel, daemon; the fork server as well
        os.kill(gateway.process.pid, signal.SIGKILL)
        gateway.process.wait()
        assert wait_until(lambda: not any(map(is_alive, everything)))
        assert list(gateway.workspaces_dir.iterdir()) == []


def test_kernels_die_with_a_killed_launcher_and_the_next_one_sweeps(tmp_path: Path) -> None:
    with Gateway() as gateway:
        gateway.start_kernel_with_daemon()
        everything = descendants(gateway.launcher_pid)
        os.kill(gateway.launcher_pid, signal.SIGKILL)
        assert gateway.process.stdout is not None
        assert gateway.process.stdout.readline() == "lost launcher_lost\n"
        assert len(list(gateway.workspaces_dir.iterdir())) == 1
        successor = LauncherClient.spawn(LauncherOptions(state_dir=str(gateway.state_dir), fork_server=False))
        try:
            assert list(gateway.workspaces_dir.iterdir()) == []
        finally:
            successor.close()
        # Without a pid namespace a daemon has no parent-death signal; the sweep by user id or mark ends it.
        assert wait_until(lambda: not any(map(is_alive, everything)))


class Gateway:
    """A process that has a launcher and a kernel with a daemon, to be killed."""

    CODE = """
import asyncio, sys
from tests.kernel_spec.conftest import open_desk, wait_until
from tests.kernel_spec.launcher.test_launcher import SPAWN_DAEMON
from pathlib import Path
with open_desk(workspaces=2, fork_server=False) as desk, desk.kernel() as kernel:
    kernel.run(SPAWN_DAEMON)
    assert wait_until((Path(kernel.process.workspace.work_dir) / "pid").exists)
    print(desk.launcher.pid, desk.state_dir, flush=True)
    desk.runner.run(desk.launcher.lost())
    print("lost", kernel.ended().cause, flush=True)
    sys.stdin.read()
"""

    def __enter__(self) -> Gateway:
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.CODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def start_kernel_with_daemon(self) -> None:
        assert self.process.stdout is not None
        pid, state_dir = self.process.stdout.readline().split()
        self.launcher_pid, self.state_dir = int(pid), Path(state_dir)
        self.workspaces_dir = self.state_dir / "workspaces"

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        shutil.rmtree(self.state_dir, ignore_errors=True)


def test_stop_of_the_client_leaves_nothing(new_desk: Callable[..., Desk]) -> None:
    desk = new_desk(workspaces=2, fork_server=False)
    everything = descendants(desk.launcher.pid)
    desk.do(desk.launcher.reserve("k"))
    desk.runner.run(desk.launcher.aclose())
    assert not any(map(is_alive, everything))
    assert list((desk.state_dir / "workspaces").iterdir()) == []
    assert not desk.launcher.alive
    with pytest.raises(LauncherError, match="gone"):
        desk.do(desk.launcher.reserve("k2"))


def test_nonsense_on_the_socket_is_answered_and_survived(tmp_path: Path) -> None:
    import json
    import shutil
    import tempfile

    state_dir = tempfile.mkdtemp(prefix="tk-", dir="/tmp")
    ours, theirs = pair()
    options = json.dumps({"state_dir": state_dir, "fork_server": False, "temporary": True})
    command = interpreter_command("kernel_spec.launcher", str(theirs.fileno()), options)
    process = subprocess.Popen(command, env=interpreter_environment(), pass_fds=(theirs.fileno(),))
    theirs.close()
    try:
        channel = Channel(ours, accepts=GATEWAY_ANSWERS)
        channel.set_timeout(60)
        while not isinstance(message := channel.receive()[0], Hello):
            assert isinstance(message, ForkServerChanged)
        for nonsense in (b"\x00", b"{}", b'{"kind": "Start"}', os.urandom(5000)):
            socket.send_fds(ours, [nonsense], [0])
            answer, _ = channel.receive()
            assert isinstance(answer, Refused)
            assert answer.code == "bad_message"
        channel.send(Status(5))
        answer, _ = channel.receive()
        assert isinstance(answer, StatusReport)
        channel.close()
        assert process.wait(60) == 0
        assert not Path(state_dir).exists()
    finally:
        ours.close()
        if process.poll() is None:
            process.kill()
            process.wait()
        shutil.rmtree(state_dir, ignore_errors=True)


def test_launcher_that_cannot_start_says_why(tmp_path: Path) -> None:
    too_long = tmp_path / ("x" * 100)
    with pytest.raises(LauncherError, match=r"STATE_DIR is .* bytes too long"):
        LauncherClient.spawn(LauncherOptions(state_dir=str(too_long), fork_server=False))


def test_answer_that_does_not_come_is_an_error_within_its_deadline(
    new_desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = new_desk(workspaces=2, fork_server=False)
    monkeypatch.setattr("kernel_spec.client.async_client.ANSWER_SECONDS", 0.1)
    os.kill(desk.launcher.pid, signal.SIGSTOP)
    try:
        with pytest.raises(LauncherError) as caught:
            desk.do(desk.launcher._ask(Status(999), StatusReport, seconds=0.2))
        assert caught.value.code == "timeout"
    finally:
        os.kill(desk.launcher.pid, signal.SIGCONT)


def test_loss_of_the_launcher_is_an_event(new_desk: Callable[..., Desk]) -> None:
    desk = new_desk(workspaces=2, fork_server=False)
    os.kill(desk.launcher.pid, signal.SIGKILL)
    desk.runner.run(asyncio.wait_for(desk.launcher.lost(), 60))
    assert not desk.launcher.alive
