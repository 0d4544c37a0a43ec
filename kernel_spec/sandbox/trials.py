"""One trial for each layer: put it on in a child, see the call work before and fail after.

Each function returns facts to show (``detail``, ``degraded``) or raises; it runs in a process of its own (`attempt`).
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from kernel_spec.sandbox import (
    answer_filter,
    cgroup,
    disk_quota,
    dumpable,
    identity,
    landlock,
    memory_watch,
    network_policy,
    no_new_privs,
    out_of_bounds,
    parent_death,
    processes,
    procfs,
    rlimits,
    seccomp,
    syscalls,
)
from kernel_spec.sandbox import plan as names
from kernel_spec.sandbox.errors import SandboxError
from kernel_spec.sandbox.plan import SandboxPlan

Facts = dict[str, str]
_DEATH_SECONDS = 2.0
_ESTABLISHED = 1  # TCP_ESTABLISHED, first byte of struct tcp_info


def try_identity(plan: SandboxPlan) -> Facts:
    """Become the seat's user; whether Python can be read by it is left to the proof of the whole."""
    if plan.identity is None:
        raise SandboxError(names.IDENTITY, "no user for seats: not started as root")
    identity.become(plan.identity)
    try:
        os.kill(os.getppid(), 0)
    except PermissionError:
        return {}
    raise SandboxError(names.IDENTITY, "the seat's user may signal the launcher")


def try_rlimits(plan: SandboxPlan) -> Facts:
    """Open more descriptors than allowed."""
    rlimits.apply(plan)
    try:
        for _ in range(plan.limits.descriptors + 1):
            os.dup(2)
    except OSError as error:
        if error.errno == errno.EMFILE:
            return _rlimit_facts(plan)
        raise
    raise SandboxError(names.RLIMITS, "the limit of descriptors does not hold")


def _rlimit_facts(plan: SandboxPlan) -> Facts:
    if resource.getrlimit(rlimits.MARK_RESOURCE)[1] != rlimits.seat_mark(plan.seat_dir):
        return {"degraded": "the host's limit of RLIMIT_RTTIME leaves no room for the seat's mark"}
    if plan.identity is None and not plan.has(names.USER_NAMESPACE):
        return {"degraded": "jobs share a user, so processes are counted together with everything of that user"}
    return {}


def try_no_new_privs(_plan: SandboxPlan) -> Facts:
    """Set the flag."""
    no_new_privs.apply()
    return {}


def try_dumpable(_plan: SandboxPlan) -> Facts:
    """Clear the flag and see that /proc gives the process to root."""
    dumpable.apply()
    if os.geteuid() != 0 and Path("/proc/self/mem").stat().st_uid == os.geteuid():
        raise SandboxError(names.DUMPABLE, "the process can still be inspected by its own user")
    return {}


def try_parent_death(_plan: SandboxPlan) -> Facts:
    """Let a launcher die and see its kernel go: the kernel holds a pipe open as long as it lives."""
    reader, writer = os.pipe()
    launcher = os.fork()
    if launcher == 0:
        os.close(reader)
        _launch_and_die(writer)
    os.close(writer)
    os.waitpid(launcher, 0)
    deadline = time.monotonic() + _DEATH_SECONDS
    os.set_blocking(reader, False)
    said = b""
    while time.monotonic() < deadline:
        with suppress(BlockingIOError):
            piece = os.read(reader, 100)
            if not piece:
                if said == b"follows":
                    return {}
                raise SandboxError(names.PARENT_DEATH, said.decode() or "the kernel said nothing")
            said += piece
        time.sleep(0.001)
    raise SandboxError(names.PARENT_DEATH, f"a kernel outlived its launcher by {_DEATH_SECONDS:g} s")


