from __future__ import annotations

import os
import select

import pytest

from kernel_spec.sandbox import SandboxError
from kernel_spec.sandbox.layers import parent_death
from tests.kernel_spec.sandbox.children import WORKSPACE_USER, become, fork, in_child

PR_GET_PDEATHSIG = 2


def outlives_its_parent(follows: bool) -> bool:
    """Whether a kernel is still there after its launcher has ended; it holds a pipe open as long as it lives."""
    life, held = os.pipe()
    stop, release = os.pipe()
    launcher = fork()
    if launcher == 0:
        ready, tell = os.pipe()
        launcher_pid = os.getpid()
        if os.fork() == 0:
            os.close(release)
            if follows:
                parent_death.follow_launcher(launcher_pid, None)
            os.write(tell, b"x")
            os.read(stop, 1)
            os._exit(0)
        os.read(ready, 1)
        os._exit(0)
    os.close(held)
    os.waitpid(launcher, 0)
    poller = select.poll()
    poller.register(life, select.POLLHUP)
    survived = not poller.poll(60_000 if follows else 50)
    for descriptor in (life, stop, release):
        os.close(descriptor)
    return survived


def test_kernel_ends_with_its_launcher() -> None:
    assert outlives_its_parent(follows=False)
    assert not outlives_its_parent(follows=True)


def test_kernel_with_another_parent_does_not_start() -> None:
    def child() -> str:
        try:
            parent_death.follow_launcher(1 if os.getppid() != 1 else 2, None)
        except SandboxError as error:
            return error.layer
        return "worked"

    assert in_child(child) == "parent_death"


def test_handover_waits_for_the_end_of_the_intermediate_process() -> None:
    """The signal is asked for only when the launcher is the parent: the intermediate process's end must not be the kernel's."""

    def launcher() -> list[object]:
        from kernel_spec.sandbox.accounting import processes

        processes.become_subreaper()
        reader, writer = os.pipe()
        held, release = os.pipe()
        launcher_pid = os.getpid()
        intermediate = fork()
        if intermediate == 0:
            lineage = parent_death.leave_lineage(launcher_pid)
            if os.fork() == 0:
                os.close(release)
                os.write(writer, b"waiting ")
                parent_death.follow_launcher(launcher_pid, lineage)
                os.write(writer, b"followed by " + str(os.getppid()).encode())
                os._exit(0)
            os.close(release)
            os.read(held, 1)
            os._exit(0)
        os.close(writer)
        os.close(held)
        first = os.read(reader, 100)
        os.close(release)
        rest = b""
        while piece := os.read(reader, 100):
            rest += piece
        return [first.decode(), rest.decode() == f"followed by {launcher_pid}"]

    assert in_child(launcher) == ["waiting ", True]


def test_a_launcher_that_has_ended_is_noticed() -> None:
    gone = fork()
    if gone == 0:
        os._exit(0)
    os.waitpid(gone, 0)
    with pytest.raises(SandboxError, match="cannot be watched"):
        parent_death.leave_lineage(gone)


def test_change_of_user_clears_the_signal_so_the_order_matters() -> None:
    if os.geteuid() != 0:
        pytest.skip("becoming another user takes root")

    def child() -> list[int]:
        import ctypes

        from kernel_spec.linux import syscalls

        def current() -> int:
            value = ctypes.c_int()
            syscalls.prctl(PR_GET_PDEATHSIG, ctypes.addressof(value))
            return value.value

        parent_death.follow_launcher(os.getppid(), None)
        before = current()
        become(WORKSPACE_USER)
        cleared = current()
        parent_death.follow_launcher(os.getppid(), None)
        return [before, cleared, current()]

    assert in_child(child) == [9, 0, 9]
