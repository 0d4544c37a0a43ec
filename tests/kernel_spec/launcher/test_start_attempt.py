"""A start whose process dies on the way fails at once, and not when its time is up."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from msgspec.structs import replace

from kernel_spec.launcher.event_loop import Loop
from kernel_spec.launcher.kernel import Kernel, KernelPhase
from kernel_spec.launcher.kernel_processes import KernelProcesses
from kernel_spec.launcher.start_attempt import StartAttempt, StartContext
from kernel_spec.launcher.user_leases import WorkspaceUser
from kernel_spec.protocol.messages import Fork, Start
from kernel_spec.sandbox.policy.plan import PID_NAMESPACE
from tests.kernel_spec.protocol.test_messages import PLAN


@dataclass
class FakeForkServer:
    """A fork server that takes requests, while what it forks dies before it has said which kernel that is."""

    keeps_barrier: bool = False
    can_clone_parent: bool = False
    state: str = "ready"
    packages_dir: str = ""
    asked: list[Fork] = field(default_factory=list)
    barriers: list[int] = field(default_factory=list)

    def fork(self, request: Fork, descriptors: list[int]) -> bool:
        assert request.is_direct == self.can_clone_parent
        self.asked.append(request)
        if self.keeps_barrier:
            self.barriers.append(os.dup(descriptors[0]))
        return True


@dataclass
class Listener:
    failures: list[tuple[str, str]] = field(default_factory=list)
    known: list[int] = field(default_factory=list)

    def pid_known(self, attempt: StartAttempt) -> None:
        self.known.append(attempt.kernel.pid)

    def start_failed(self, attempt: StartAttempt, code: str, message: str) -> None:
        self.failures.append((code, message))


@pytest.mark.parametrize("kernel_lives", [False, True], ids=["nothing was forked", "an unnamed kernel waits"])
def test_intermediate_process_that_dies_silently_fails_the_start(kernel_lives: bool) -> None:
    fork_server, listener = FakeForkServer(kernel_lives), Listener()
    context = StartContext(Loop(), fork_server, listener, lambda: None, None, liveness_pipe=-1, can_start_inits=True)  # type: ignore[arg-type]
    kernel = Kernel("k", WorkspaceUser(1, 1), PLAN.workspace, KernelProcesses(PLAN.workspace, own_uid=False))
    outputs = [os.open(os.devnull, os.O_WRONLY) for _ in range(3)]
    attempt = StartAttempt(context, Start(1, "k", PLAN.limits), 1, kernel, PLAN, outputs)
    try:
        attempt.begin()
        attempt.forked(0)
        assert [code for code, _ in listener.failures] == ["kernel_start_failed"]
        assert attempt.is_over
    finally:
        attempt.abort()
        for barrier in fork_server.barriers:
            os.close(barrier)


def test_a_start_that_waited_for_a_new_fork_server_may_read_the_packages_of_that_one() -> None:
    fork_server = FakeForkServer(packages_dir="/state/packages/former")
    context = StartContext(Loop(), fork_server, Listener(), lambda: None, None, liveness_pipe=-1, can_start_inits=True)  # type: ignore[arg-type]
    kernel = Kernel("k", WorkspaceUser(1, 1), PLAN.workspace, KernelProcesses(PLAN.workspace, own_uid=False))
    attempt = StartAttempt(context, Start(1, "k", PLAN.limits), 1, kernel, PLAN, [])
    fork_server.packages_dir = "/state/packages/new"
    try:
        attempt.begin()
        assert fork_server.asked[0].plan.read_only_paths == (*PLAN.read_only_paths, "/state/packages/new")
    finally:
        attempt.abort()


@pytest.mark.skipif(os.geteuid() != 0, reason="without root the launcher makes no pid namespace")
def test_pid_namespace_made_for_a_fork_ends_when_the_fork_server_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain start that follows makes its own; a kernel that was forked into the first one must not live on."""
    starts: list[int | None] = []
    monkeypatch.setattr(StartAttempt, "_start_plainly", lambda self, _: starts.append(self.kernel.init_pid))
    liveness_pipe, end = os.pipe()
    fork_server, listener = FakeForkServer(can_clone_parent=True), Listener()
    context = StartContext(Loop(), fork_server, listener, lambda: None, None, liveness_pipe, can_start_inits=True)  # type: ignore[arg-type]
    kernel = Kernel("k", WorkspaceUser(1, 1), PLAN.workspace, KernelProcesses(PLAN.workspace, own_uid=False))
    plan = replace(PLAN, layers=(PID_NAMESPACE,), uid=None, gid=None, allow_network=False)
    attempt = StartAttempt(context, Start(1, "k", plan.limits), 1, kernel, plan, [])
    try:
        attempt.begin()
        init_pid = kernel.init_pid
        assert init_pid is not None
        here = Path("/proc/self/ns/pid").readlink()
        assert Path(f"/proc/{init_pid}/ns/pid").readlink() != here
        child = os.fork()
        if child == 0:
            os._exit(Path("/proc/self/ns/pid").readlink() != here)
        assert os.waitpid(child, 0)[1] == 0, "what is forked afterwards is born where we are"
        attempt.fork_refused("it is gone")
        assert starts == [None]
        assert os.WTERMSIG(os.waitpid(init_pid, 0)[1]) == signal.SIGKILL
    finally:
        attempt.abort()
        os.close(liveness_pipe)
        os.close(end)


@pytest.mark.parametrize("phase", [KernelPhase.ENDING, KernelPhase.ENDED, KernelPhase.STARTING])
def test_kernel_that_is_forked_after_its_start_was_given_up_is_no_other_kernels(phase: KernelPhase) -> None:
    """While that start is being ended the kernel ends with it; the next start in the workspace has one of its own."""
    fork_server, listener = FakeForkServer(can_clone_parent=True), Listener()
    context = StartContext(Loop(), fork_server, listener, lambda: None, None, liveness_pipe=-1, can_start_inits=True)  # type: ignore[arg-type]
    kernel = Kernel("k", WorkspaceUser(1, 1), PLAN.workspace, KernelProcesses(PLAN.workspace, own_uid=False))
    plan = replace(PLAN, layers=(), uid=None, gid=None, allow_network=False)
    attempt = StartAttempt(context, Start(1, "k", plan.limits), 1, kernel, plan, [])
    attempt.begin()
    attempt.abort()
    kernel.phase = phase
    late = os.fork()
    if late == 0:
        signal.alarm(60)
        signal.pause()
    try:
        attempt.forked(late)
        is_ending = phase is KernelPhase.ENDING
        assert (kernel.pid, listener.known) == ((late, [late]) if is_ending else (0, []))
        ended = is_ending and os.waitstatus_to_exitcode(os.waitpid(late, 0)[1])
        assert ended == (-signal.SIGKILL if is_ending else False)
    finally:
        if phase is not KernelPhase.ENDING:
            os.kill(late, signal.SIGKILL)
            os.waitpid(late, 0)
