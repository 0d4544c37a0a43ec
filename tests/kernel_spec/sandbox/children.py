# ruff: noqa: PTH101
"""Run a piece of a test in a forked child, so that what it does to its process ends with it."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import select
import shutil
import signal
import struct
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernel_spec.linux import syscalls
from kernel_spec.protocol.limits import Limits
from kernel_spec.sandbox import (
    Identity,
    SandboxPlan,
    bound_memory,
    confine,
    default_read_only_paths,
    enter_namespaces,
    seal,
)
from kernel_spec.sandbox.accounting import cgroup_mounts, processes
from kernel_spec.sandbox.layers import seccomp
from kernel_spec.sandbox.layers.seccomp_rules import refuse

WORKSPACE_USER = Identity(60177, 60177)
PLAIN_USER = Identity(60178, 60178)
DOCKER_CAPABILITIES = (0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31)
LEAST_CAPABILITIES = (0, 1, 5, 6, 7)  # CHOWN, DAC_OVERRIDE, KILL, SETGID, SETUID
_DEADLINE_SECONDS = 60.0
_MOUNT = syscalls.mount

#: A program for a pid namespace: prints the processes that are left when its orphans have been reaped, or after 30 s.
MAKE_ORPHANS = """
import os, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.12 on, of a fork beside other threads
for _ in range(20):
    if os.fork() == 0:
        if os.fork() == 0:
            os._exit(0)          # an orphan: its parent is gone
        os._exit(0)
    os.wait()
deadline = time.monotonic() + 30
while len([n for n in os.listdir("/proc") if n.isdigit()]) > 2 and time.monotonic() < deadline:
    time.sleep(0.005)
print(sorted(int(n) for n in os.listdir("/proc") if n.isdigit()), flush=True)
"""

FLAGS = frozenset({"no_new_privs", "dumpable", "parent_death"})
TIER_C = FLAGS | {"rlimits", "landlock", "seccomp"}
TIER_B = TIER_C | {"identity"}
NAMESPACES = frozenset({"mount_namespace", "pid_namespace", "network_namespace", "ipc_namespace", "uts_namespace"})
TIER_A = TIER_B | NAMESPACES
TIER_C_USER_NAMESPACE = TIER_C | NAMESPACES | {"user_namespace"}


def fork() -> int:
    """Fork; newer Pythons warn of threads, of which these tests have none that matter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def in_child(function: Callable[[], Any], *, deadline_seconds: float = _DEADLINE_SECONDS) -> Any:
    """Return what `function` returns in a forked child, as JSON; a child that raises fails the test."""
    reader, writer = os.pipe()
    pid = fork()
    if pid == 0:
        try:
            os.close(reader)
            said = json.dumps({"value": function()})
        except BaseException:
            said = json.dumps({"traceback": traceback.format_exc()})
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    try:
        said = _read_all(reader, deadline_seconds)
    finally:
        os.close(reader)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    answer = json.loads(said or '{"traceback": "the child ended without a word"}')
    assert "traceback" not in answer, answer["traceback"]
    return answer["value"]


def _read_all(reader: int, deadline_seconds: float) -> str:
    poller = select.poll()
    poller.register(reader, select.POLLIN)
    pieces = []
    while True:
        assert poller.poll(deadline_seconds * 1000), "the child did not answer in time"
        piece = os.read(reader, 1 << 16)
        if not piece:
            return b"".join(pieces).decode(errors="replace")
        pieces.append(piece)


def outcome(action: Callable[[], object]) -> str:
    """Return "worked" or the name of the errno with which `action` failed."""
    try:
        action()
    except OSError as error:
        # One number with two names, of which Python lists the other.
        name = errno.errorcode.get(error.errno or 0, str(error))
        return "EOPNOTSUPP" if name == "ENOTSUP" else name
    except MemoryError:
        return "MemoryError"
    return "worked"


def mount_not_on_a_process(source: str, target: str, filesystem: str, flags: int, data: str = "") -> None:
    """Mount as where a security module refuses it on the directory of a process."""
    if target.endswith("/proc/1"):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    _MOUNT(source, target, filesystem, flags, data)


