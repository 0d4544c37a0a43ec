from __future__ import annotations

import errno
import mmap
import os
import resource
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from kernel_spec.protocol.limits import Limits
from kernel_spec.sandbox import Identity, workspace_mark
from kernel_spec.sandbox.layers import rlimits
from tests.kernel_spec.sandbox.children import fork, in_child, make_plan, outcome

MIB = 1 << 20


def plan_with(workspace_dir: str, **changes: int) -> rlimits.SandboxPlan:
    return make_plan(workspace_dir, frozenset({"rlimits"}), limits=Limits(**changes))


def test_descriptors_and_files_stop_at_the_limit(workspace_dir: str) -> None:
    plan = plan_with(workspace_dir, descriptors=64, file_size_bytes=1 << 16)
    path = Path(workspace_dir, "work", "large")

    def child() -> list[str]:
        write = lambda: path.write_bytes(bytes(1 << 17))  # noqa: E731
        before = [outcome(write), outcome(lambda: os.dup2(1, 100))]
        rlimits.apply(plan)
        return [*before, outcome(write), outcome(lambda: os.dup2(1, 100))]

    assert in_child(child) == ["worked", "worked", "EFBIG", "EBADF"]


def test_processes_and_threads_of_the_workspace_stop_at_the_limit(workspace_dir: str, owner: Identity | None) -> None:
    plan = replace(plan_with(workspace_dir, processes=8), identity=owner)

    def child() -> list[int]:
        rlimits.apply(plan)
        if owner is not None:
            os.setresgid(owner.gid, owner.gid, owner.gid)
            os.setresuid(owner.uid, owner.uid, owner.uid)
        reader, writer = os.pipe()
        pids = []
        number = 0
        try:
            while len(pids) < 20:
                pid = os.fork()
                if pid == 0:
                    os.read(reader, 1)
                    os._exit(0)
                pids.append(pid)
        except OSError as error:
            number = error.errno or 0
        os.close(writer)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        return [len(pids), number]

    count, number = in_child(child)
    assert number == errno.EAGAIN
    # A shared user has processes beside ours that come and go.
    assert count == 7 if owner is not None else 1 <= count <= 12


def test_no_hard_limit_can_be_raised(workspace_dir: str) -> None:
    def child() -> list[str]:
        rlimits.apply(plan_with(workspace_dir))
        found = []
        for name in ("NOFILE", "FSIZE", "CPU", "DATA", "NPROC", "CORE", "MEMLOCK", "MSGQUEUE", "RTPRIO"):
            kind = getattr(resource, f"RLIMIT_{name}")
            soft, hard = resource.getrlimit(kind)
            found.append(name if hard == resource.RLIM_INFINITY or soft > hard else "")
        return found

    assert set(in_child(child)) == {""}


def test_memory_limit_adds_to_the_mappings_of_the_ready_process(workspace_dir: str) -> None:
    limits = Limits(memory_bytes=256 * MIB)

    def child() -> dict[str, object]:
        reserved = mmap.mmap(-1, 2048 * MIB, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)  # a ready kernel maps much
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        before = outcome(lambda: mmap.mmap(-1, 900 * MIB, flags=private).close())
        rlimits.apply(plan_with(workspace_dir, memory_bytes=256 * MIB))
        total = rlimits.bound_memory(limits)
        found = {
            "before": before,
            "small": outcome(lambda: mmap.mmap(-1, 64 * MIB, flags=private).close()),
            "private": outcome(lambda: mmap.mmap(-1, 300 * MIB, flags=private).close()),
            "shared": outcome(lambda: mmap.mmap(-1, 300 * MIB).close()),
            "object": outcome(lambda: bytearray(300 * MIB)),
            "total": total,
        }
        reserved.close()
        return found

    found = in_child(child)
    assert (found["before"], found["small"]) == ("worked", "worked")
    assert (found["private"], found["shared"], found["object"]) == ("ENOMEM", "ENOMEM", "MemoryError")
    assert found["total"] > 2300 * MIB


def test_cpu_time_ends_the_process_even_if_it_ignores_the_warning(workspace_dir: str) -> None:
    def spend(ignores: bool) -> int:
        pid = fork()
        if pid == 0:
            if ignores:
                signal.signal(signal.SIGXCPU, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            # The test's own time, which the limit counts too, is a fraction of a second.
            rlimits._set(resource.RLIMIT_CPU, 1, 2)
            while True:
                pass
        return os.WTERMSIG(os.waitpid(pid, 0)[1])

    assert spend(ignores=False) == signal.SIGXCPU
    started = time.monotonic()
    assert spend(ignores=True) == signal.SIGKILL
    assert time.monotonic() - started > 1


def test_cpu_limit_leaves_a_grace_to_say_so(workspace_dir: str) -> None:
    def child() -> tuple[int, int]:
        rlimits.apply(plan_with(workspace_dir, cpu_seconds=7))
        return resource.getrlimit(resource.RLIMIT_CPU)

    assert in_child(child) == [7, 7 + rlimits.CPU_GRACE_SECONDS]


def test_children_carry_the_mark_of_their_workspace(workspace_dir: str) -> None:
    def child() -> int:
        rlimits.apply(plan_with(workspace_dir))
        return in_child(lambda: resource.getrlimit(rlimits.MARK_RESOURCE)[1])

    assert in_child(child) == workspace_mark(workspace_dir)


@pytest.mark.parametrize("name", ["00000000", "ffffffff", "no hexadecimal name"])
def test_marks_of_workspaces_differ_and_fit(name: str) -> None:
    assert workspace_mark(f"/workspaces/{name}") != workspace_mark("/workspaces/0123abcd")
    assert 0 < workspace_mark(f"/workspaces/{name}") < 1 << 62


def test_a_lower_limit_of_the_host_is_kept(workspace_dir: str) -> None:
    def child() -> int:
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
        if os.geteuid() == 0:
            os.setresuid(60177, 60177, 60177)
        rlimits.apply(plan_with(workspace_dir, descriptors=256))
        return resource.getrlimit(resource.RLIMIT_NOFILE)[1]

    assert in_child(child) == 128


def test_threads_count_as_processes(workspace_dir: str, owner: Identity | None) -> None:
    if owner is None:
        pytest.skip("a shared user has threads beside ours, so the number is not known")
    plan = replace(plan_with(workspace_dir, processes=10), identity=owner)

    def child() -> int:
        rlimits.apply(plan)
        os.setresuid(owner.uid, owner.uid, owner.uid)
        stop = threading.Event()
        started = 0
        try:
            for _ in range(30):
                threading.Thread(target=stop.wait, daemon=True).start()
                started += 1
        except RuntimeError:
            pass
        stop.set()
        return started

    assert in_child(child) == 9


def test_preference_of_the_launcher_is_not_handed_on(workspace_dir: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("a negative nice value takes root")

    def child() -> list[int]:
        os.setpriority(os.PRIO_PROCESS, 0, -5)
        before = os.getpriority(os.PRIO_PROCESS, 0)
        rlimits.apply(plan_with(workspace_dir))
        return [before, os.getpriority(os.PRIO_PROCESS, 0)]

    assert in_child(child) == [-5, 0]