def _launch_and_die(writer: int) -> None:
    ready, tell = os.pipe()
    launcher_pid = os.getpid()
    if os.fork() == 0:
        try:
            parent_death.follow_launcher(launcher_pid, None)
            os.write(writer, b"follows")
            os.close(tell)
            time.sleep(_DEATH_SECONDS * 2)
        except BaseException as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(tell)
    os.read(ready, 1)
    os._exit(0)


def try_landlock(plan: SandboxPlan) -> Facts:
    """Open a file outside, which must work before and fail after; write in the seat, which must go on working."""
    outside = Path("/proc/self/status")
    outside.read_bytes()
    no_new_privs.apply()
    version = landlock.abi()
    landlock.apply(replace(plan, layers=frozenset({names.LANDLOCK})))
    try:
        outside.read_bytes()
    except PermissionError:
        pass
    else:
        raise SandboxError(names.LANDLOCK, "a file outside could still be opened")
    inside = Path(plan.seat_dir, "work", "landlock")
    inside.write_bytes(b"x")
    inside.unlink()
    if version < landlock.ABI_SCOPES:
        missing = "signals and abstract sockets"
        if version < landlock.ABI_NETWORK:
            missing += ", TCP"
        return {"degraded": f"ABI {version} of this kernel does not cover {missing}"}
    return {"detail": f"ABI {version}"}


def try_seccomp(plan: SandboxPlan) -> Facts:
    """Make sockets, a namespace and a memory file, all refused with the errno that libraries expect."""
    no_new_privs.apply()
    # The broker has a trial of its own.
    seccomp.apply(replace(plan, allow_loopback=True))
    families = {socket.AF_VSOCK: errno.EAFNOSUPPORT, socket.AF_NETLINK: errno.EOPNOTSUPP}
    if not plan.allow_network:
        families[socket.AF_INET] = errno.EAFNOSUPPORT
    else:
        del families[socket.AF_NETLINK]
    for family, expected in families.items():
        _expect(expected, lambda family=family: socket.socket(family).close())  # type: ignore[misc]
    _expect(errno.EPERM, lambda: syscalls.unshare(syscalls.CLONE_NEWUTS))
    _expect(errno.ENOSYS, lambda: os.close(os.memfd_create("probe")))
    return {}


def try_network_policy(plan: SandboxPlan) -> Facts:
    """Reach a listener on loopback before, and not after; make a socket by way of the broker."""
    broker_pid, broker = network_policy.start_broker(lambda: None)
    try:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = int(listener.getsockname()[1])
            reach_loopback(port)
            no_new_privs.apply()
            questions = seccomp.apply(plan)
            if questions is None:
                raise SandboxError(names.NETWORK_POLICY, "the filter of system calls asks nobody")
            network_policy.hand_over(questions, broker)
            try:
                reach_loopback(port)
            except TimeoutError:
                return _network_facts()
            raise SandboxError(names.NETWORK_POLICY, "loopback could still be reached")
    finally:
        with suppress(ProcessLookupError):
            os.kill(broker_pid, signal.SIGKILL)
        os.waitpid(broker_pid, 0)


def _network_facts() -> Facts:
    """Say which of the fences stands, by a socket that the broker made, and whether names can be asked for."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as made:
        if made.getsockopt(socket.SOL_SOCKET, answer_filter.SO_LOCK_FILTER):
            return {"detail": "by a filter on each socket"}
    closed = [str(server) for server in out_of_bounds.nameservers() if out_of_bounds.is_closed(server)]
    if closed:
        why = f"names are not found: the name server {closed[0]} is on this machine and this kernel allows no exception"
        return {"degraded": why}
    return {"detail": "by signatures that no peer can give"}


def reach_loopback(port: int) -> None:
    """Connect to a listener on 127.0.0.1.

    Raises
    ------
    TimeoutError
        No answer. There nothing has to be waited for: the kernel hands both packets over within the call.
    OSError
        There was no socket to be had.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as caller:
        caller.setblocking(False)
        caller.connect_ex(("127.0.0.1", port))
        if caller.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _ESTABLISHED:
            raise TimeoutError(errno.ETIMEDOUT, "loopback does not answer")


