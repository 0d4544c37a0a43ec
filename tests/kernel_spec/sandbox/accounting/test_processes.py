from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import pytest

from kernel_spec.linux import procfs
from kernel_spec.protocol.limits import Limits
from kernel_spec.sandbox import Identity, SandboxError
from kernel_spec.sandbox.accounting import processes
from kernel_spec.sandbox.layers import rlimits
from kernel_spec.sandbox.policy.plan import PROCESSES
from tests.kernel_spec.sandbox.children import become, fork, in_child, make_plan, make_workspace


def start_in_workspace(workspace_dir: str, owner: Identity | None, code: str) -> int:
    """Start a program as a process of the workspace; it says a word when it is ready."""
    reader, writer = os.pipe()
    pid = fork()
    if pid == 0:
        os.dup2(writer, 1)
        rlimits.apply(replace(make_plan(workspace_dir), identity=owner))
        if owner is not None:
            become(owner)
        exec(compile(code, "job", "exec"), {})
        os._exit(0)
    os.close(writer)
    assert os.read(reader, 1) == b"x"
    os.close(reader)
    return pid


DAEMON = """
import os, signal, time
signal.alarm(100)
if os.fork() == 0:
    os.setsid()
    middle = os.getpid()
    if os.fork() == 0:
        signal.alarm(100)
        while os.getppid() == middle: os.sched_yield()  # it shall not be counted
        for number in range(1, 32):
            try: signal.signal(number, signal.SIG_IGN)
            except OSError: pass
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        os.write(1, b"x")
        while True: time.sleep(1)
    os._exit(0)
os.wait()
while True: time.sleep(1)
"""

FORK_BOMB = """
import os, signal, time
signal.alarm(100)
while True:
    try:
        if os.fork() == 0:
            signal.alarm(100)
            os.setsid()
    except OSError:
        os.write(1, b"x")  # full; from now on each that dies is replaced
        time.sleep(0.001)
"""

#: An ELF file whose program begins a session and then forks without end; each parent ends as soon as it has a child.
CHAIN = """
import os, struct, sys
program = bytes.fromhex("b8700000000f05" "b8390000000f05" "85c0" "74f5" "78f3" "31ff" "b83c0000000f05")
size = 0x78 + len(program)
header = struct.pack("<16sHHIQQQIHHHHHH", b"\\x7fELF\\2\\1\\1", 2, 62, 1, 0x400078, 64, 0, 0, 64, 56, 1, 0, 0, 0)
header += struct.pack("<IIQQQQQQ", 1, 5, 0, 0x400000, 0x400000, size, size, 4096)
path = os.path.join(%r, "chain")
with open(path, "wb") as file:
    file.write(header + program)
    os.fchmod(file.fileno(), 0o755)
if os.fork() == 0:
    os.execv(path, [path])
os.write(1, b"x")
"""


def test_everything_a_workspace_started_is_ended_and_reaped(workspace_dir: str, owner: Identity | None) -> None:
    def launcher() -> list[object]:
        processes.become_subreaper()
        kernel = start_in_workspace(workspace_dir, owner, DAEMON)
        found = processes.of_workspace(workspace_dir, owner)
        ended = processes.end_workspace(workspace_dir, owner)
        return [
            len([status for status in found if status.is_alive]),
            len(ended.pids),
            ended.exits.get(kernel),
            list(ended.exits.values()).count(signal.SIGKILL) == 2,
            len(
                [status for status in processes.of_workspace(workspace_dir, owner) if status.parent_pid == os.getpid()]
            ),
        ]

    assert in_child(launcher) == [2, 2, signal.SIGKILL, True, 0]


@pytest.mark.parametrize("shares_uid", [False, True], ids=["own user", "shared user"])
def test_fork_bomb_is_ended(workspace_dir: str, owner: Identity | None, shares_uid: bool) -> None:
    if owner is None and not shares_uid:
        pytest.skip("a user of its own takes root")

    def launcher() -> list[object]:
        processes.become_subreaper()
        if shares_uid and owner is not None:
            os.chown(workspace_dir, owner.uid, owner.gid)
            become(owner)
        identity = None if shares_uid else owner
        start_in_workspace(workspace_dir, identity, FORK_BOMB)
        ended = processes.end_workspace(workspace_dir, identity, deadline_seconds=50)
        return [len(ended.pids) > 20, len([s for s in processes.of_workspace(workspace_dir, identity) if s.is_alive])]

    assert in_child(launcher) == [True, 0]


