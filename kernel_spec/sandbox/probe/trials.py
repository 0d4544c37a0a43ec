"""One trial for each layer: a call that works before the layer is applied must fail after.

Each function returns facts for the report (``detail``, ``degraded``) or raises; it runs in a process of its own
(`attempt`).
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from kernel_spec.linux import syscalls
from kernel_spec.sandbox.accounting import cgroup_tree
from kernel_spec.sandbox.egress import bpf_filter, denied_addresses, socket_broker
from kernel_spec.sandbox.layers import dumpable, identity, landlock, no_new_privs, rlimits, seccomp
from kernel_spec.sandbox.policy import plan as names
from kernel_spec.sandbox.policy.errors import SandboxError
from kernel_spec.sandbox.policy.plan import SandboxPlan

Facts = dict[str, str]
_ESTABLISHED = 1  # TCP_ESTABLISHED, first byte of struct tcp_info


def try_identity(plan: SandboxPlan) -> Facts:
    """Become the workspace's user; a proof of the whole sandbox shows whether this user can read Python."""
    if plan.identity is None:
        raise SandboxError(names.IDENTITY, "no user for workspaces: not started as root")
    identity.become(plan.identity)
    try:
        os.kill(os.getppid(), 0)
    except PermissionError:
        return {}
    raise SandboxError(names.IDENTITY, "the workspace's user may signal the launcher")


def try_rlimits(plan: SandboxPlan) -> Facts:
    """Open more descriptors than the limit allows."""
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
    if resource.getrlimit(rlimits.MARK_RESOURCE)[1] != rlimits.workspace_mark(plan.workspace_dir):
        return {"degraded": "the host's limit of RLIMIT_RTTIME leaves no room for the workspace's mark"}
    if plan.identity is None and not plan.has(names.USER_NAMESPACE):
        return {"degraded": "jobs share a user, so processes are counted together with everything of that user"}
    return {}


def try_no_new_privs(_plan: SandboxPlan) -> Facts:
    """Set the flag."""
    no_new_privs.apply()
    return {}


def try_dumpable(_plan: SandboxPlan) -> Facts:
    """Clear the flag and check that the files in /proc belong to root."""
    dumpable.apply()
    if os.geteuid() != 0 and Path("/proc/self/mem").stat().st_uid == os.geteuid():
        raise SandboxError(names.DUMPABLE, "the process can still be inspected by its own user")
    return {}


def try_landlock(plan: SandboxPlan) -> Facts:
    """Open a file outside, which must work before and fail after; write in the workspace, which must still work."""
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
    inside = Path(plan.workspace_dir, "work", "landlock")
    inside.write_bytes(b"x")
    inside.unlink()
    if version < landlock.ABI_SCOPES:
        missing = "signals and abstract sockets"
        if version < landlock.ABI_NETWORK:
            missing += ", TCP"
        return {"degraded": f"ABI {version} of this version of Linux does not cover {missing}"}
    return {"detail": f"ABI {version}"}


def try_seccomp(plan: SandboxPlan) -> Facts:
    """Make sockets, a namespace and a memory file; all must fail with the errno that libraries expect."""
    no_new_privs.apply()
    # Without the broker, which has a trial of its own.
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
    """Connect to a listener on loopback, which must work before and fail after; the broker makes the socket."""
    broker_pid, broker = socket_broker.start_broker(lambda: None)
    try:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = int(listener.getsockname()[1])
            reach_loopback(port)
            no_new_privs.apply()
            questions = seccomp.apply(plan)
            if questions is None:
                raise SandboxError(names.NETWORK_POLICY, "the filter of system calls has no broker")
            socket_broker.hand_over(questions, broker)
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
    """Return which egress filter a socket of the broker has, and whether names can be resolved."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as made:
        if made.getsockopt(socket.SOL_SOCKET, bpf_filter.SO_LOCK_FILTER):
            return {"detail": "by a filter on each socket"}
    closed = [str(server) for server in denied_addresses.nameservers() if denied_addresses.is_denied(server)]
    if closed:
        why = f"names are not resolved: the name server {closed[0]} is on this machine and cannot be excepted here"
        return {"degraded": why}
    return {"detail": "by signatures that no peer can give"}


def reach_loopback(port: int) -> None:
    """Connect to a listener on 127.0.0.1.

    Raises
    ------
    TimeoutError
        No answer. No wait is needed: on loopback Linux delivers both packets within the call.
    OSError
        No socket could be made.
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
    """Make a tree and a group, move a process into it, remove all."""
    tree = cgroup_tree.open_tree(stamp)
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


def try_namespace(plan: SandboxPlan, layer: str) -> Facts:
    """Enter one kind of namespace, in a user namespace if the plan has one."""
    from kernel_spec.sandbox.namespaces import enter

    with_user = frozenset({names.USER_NAMESPACE}) & plan.layers
    wanted = frozenset({layer}) | with_user
    enter.enter_namespaces(replace(plan, layers=wanted - {names.MOUNT_NAMESPACE, names.PID_NAMESPACE}))
    if layer in (names.MOUNT_NAMESPACE, names.PID_NAMESPACE):
        # Their content is tried with the whole sandbox; here it is enough that Linux makes them.
        flags = {
            names.MOUNT_NAMESPACE: syscalls.CLONE_NEWNS,
            names.PID_NAMESPACE: syscalls.CLONE_NEWPID,
        }
        syscalls.unshare(flags[layer])
    return {}