def call_by_number(number: int, *arguments: int) -> int:
    """Make any system call."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    result: int = libc.syscall(*(ctypes.c_long(a) for a in (number, *arguments)))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def become(user: Identity) -> None:
    """Be a plain user, without what the sandbox does beside."""
    os.setgroups([])
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)


def be_in_default_container() -> None:
    """Have what root has in an ordinary container: 14 capabilities, and no namespaces and mounts by the filter."""
    keep_capabilities(DOCKER_CAPABILITIES)
    deny_namespaces()
    cgroup_mounts.find_hierarchies = lambda *_: ()  # a container sees them read-only


def keep_capabilities(kept: tuple[int, ...]) -> None:
    """Give up all capabilities but these."""
    for capability in set(range(64)) - set(kept):
        try:
            syscalls.prctl(syscalls.PR_CAPBSET_DROP, capability)
        except OSError:
            break
    mask = sum(1 << capability for capability in kept)
    header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0), 8)
    sets = ctypes.create_string_buffer(struct.pack("=6I", mask, mask, 0, 0, 0, 0), 24)
    syscalls.call("capset", header, sets)


def deny_namespaces() -> None:
    """Refuse what the filter of an ordinary container refuses."""
    rules = [
        refuse(("unshare", "setns", "mount", "pivot_root", "open_tree", "move_mount"), errno.EPERM),
        refuse(("clone3",), errno.ENOSYS),
    ]
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    syscalls.seccomp_filter(seccomp.assemble(rules))


@contextmanager
def scratch(parent: str = "/tmp") -> Iterator[str]:
    """A directory that every user can pass through; pytest's own is closed to others."""
    directory = tempfile.mkdtemp(prefix="tgs-", dir=parent)
    os.chmod(directory, 0o711)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def make_workspace(parent: str, owner: Identity | None, name: str | None = None) -> str:
    """Make a workspace directory as the launcher does; its name is its processes' mark, so no two tests share one."""
    workspace = Path(parent, name or os.urandom(4).hex())
    workspace.mkdir()
    for part, mode in (("ipc", 0o2770), ("inputs", 0o2750), ("work", 0o700), ("out", 0o2770)):
        directory = workspace / part
        directory.mkdir()
        if owner is not None:
            os.chown(directory, owner.uid, owner.gid)
        directory.chmod(mode)
    if owner is not None:
        os.chown(workspace, 0 if os.geteuid() == 0 else -1, owner.gid)
    workspace.chmod(0o750)
    return str(workspace)


def make_plan(
    workspace_dir: str, layers: frozenset[str] = frozenset(), identity: Identity | None = None, **changes: Any
) -> SandboxPlan:
    """Make a plan whose launcher is this process."""
    values: dict[str, Any] = {
        "identity": identity,
        "limits": Limits(),
        "workspace_dir": workspace_dir,
        "read_only_paths": default_read_only_paths(),
        "layers": layers,
        "allow_network": False,
        "parent_pid": os.getpid(),
    }
    return SandboxPlan(**{**values, **changes})


@dataclass(frozen=True, slots=True)
class Run:
    """The output and the wait status of a program that ran in a sandbox."""

    output: str
    status: int


def run_confined(make: Callable[[], SandboxPlan], code: str, environment: Mapping[str, str] | None = None) -> Run:
    """Run a Python program in the whole sandbox, by way of a launcher, an intermediate process and a kernel."""

    def launch() -> dict[str, Any]:
        processes.become_subreaper()
        plan = make()
        reader, writer = os.pipe()
        liveness_pipe, _end = os.pipe()
        intermediate = fork()
        if intermediate == 0:
            os.close(reader)
            _be_intermediate(plan, liveness_pipe, code, writer, environment or {})
        os.close(writer)
        os.waitpid(intermediate, 0)
        output = _read_all(reader, _DEADLINE_SECONDS)
        ended = processes.end_workspace(plan.workspace_dir, plan.identity)
        assert output.startswith("kernel "), output
        kernel_status = ended.exits.get(int(output.split("\n", 1)[0].removeprefix("kernel ")), 0)
        return {"output": output.split("\n", 1)[1], "status": kernel_status}

    return Run(**in_child(launch))


def _be_intermediate(
    plan: SandboxPlan, liveness_pipe: int, code: str, writer: int, environment: Mapping[str, str]
) -> None:
    try:
        enter_namespaces(plan, liveness_pipe)
        kernel = fork()
        if kernel:
            os.write(writer, f"kernel {kernel}\n".encode())
            os._exit(0)
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        confine(plan)
        bound_memory(plan.limits)
        seal(plan)
        _exec(plan, code, environment)
    except BaseException:
        os.write(writer, traceback.format_exc().encode())
    finally:
        os._exit(70)


def _exec(plan: SandboxPlan, code: str, environment: Mapping[str, str]) -> None:
    script = Path(plan.workspace_dir, "work", "program.py")
    script.write_text(code)
    work_dir = str(script.parent)
    own = {"HOME": work_dir, "TMPDIR": work_dir, "MPLCONFIGDIR": work_dir, "PATH": os.defpath, "LANG": "C.UTF-8"}
    threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "1")
    arrow = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "2"}
    os.execve(sys.executable, [sys.executable, str(script)], {**own, **threads, **arrow, **environment})
