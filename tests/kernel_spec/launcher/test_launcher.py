"""How kernels end, and what the launcher does about it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from kernel_spec.client.async_client import LauncherClient, LauncherError, LauncherOptions
from kernel_spec.kernel.environment import interpreter_command, interpreter_environment
from kernel_spec.protocol.channel import Channel, pair
from kernel_spec.protocol.limits import Limits
from kernel_spec.protocol.messages import GATEWAY_ANSWERS, ForkServerChanged, Hello, Refused, Status, StatusReport
from tests.kernel_spec.conftest import KERNEL_MODULES, Desk, is_alive, wait_until

SPAWN_DAEMON = """
import os, time
def daemon():
    if os.fork():
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    for number in range(3, 200):
        try: os.close(number)
        except OSError: pass
    os.environ.clear()
    os.rename("pid.part", "pid") if open("pid.part", "w").write(str(os.getpid())) else None
    while True:
        time.sleep(1)
daemon()
"""


@pytest.mark.parametrize(
    ("code", "cause", "signal_number", "exit_code"),
    [
        ("import os; os._exit(3)", "exit", None, 3),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "signal", signal.SIGKILL, None),
        ("import ctypes; ctypes.string_at(8)", "signal", signal.SIGSEGV, None),
    ],
)
def test_launcher_reports_the_end_of_a_kernel_unasked(
    desk: Desk, code: str, cause: str, signal_number: int | None, exit_code: int | None
) -> None:
    with desk.kernel() as kernel:
        kernel.run(code, waits=False)
        report = kernel.ended()
        assert (report.cause, report.signal, report.exit_code) == (cause, signal_number, exit_code)
        assert kernel.kill() == report


def test_killed_kernel_is_reported_as_killed_by_us(desk: Desk) -> None:
    with desk.kernel() as kernel:
        report = kernel.kill()
        assert (report.cause, report.signal) == ("killed_by_us", signal.SIGKILL)
        assert report.peak_memory_bytes > 10 << 20
        assert not is_alive(kernel.process.pid)
        assert kernel.ended() == report


RESTLESS = """
import os
if not os.fork():
    os.setsid()
    place = os.open("traces", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    while True:  # each of the chain lives for one trace only
        os.write(place, b"x")
        if os.fork():
            os._exit(0)
"""


def test_stopped_kernel_writes_no_more_files(desk: Desk) -> None:
    for _ in range(5):
        with desk.kernel() as kernel:
            kernel.run(RESTLESS)
            traces = Path(kernel.process.workspace.work_dir) / "traces"
            assert wait_until(lambda traces=traces: traces.exists() and traces.stat().st_size > 50)  # type: ignore[misc]
            report = desk.do(desk.launcher.stop(kernel.kernel_id))
            stopped = traces.stat().st_size
            assert report.cause == "killed_by_us"
            assert kernel.kill().cause == "killed_by_us"
            assert traces.stat().st_size == stopped
            assert desk.do(desk.launcher.stop(kernel.kernel_id)).signal == signal.SIGKILL, "stopping again is harmless"


def test_stop_is_answered_where_only_the_end_of_all_can_tell(new_desk: Callable[..., Desk]) -> None:
    desk = new_desk(workspaces=2, without_layers=("cgroup",), modules=KERNEL_MODULES)
    desk.wait_for_fork_server("ready")
    with desk.kernel() as kernel:
        report = desk.do(desk.launcher.stop(kernel.kernel_id))
        assert (report.cause, report.signal) == ("killed_by_us", signal.SIGKILL)
        assert not is_alive(kernel.process.pid)


def test_interrupt_reaches_the_running_code(desk: Desk) -> None:
    with desk.kernel() as kernel:
        kernel.client.execute("print('go', flush=True)\nwhile True: pass", store_history=False)
        while kernel.client.get_iopub_msg(timeout=60)["msg_type"] != "stream":
            pass
        desk.do(desk.launcher.signal(kernel.kernel_id, signal.SIGINT))
        reply = kernel.client.get_shell_msg(timeout=60)
        assert reply["content"]["ename"] == "KeyboardInterrupt"


def test_daemon_that_left_its_session_and_its_parents_is_killed(desk: Desk) -> None:
    with desk.kernel() as kernel:
        kernel.run(SPAWN_DAEMON)
        pid_file = Path(kernel.process.workspace.work_dir) / "pid"
        assert wait_until(pid_file.exists)
        assert desk.do(desk.launcher.usage(kernel.kernel_id)).processes >= 2
        kernel.kill()
        assert desk.do(desk.launcher.usage(kernel.kernel_id)).processes == 0


def test_daemon_does_not_outlive_a_kernel_that_exits(desk: Desk) -> None:
    with desk.kernel() as kernel:
        kernel.run(SPAWN_DAEMON)
        assert wait_until((Path(kernel.process.workspace.work_dir) / "pid").exists)
        kernel.run("import os; os._exit(0)", waits=False)
        kernel.ended()
        assert wait_until(lambda: desk.do(desk.launcher.usage(kernel.kernel_id)).processes == 0)


NO_WALLS = ("identity", "cgroup", *(f"{name}_namespace" for name in ("user", "mount", "pid", "network", "ipc", "uts")))


def test_daemon_is_found_where_workspaces_share_a_user_and_no_namespace_ends_it(new_desk: Callable[..., Desk]) -> None:
    desk = new_desk(workspaces=3, without_layers=NO_WALLS, modules=KERNEL_MODULES)
    desk.wait_for_fork_server("ready")
    with desk.kernel() as kernel, desk.kernel() as bystander:
        kernel.run(SPAWN_DAEMON)
        pid_file = Path(kernel.process.workspace.work_dir) / "pid"
        assert wait_until(pid_file.exists)
        daemon = int(pid_file.read_text())
        assert is_alive(daemon)
        assert kernel.kill().cause == "killed_by_us"
        assert not is_alive(daemon)
        assert bystander.run("print('unharmed')") == "unharmed\n"


def test_daemon_of_a_killed_launcher_is_swept_where_workspaces_share_a_user(new_desk: Callable[..., Desk]) -> None:
    desk = new_desk(workspaces=2, without_layers=NO_WALLS, fork_server=False)
    with desk.kernel() as kernel:
        kernel.run(SPAWN_DAEMON)
        pid_file = Path(kernel.process.workspace.work_dir) / "pid"
        assert wait_until(pid_file.exists)
        daemon = int(pid_file.read_text())
        os.kill(desk.launcher.pid, signal.SIGKILL)
        kernel.ended()
        assert is_alive(daemon)
        LauncherClient.spawn(LauncherOptions(state_dir=str(desk.state_dir), fork_server=False)).close()
        assert not is_alive(daemon)


def test_processor_time_is_counted_from_the_jobs_start(desk: Desk) -> None:
    with desk.kernel(Limits(cpu_seconds=1)) as kernel:
        kernel.run("sum(range(10**7))")
        desk.do(desk.launcher.limit_cpu(kernel.kernel_id, 1))
        kernel.run("while True: pass", waits=False)
        report = kernel.ended()
        assert report.cause == "cpu_limit", report
        assert report.cpu_seconds >= 1
        assert "1 s" in report.detail


def test_processor_time_of_children_is_added_up(desk: Desk) -> None:
    with desk.kernel() as kernel:
        desk.do(desk.launcher.limit_cpu(kernel.kernel_id, 1))
        kernel.run(
            "import os\n"
            "while True:\n"
            "    if os.fork() == 0:\n"
            "        import time; t = time.process_time() + 0.4\n"
            "        while time.process_time() < t: pass\n"
            "        os._exit(0)\n"
            "    os.wait()",
            waits=False,
        )
        assert kernel.ended().cause == "cpu_limit"


def test_another_limit_does_not_count_what_children_used_before(desk: Desk) -> None:
    """As for a job that failed and is held."""
    with desk.kernel() as kernel:
        desk.do(desk.launcher.limit_cpu(kernel.kernel_id, 60))
        kernel.run(
            "import os, signal, time\ndef burn(seconds):\n    end = time.process_time() + seconds\n"
            "    while time.process_time() < end: pass\n"
            "if os.fork() == 0: burn(3); os.kill(os.getpid(), signal.SIGSTOP)"
        )
        assert wait_until(lambda: desk.do(desk.launcher.usage(kernel.kernel_id)).cpu_seconds > 3)
        desk.do(desk.launcher.limit_cpu(kernel.kernel_id, 2))
        # longer than it takes to measure a kernel
        assert kernel.run("burn(1)\nprint('runs')") == "runs\n"


def test_memory_of_children_is_added_up(desk: Desk) -> None:
    with desk.kernel(Limits(memory_bytes=400 << 20)) as kernel:
        desk.do(desk.launcher.limit_cpu(kernel.kernel_id, 60))
        # eight processes, each of them within the limit
        kernel.run(
            "import os, time\nfor _ in range(3): os.fork()\ndata = b'x' * (90 << 20)\ntime.sleep(60)", waits=False
        )
        report = kernel.ended()
        assert report.cause == "memory_limit", report
        # the kernel counts pages in batches, so the peak can be some of them below the limit
        assert report.peak_memory_bytes > 390 << 20


def test_files_beyond_the_disk_limit_end_the_kernel(desk: Desk) -> None:
    limits = Limits(disk_bytes=20_000_000, file_size_bytes=10_000_000)
    with desk.kernel(limits) as kernel:
        desk.do(desk.launcher.limit_cpu(kernel.kernel_id, 60))
        kernel.run(
            "import time\nfor n in range(4): open(f'f{n}', 'wb').write(b'x' * 9_000_000)\ntime.sleep(60)", waits=False
        )
        assert kernel.ended().cause == "disk_limit"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may look into the descriptors of a job")
@pytest.mark.parametrize("place", [".", "../out", "../ipc"])
def test_removed_files_count_wherever_a_job_keeps_them_open(desk: Desk, place: str) -> None:
    limits = Limits(disk_bytes=20_000_000, file_size_bytes=10_000_000)
    with desk.kernel(limits) as kernel:
        desk.do(desk.launcher.limit_cpu(kernel.kernel_id, 60))
        kernel.run(
            "import os, time\nfiles = []\nfor n in range(4):\n"
            f"    files.append(open('{place}/gone', 'wb', 0))\n    os.unlink('{place}/gone')\n"
            "    files[-1].write(b'x' * 9_000_000)\ntime.sleep(60)",
            waits=False,
        )
        assert kernel.ended().cause == "disk_limit"


def test_another_kernel_starts_in_the_workspace_of_a_killed_one(desk: Desk) -> None:
    with desk.kernel() as kernel:
        Path(kernel.process.workspace.out_dir, "kept").touch()
        desk.do(desk.launcher.stop(kernel.kernel_id))
        kernel.kill()
        null = os.open(os.devnull, os.O_RDWR)
        again = desk.do(desk.launcher.start_kernel(kernel.kernel_id, output_fds=(null, null)))
        os.close(null)
        assert again.workspace == kernel.process.workspace
        assert again.pid != kernel.process.pid
        assert Path(again.workspace.out_dir, "kept").exists()


def test_kernel_that_follows_one_beyond_its_memory_limit_runs(desk: Desk) -> None:
    limits = Limits(memory_bytes=300 << 20)
    with desk.kernel(limits) as kernel:
        desk.do(desk.launcher.limit_cpu(kernel.kernel_id, 60))
        kernel.run(
            "import os, time\nfor _ in range(3): os.fork()\ndata = b'x' * (90 << 20)\ntime.sleep(60)", waits=False
        )
        assert kernel.ended().cause == "memory_limit"
        kernel.kill()
        null = os.open(os.devnull, os.O_RDWR)
        again = desk.do(desk.launcher.start_kernel(kernel.kernel_id, output_fds=(null, null), limits=limits))
        os.close(null)
        desk.do(desk.launcher.limit_cpu(kernel.kernel_id, 1))
        kernel.run("while True: pass", waits=False)
        report = desk.do(asyncio.shield(again.exited))
        assert report.cause == "cpu_limit", "it was measured for a second, and ended by nothing else"


def test_requests_out_of_order_are_refused_with_a_code(desk: Desk) -> None:
    launcher = desk.launcher
    for request, code in [
        (launcher.kill("nobody"), "no_kernel"),
        (launcher.start_kernel("nobody", output_fds=(1, 2)), "no_kernel"),
        (launcher.signal("nobody", 2), "no_kernel"),
    ]:
        with pytest.raises(LauncherError) as caught:
            desk.do(request)
        assert caught.value.code == code
    with desk.kernel() as kernel:
        for request, code in [
            (launcher.remove(kernel.kernel_id), "wrong_phase"),
            (launcher.reserve(kernel.kernel_id), "kernel_exists"),
            (launcher.start_kernel(kernel.kernel_id, output_fds=(1, 2)), "wrong_phase"),
            (launcher.limit_cpu(kernel.kernel_id, 0), "bad_message"),
            (launcher.signal(kernel.kernel_id, 99), "bad_message"),
        ]:
            with pytest.raises(LauncherError) as caught:
                desk.do(request)
            assert caught.value.code == code
        assert kernel.run("print('still here')") == "still here\n"


def test_kernel_without_connection_file_fails_with_the_reason_and_frees_its_workspace(desk: Desk) -> None:
    free = desk.status()["workspaces"]["free"]
    desk.do(desk.launcher.reserve("hopeless"))
    null = os.open(os.devnull, os.O_RDWR)
    with pytest.raises(LauncherError) as caught:
        desk.do(desk.launcher.start_kernel("hopeless", output_fds=(null, null)))
    os.close(null)
    assert caught.value.code == "kernel_start_failed"
    assert "connection" in str(caught.value)
    desk.do(desk.launcher.kill("hopeless"))
    desk.do(desk.launcher.remove("hopeless"))
    assert desk.status()["workspaces"]["free"] == free


def test_reserving_more_workspaces_than_there_are_is_refused(desk: Desk) -> None:
    free = desk.status()["workspaces"]["free"]
    for number in range(free):
        desk.do(desk.launcher.reserve(f"workspace-{number}"))
    with pytest.raises(LauncherError) as caught:
        desk.do(desk.launcher.reserve("one-too-many"))
    assert caught.value.code == "no_workspace"
    for number in range(free):
        desk.do(desk.launcher.remove(f"workspace-{number}"))


def test_reserving_waits_for_a_workspace_that_is_being_removed(new_desk: Callable[..., Desk]) -> None:
    """A job that leaves thousands of directories keeps its workspace busy for as long as they take to go."""
    desk = new_desk(workspaces=1, fork_server=False)
    workspace = desk.do(desk.launcher.reserve("leaves much"))
    for number in range(600):
        (Path(workspace.work_dir) / f"d{number}" / "e").mkdir(parents=True)

    async def turn_over() -> list[str]:
        finished: list[str] = []

        async def note(name: str, work: Awaitable[object]) -> None:
            await work
            finished.append(name)

        # Both are on their way before the first is answered; the removal has begun when the second is read.
        await asyncio.gather(
            note("removed", desk.launcher.remove("leaves much")), note("reserved", desk.launcher.reserve("waits"))
        )
        return finished

    assert desk.do(turn_over()) == ["removed", "reserved"]
    assert desk.status()["kernels"] == {"waits": "reserved"}
    with pytest.raises(LauncherError, match="all 1 workspaces are taken") as caught:
        desk.do(desk.launcher.reserve("too many"))
    assert caught.value.code == "no_workspace"


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
        import shutil

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
