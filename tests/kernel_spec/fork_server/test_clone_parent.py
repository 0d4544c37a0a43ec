"""Kernels are forked as the launcher's children, by a call that the C library has no function for."""

from __future__ import annotations

import functools
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from kernel_spec.fork_server import clone_parent
from kernel_spec.fork_server import server as fork_server
from kernel_spec.kernel import confinement
from kernel_spec.kernel.environment import interpreter_environment
from kernel_spec.protocol.channel import Channel, pair
from kernel_spec.protocol.limits import Limits
from kernel_spec.protocol.messages import (
    BARRIER_REPORTS,
    FORK_ANSWERS,
    Fork,
    Forked,
    ForkRefused,
    ForkServerReady,
    StartFailed,
)
from kernel_spec.protocol.values import KernelPlan, WorkspaceInfo
from kernel_spec.sandbox.accounting import processes
from kernel_spec.sandbox.policy.plan import IDENTITY, PID_NAMESPACE, USER_NAMESPACE
from tests.kernel_spec.conftest import ANSWER_SECONDS, Desk
from tests.kernel_spec.sandbox.children import MAKE_ORPHANS, in_child

pytestmark = pytest.mark.skipif(
    not clone_parent.is_possible(), reason="this system does not tell where the C library keeps its thread id"
)


