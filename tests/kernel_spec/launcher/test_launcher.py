"""How kernels end, and what the launcher does about it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from kernel_spec.client.async_client import LauncherClient, LauncherError, LauncherOptions
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