def test_chain_of_processes_that_fork_and_end_is_ended(scratch_dir: str, owner: Identity | None) -> None:
    """Each listing of /proc is older than the process that lives now: one such chain outlived the gateway."""
    if os.uname().machine != "x86_64":
        pytest.skip("the program is in machine code of x86_64")

    def launcher(user: Identity | None) -> list[object]:
        processes.become_subreaper()
        workspace_dir = make_workspace(scratch_dir, owner)
        if user is None and owner is not None:
            become(owner)
        alive, end = os.pipe()
        os.set_inheritable(end, True)
        start_in_workspace(workspace_dir, user, CHAIN % f"{workspace_dir}/work")
        os.close(end)
        first = processes.of_workspace(workspace_dir, user)
        processes.end_workspace(workspace_dir, user, deadline_seconds=50)
        # the chain holds the other end, and the launcher that it could outlive is this process
        return [len(first) > 0, select.select([alive], [], [], 5)[0] == [alive] and os.read(alive, 1) == b""]

    for user in {owner, None}:
        assert in_child(partial(launcher, user)) == [True, True], user


def test_job_that_stops_the_process_which_kills_for_its_user_holds_up_nobody(
    workspace_dir: str, owner: Identity | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if owner is None:
        pytest.skip("a user of its own takes root")

    def launcher() -> str:
        monkeypatch.setattr(processes.os, "setgroups", lambda _: os.kill(os.getpid(), signal.SIGSTOP))
        survivor = procfs.read_status(os.getpid())
        kill_all = processes._killer_of(owner)
        try:
            processes.end_all(lambda: [survivor], kill_all=kill_all, deadline_seconds=0.01)  # type: ignore[list-item]
        except SandboxError as error:
            return error.layer
        return ""

    assert in_child(launcher) == PROCESSES


def test_neighbour_under_the_same_user_is_not_touched(scratch_dir: str, owner: Identity | None) -> None:
    one, other = make_workspace(scratch_dir, None), make_workspace(scratch_dir, None)

    def launcher() -> list[object]:
        processes.become_subreaper()
        if owner is not None:
            become(owner)
        first = start_in_workspace(one, None, DAEMON)
        second = start_in_workspace(other, None, DAEMON)
        processes.end_workspace(one, None)
        survivor = procfs.read_status(second)
        result = [
            first in {s.pid for s in processes.of_workspace(one, None)},
            survivor is not None and survivor.is_alive,
        ]
        processes.end_workspace(other, None)
        return result

    assert in_child(launcher) == [False, True]


def test_empty_workspace_ends_at_once(workspace_dir: str, owner: Identity | None) -> None:
    ended = processes.end_workspace(workspace_dir, owner)
    assert (ended.pids, ended.exits) == (frozenset(), {})


def test_survivor_is_an_error_that_names_it() -> None:
    own = procfs.read_status(os.getpid())
    assert own is not None
    with pytest.raises(SandboxError, match=str(os.getpid())):
        processes.end_all(lambda: [own], kill_all=lambda: None, deadline_seconds=0.01)


def test_status_of_an_unreadable_process_has_its_user() -> None:
    pid = fork()
    if pid == 0:
        signal.pause()
    try:
        status = procfs.read_status(pid)
        assert status is not None
        assert (status.parent_pid, status.uid, status.is_alive) == (os.getpid(), os.getuid(), True)
        assert status.anonymous_bytes > 0
    finally:
        os.kill(pid, signal.SIGKILL)
        zombie = None
        while zombie is None or zombie.is_alive:
            zombie = procfs.read_status(pid)
        os.waitpid(pid, 0)
    assert procfs.read_status(pid) is None


def test_cpu_time_of_a_process_and_its_children_is_read() -> None:
    program = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    while time.process_time() < 0.15: pass\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "print(flush=True)\n"
        "input()"
    )
    with subprocess.Popen(
        [sys.executable, "-S", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        seconds = procfs.read_cpu_seconds(process.pid)
        process.communicate(b"\n")
    assert 0.14 <= seconds < 2


def test_default_limits_are_as_documented() -> None:
    limits = Limits()
    assert (limits.memory_bytes, limits.cpu_seconds, limits.processes, limits.descriptors) == (1 << 30, 60, 50, 256)


def test_status_of_a_kernel_that_exited_is_kept(workspace_dir: str, owner: Identity | None) -> None:
    def launcher() -> list[object]:
        processes.become_subreaper()
        start_in_workspace(workspace_dir, owner, "import os; os.write(1, b'x'); os._exit(7)")
        deadline = time.monotonic() + 60
        while any(s.is_alive for s in processes.of_workspace(workspace_dir, owner)) and time.monotonic() < deadline:
            os.sched_yield() if hasattr(os, "sched_yield") else None
        ended = processes.end_workspace(workspace_dir, owner)
        return [len(ended.pids), [os.waitstatus_to_exitcode(status) for status in ended.exits.values()]]

    assert in_child(launcher) == [0, [7]]