def in_fork(work: Any, *, as_sibling: bool) -> Any:
    """Return what `work` returns in a process that is forked by the module under test, as a text."""
    reader, writer = os.pipe()
    pid = clone_parent.fork(as_sibling=as_sibling)
    if pid == 0:
        try:
            os.write(writer, repr(work()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        told = pipe.read()
    return pid, told


def test_child_of_the_bare_call_is_a_whole_process() -> None:
    """Threads, locks, a thread's own id, processes and hooks of Python work as after os.fork."""
    called: list[str] = []

    def work() -> list[Any]:
        results: list[int] = []
        lock = threading.RLock()
        with lock:
            threads = [threading.Thread(target=results.append, args=(number,)) for number in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        program = subprocess.run([sys.executable, "-c", "print(6 * 7)"], stdout=subprocess.PIPE, check=True)
        names = threading.active_count(), threading.current_thread() is threading.main_thread()
        return [
            clone_parent.has_correct_thread_id(),
            sorted(results),
            program.stdout,
            names,
            called,
            os.getpid() != parent,
        ]

    parent = os.getpid()

    def process_of_one_thread() -> str:
        os.register_at_fork(after_in_child=lambda: called.append("hook"))
        pid, told = in_fork(work, as_sibling=False)
        assert os.waitpid(pid, 0) == (pid, 0)
        return str(told)

    expected = [True, list(range(8)), b"42\n", (1, True), ["hook"], True]
    assert in_child(process_of_one_thread) == repr(expected)


def test_fork_makes_random_numbers_of_its_own_and_leaves_the_parent_whole() -> None:
    def process_of_one_thread() -> list[bool]:
        pid, told = in_fork(random.random, as_sibling=False)
        os.waitpid(pid, 0)
        thread = threading.Thread(target=lambda: None)
        thread.start()
        thread.join()
        return [clone_parent.has_correct_thread_id(), float(told) != random.random()]

    assert in_child(process_of_one_thread) == [True, True]


def test_sibling_is_the_parents_child() -> None:
    def grandparent() -> list[Any]:
        processes.become_subreaper()
        reader, writer = os.pipe()
        parent = os.fork()
        if parent == 0:
            pid, told = in_fork(os.getppid, as_sibling=True)
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                told += " not ours"
            os.write(writer, f"{pid} {told}".encode())
            os._exit(0)
        os.waitpid(parent, 0)
        pid, rest = os.read(reader, 100).decode().split(" ", 1)
        return [rest == f"{os.getpid()} not ours", os.waitpid(int(pid), 0)[1]]

    assert in_child(grandparent) == [True, 0]


def test_kernel_is_the_launchers_child_and_not_the_fork_servers(desk: Desk) -> None:
    assert desk.status()["fork_server"]["state"] == "ready"
    with desk.kernel() as kernel:
        status = Path(f"/proc/{kernel.process.pid}/status").read_text()
        (parent,) = [int(line.split()[1]) for line in status.splitlines() if line.startswith("PPid:")]
        assert parent == desk.launcher.pid
        assert kernel.process.started_by == "fork"


def test_orphans_of_a_job_are_reaped_while_it_runs(desk: Desk) -> None:
    if PID_NAMESPACE not in desk.launcher.hello.layers:
        pytest.skip("no pid namespace can be had here, so orphans are the launcher's")
    with desk.kernel() as kernel:
        assert kernel.run(MAKE_ORPHANS) == "[1, 2]\n"


# ------------------------------------------------------------------------------------- a fork server of our own
@pytest.fixture
def server() -> Iterator[Channel]:
    """A fork server with next to nothing imported, whose launcher is this process."""
    ours, theirs = pair()
    os.set_inheritable(theirs.fileno(), True)
    command = [sys.executable, "-P", "-m", "kernel_spec.fork_server", str(theirs.fileno()), "--module=json"]
    environment = {**interpreter_environment(), "PYTHONPATH": str(Path(__file__).parents[3])}
    with (
        subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()]) as process,
        closing(Channel(ours, accepts=FORK_ANSWERS)) as channel,
    ):
        theirs.close()
        channel.set_timeout(ANSWER_SECONDS)
        try:
            ready, _ = channel.receive()
            assert isinstance(ready, ForkServerReady)
            assert ready.can_clone_parent
            assert ready.prefault_pages == 0, "no kernel was imported"
            yield channel
        finally:
            process.kill()


def plan_of(workspace_dir: Path, *layers: str) -> KernelPlan:
    places = {name: str(workspace_dir) for name in ("workspace_dir", "ipc_dir", "inputs_dir", "work_dir", "out_dir")}
    return KernelPlan(
        kernel_id="k",
        workspace=WorkspaceInfo("workspace", 0, 0, **places),
        connection_path=str(workspace_dir / "none.json"),
        uid=None,
        gid=None,
        limits=Limits(),
        layers=layers,
        read_only_paths=(),
        allow_network=False,
        style="job",
        has_log=False,
        launcher_pid=os.getpid(),
        environment={},
    )


def ask(server: Channel, request: Fork, second: int) -> tuple[Any, Any]:
    """Send a request; return the answer, and what is said at the barrier once it is passed, if it was reached."""
    ours, theirs = pair()
    null = os.open(os.devnull, os.O_RDWR)
    with closing(Channel(ours, accepts=BARRIER_REPORTS)) as barrier:
        barrier.set_timeout(ANSWER_SECONDS)
        server.send(request, [theirs.fileno(), second, null, null])
        theirs.close()
        os.close(null)
        answer, _ = server.receive()
        return answer, barrier.receive()[0] if isinstance(answer, Forked) and not answer.pid else None


def pidfd_of_an_ended_process() -> int:
    ended = os.fork()
    if ended == 0:
        os._exit(0)
    pidfd = os.pidfd_open(ended)
    os.waitpid(ended, 0)
    return pidfd


@pytest.mark.skipif(os.geteuid() != 0, reason="without root no process may enter another pid namespace")
def test_fork_into_a_namespace_that_has_ended_fails_that_kernel_alone(server: Channel, tmp_path: Path) -> None:
    pidfd = pidfd_of_an_ended_process()
    request = Fork(1, plan_of(tmp_path, PID_NAMESPACE), is_direct=True)
    for number in (1, 2):
        answer, told = ask(server, replace(request, number=number), pidfd)
        assert answer == Forked(number, 0)
        assert isinstance(told, StartFailed)
        assert told.step == "namespaces"
    os.close(pidfd)


@pytest.mark.skipif(os.geteuid() != 0, reason="without root no process may enter another pid namespace")
def test_start_that_was_given_up_costs_no_fork_server(server: Channel, tmp_path: Path) -> None:
    """Its init has been killed and its barrier closed by the time that the fork server comes to it."""
    pidfd = pidfd_of_an_ended_process()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.close()
    server.send(Fork(1, plan_of(tmp_path, PID_NAMESPACE), is_direct=True), [theirs.fileno(), pidfd, pidfd, pidfd])
    theirs.close()
    os.close(pidfd)
    answer, _ = server.receive()
    assert answer == Forked(1, 0)


def test_direct_forks_are_tried_for_real(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """A filter of system calls may refuse just that."""

    def refuse(*, as_sibling: bool = True) -> int:
        if as_sibling:
            raise PermissionError(1, "clone: Operation not permitted")
        return os.fork()

    monkeypatch.setattr(clone_parent, "fork", refuse)
    assert in_child(fork_server._can_fork_directly) is False
    assert "clone: Operation not permitted" in capfd.readouterr().err


def test_fork_server_without_a_place_for_files_copies_no_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fork_server, "has_kernel_modules", lambda: True)
    assert fork_server._find_dirtied_pages("/nowhere").count == 0


def test_kernel_exits_when_its_start_barrier_is_lost(server: Channel, tmp_path: Path) -> None:
    """As one does that was forked in the moment in which the fork server was lost."""
    null = os.open(os.devnull, os.O_RDWR)
    answer, _ = ask(server, Fork(1, plan_of(tmp_path), is_direct=True), null)
    os.close(null)
    assert isinstance(answer, Forked)
    _, status = os.waitpid(answer.pid, 0)  # a child of ours
    assert os.waitstatus_to_exitcode(status) == 70


def test_wrong_number_of_descriptors_is_refused(server: Channel, tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    server.send(Fork(1, plan_of(tmp_path), is_direct=True), [theirs.fileno()])
    answer, _ = server.receive()
    assert isinstance(answer, ForkRefused)
    assert "1 descriptors came where 4 are needed" in answer.reason
    ours.close()
    theirs.close()


def test_plans_that_need_an_intermediate_process_are_known(tmp_path: Path) -> None:
    plain = plan_of(tmp_path, PID_NAMESPACE, IDENTITY)
    direct = functools.partial(confinement.enters_directly, can_start_inits=True)
    assert direct(plain)
    assert not direct(replace(plain, layers=(PID_NAMESPACE, USER_NAMESPACE)))
    assert not direct(replace(plain, allow_network=True))
    assert direct(replace(plain, allow_network=True, allow_loopback=True))
    assert not confinement.enters_directly(plain, can_start_inits=False)
    assert confinement.enters_directly(replace(plain, layers=(IDENTITY,)), can_start_inits=False)


def test_signal_of_a_forked_process_is_seen_by_its_parent() -> None:
    def process_of_one_thread() -> int:
        pid = clone_parent.fork(as_sibling=False)
        if pid == 0:
            try:
                signal.pause()
            finally:
                os._exit(1)
        os.kill(pid, signal.SIGKILL)  # of which no handler of an earlier test can make anything else
        return os.WTERMSIG(os.waitpid(pid, 0)[1])

    assert in_child(process_of_one_thread) == signal.SIGKILL