def _expect(number: int, action: Callable[[], None]) -> None:
    try:
        action()
    except OSError as error:
        if error.errno == number:
            return
        raise
    raise SandboxError(names.SECCOMP, f"a call went through that should fail with {errno.errorcode[number]}")


def try_cgroup(plan: SandboxPlan, stamp: str) -> Facts:
    """Make a tree and a group, move a process in, remove all of it."""
    tree = cgroup.open_tree(stamp)
    if tree is None:
        raise SandboxError(names.CGROUP, "no cgroup hierarchy with a memory controller can be written to")
    try:
        group = tree.create("probe", plan.limits)
        child = os.fork()
        if child == 0:
            signal.pause()
            os._exit(0)
        try:
            group.attach(child)
            if child not in group.pids():
                raise SandboxError(names.CGROUP, "a process did not stay in its group")
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            group.remove()
    finally:
        tree.close()
    versions = "+".join(sorted({f"v{h.version}" for h in tree.hierarchies if h.controllers}))
    if not any("pids" in hierarchy.controllers for hierarchy in tree.hierarchies):
        return {"degraded": f"{versions}: memory only, the number of processes is left to RLIMIT_NPROC"}
    return {"detail": versions}


def try_processes(plan: SandboxPlan) -> Facts:
    """Let a child of the seat leave its session and its parent, and find and kill what is left."""
    processes.become_subreaper()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _become_orphan(plan, writer)
    os.close(writer)
    os.read(reader, 1)
    os.waitpid(child, 0)
    ended = processes.end_seat(plan.seat_dir, plan.identity)
    if not ended.pids:
        raise SandboxError(names.PROCESSES, "a process that left its session was not found")
    return {}


def _become_orphan(plan: SandboxPlan, writer: int) -> None:
    try:
        rlimits.apply(plan)
        if plan.identity is not None:
            identity.become(plan.identity)
        dumpable.apply()
        os.setsid()
        if os.fork() == 0:
            os.write(writer, b"x")
            time.sleep(_DEATH_SECONDS)
    finally:
        os._exit(0)


def try_memory_watch(plan: SandboxPlan) -> Facts:
    """Measure a process of the seat by its shares."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if plan.identity is not None:
                identity.become(plan.identity)
            dumpable.apply()
            os.write(writer, b"x")
            time.sleep(_DEATH_SECONDS)
        finally:
            os._exit(0)
    try:
        os.read(reader, 1)
        status = procfs.read_status(child)
        found = () if status is None else (status,)
        usage = memory_watch.measure(found, limit_bytes=0)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if usage.memory_bytes == 0:
        raise SandboxError(names.MEMORY_WATCH, "the memory of a process cannot be read")
    if not usage.exact:
        return {"degraded": "memory shared by processes is estimated: their page tables may not be read"}
    return {}


def try_disk_quota(plan: SandboxPlan) -> Facts:
    """Measure the seat, which holds nothing yet."""
    disk_quota.measure(plan.seat_dir)
    return {}


def try_namespace(plan: SandboxPlan, layer: str) -> Facts:
    """Enter one kind of namespace, in a user namespace if the plan has one."""
    from kernel_spec.sandbox import namespaces

    with_user = frozenset({names.USER_NAMESPACE}) & plan.layers
    wanted = frozenset({layer}) | with_user
    namespaces.enter_namespaces(replace(plan, layers=wanted - {names.MOUNT_NAMESPACE, names.PID_NAMESPACE}))
    if layer in (names.MOUNT_NAMESPACE, names.PID_NAMESPACE):
        # Their content is tried with the whole; here the kernel's word is enough.
        flags = {
            names.MOUNT_NAMESPACE: syscalls.CLONE_NEWNS,
            names.PID_NAMESPACE: syscalls.CLONE_NEWPID,
        }
        syscalls.unshare(flags[layer])
    return {}
