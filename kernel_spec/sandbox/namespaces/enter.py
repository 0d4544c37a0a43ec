"""Namespaces of one kernel: entered by the kernel itself, or by the intermediate process of a double fork before it.

A pid namespace begins with the next child, so it must exist before the kernel. Where a fork server is root, the
launcher makes the namespace with its init and the fork server forks its next child into it (`pid_namespace_init`);
this child, the kernel, enters all others (`enter_directly`). Without root the right to make namespaces comes from a
user namespace, which the fork server must not enter for one kernel; there an intermediate process enters all of them
(`enter_namespaces`).
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from kernel_spec.linux import syscalls
from kernel_spec.sandbox.egress import socket_broker
from kernel_spec.sandbox.layers import identity, parent_death
from kernel_spec.sandbox.layers.parent_death import Lineage
from kernel_spec.sandbox.namespaces import pid_namespace_init, private_root
from kernel_spec.sandbox.policy.errors import SandboxError
from kernel_spec.sandbox.policy.plan import (
    IPC_NAMESPACE,
    MOUNT_NAMESPACE,
    NETWORK_NAMESPACE,
    PID_NAMESPACE,
    USER_NAMESPACE,
    UTS_NAMESPACE,
    SandboxPlan,
)

HOST_NAME: Final = "transform"

#: struct ifreq with its name and its flags; linux/sockios.h, linux/if.h
_INTERFACE_REQUEST: Final = struct.Struct("16sh22x")
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1

_FLAGS: Final = {
    MOUNT_NAMESPACE: syscalls.CLONE_NEWNS,
    PID_NAMESPACE: syscalls.CLONE_NEWPID,
    NETWORK_NAMESPACE: syscalls.CLONE_NEWNET,
    IPC_NAMESPACE: syscalls.CLONE_NEWIPC,
    UTS_NAMESPACE: syscalls.CLONE_NEWUTS,
}


@dataclass(frozen=True, slots=True)
class Entered:
    """Results of entering the namespaces that the kernel needs.

    Attributes
    ----------
    lineage : Lineage
        Pidfds by which the kernel sees that the launcher is its parent.
    init_pid : int or None
        Init that an intermediate process has started, as the launcher sees it, or None. It is a child of the launcher
        as soon as the intermediate process has ended; killing it kills all of the kernel's processes. It is gone only
        when the kernel has been reaped as well, so never wait for it before waiting for the kernel.
    proc_fd : int
        Descriptor of the host's /proc, which a private root may not have.
    broker : socket.socket or None
        Socket to the broker, which answers the filter's requests, for a plan that brokers sockets.
    base : str or None
        Path of the private root that `enter_private_root` turns into the root, or None.
    """

    lineage: Lineage
    init_pid: int | None
    proc_fd: int
    broker: socket.socket | None = None
    base: str | None = None


class _Current:
    """The record that `enter_namespaces` or `enter_directly` leaves in this process for `confine`."""

    entered: Entered | None = None


def current() -> Entered | None:
    """Return the record of this process or of the one that forked it."""
    return _Current.entered


def forget() -> None:
    """Drop the record and close its descriptors."""
    entered, _Current.entered = _Current.entered, None
    if entered is not None:
        entered.lineage.close()
        os.close(entered.proc_fd)
        if entered.broker is not None:
            entered.broker.close()


def enter_namespaces(plan: SandboxPlan, liveness_pipe: int | None = None) -> Entered:
    """Enter the namespaces of the plan, in the intermediate process, before it forks the kernel and ends.

    The caller has one thread, forks the kernel right after and then ends with ``os._exit``: the kernel waits for that.
    Call it without namespaces too, for the handover to the launcher.

    Parameters
    ----------
    plan : SandboxPlan
        The layers to enter.
    liveness_pipe : int or None
        Read end of a pipe whose other end is the launcher's alone; needed for a pid namespace. The caller closes it.

    Raises
    ------
    SandboxError
        A namespace of the plan could not be entered; nothing may be started from this process.
    """
    lineage = parent_death.leave_lineage(plan.parent_pid)
    proc_fd = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    init_pid = None
    try:
        # Before any namespace, so that a job in a pid namespace cannot see it.
        broker = socket_broker.start_broker_of(plan, lineage) if plan.brokers_sockets else None
        if plan.has(USER_NAMESPACE):
            _enter_user_namespace(plan)
        _unshare(plan, _FLAGS)
        base = _set_up(plan)
        if plan.has(PID_NAMESPACE):
            init_pid = pid_namespace_init.start_while_ignoring(plan.identity, liveness_pipe)
    except OSError as error:
        raise SandboxError(_first_namespace(plan), str(error)) from error
    # After an error the caller ends, which closes the two descriptors.
    _Current.entered = Entered(lineage, init_pid, proc_fd, broker, base)
    return _Current.entered


def enter_directly(plan: SandboxPlan, launcher_pidfd: int) -> None:
    """Enter all namespaces but that of processes, in the kernel, which was forked in that one as the launcher's child.

    Parameters
    ----------
    plan : SandboxPlan
        The layers to enter; without a user namespace and without a broker of sockets.
    launcher_pidfd : int
        Pidfd of the parent; `forget` closes it.

    Raises
    ------
    SandboxError
        A namespace of the plan could not be entered; the caller must end.
    """
    lineage = Lineage(None, launcher_pidfd)
    proc_fd = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _unshare(plan, _FLAGS.keys() - {PID_NAMESPACE})
        base = _set_up(plan)
    except OSError as error:
        raise SandboxError(_first_namespace(plan), str(error)) from error
    _Current.entered = Entered(lineage, None, proc_fd, None, base)


def enter_private_root(plan: SandboxPlan) -> None:
    """Move into the private root, once, in the kernel: unlike the intermediate process it is in the pid namespace that
    /proc shows.

    Nothing happens without a private root.

    Raises
    ------
    SandboxError
        A mount was refused.
    """
    entered = _Current.entered
    if entered is None or entered.base is None:
        return
    if plan.has(PID_NAMESPACE):
        private_root.mount_proc(entered.base)
    private_root.turn_into_root(entered.base)
    _Current.entered = replace(entered, base=None)


def _first_namespace(plan: SandboxPlan) -> str:
    return next((name for name in _FLAGS if plan.has(name)), USER_NAMESPACE)


def _unshare(plan: SandboxPlan, names: Collection[str]) -> None:
    for name, flag in _FLAGS.items():
        if name not in names or not plan.has(name) or (name == NETWORK_NAMESPACE and plan.is_on_network):
            continue
        try:
            syscalls.unshare(flag)
        except OSError as error:
            raise SandboxError(name, str(error)) from error


def _set_up(plan: SandboxPlan) -> str | None:
    """Set up the namespaces that this process has entered; return the path of the private root."""
    if plan.has(UTS_NAMESPACE):
        syscalls.sethostname(HOST_NAME)
    if plan.own_loopback:
        _bring_up_loopback()
    return private_root.build(plan) if plan.has(MOUNT_NAMESPACE) else None


def _bring_up_loopback() -> None:
    """Bring up the loopback interface, which a new network namespace has already (netdevice(7))."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, _INTERFACE_REQUEST.pack(b"lo", _IFF_UP))


def _enter_user_namespace(plan: SandboxPlan) -> None:
    """Get rights over new namespaces and none outside of them: every id but one's own is unmapped."""
    if plan.identity is not None:
        identity.become(plan.identity)
    uid, gid = os.getuid(), os.getgid()
    try:
        # A process that is not dumpable does not own its /proc files and could not write the maps.
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)
        syscalls.unshare(syscalls.CLONE_NEWUSER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    except OSError as error:
        raise SandboxError(USER_NAMESPACE, str(error)) from error
