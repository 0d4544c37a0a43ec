"""Namespaces of one kernel: entered by the kernel itself, or by the middle process of a double fork before it.

A pid namespace begins with the next child, so it has to be there before the kernel. Where a fork server is root, the
launcher makes one with its init and the fork server puts its next child there (`kernel_spec.sandbox.inits`), which
enters all others by itself (`enter_directly`). Without root the right to make any comes from a user namespace, which
the fork server must not enter for one kernel; there a middle process enters all of them (`enter_namespaces`).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from kernel_spec.sandbox import identity, inits, network_policy, parent_death, private_root, syscalls
from kernel_spec.sandbox.errors import SandboxError
from kernel_spec.sandbox.parent_death import Lineage
from kernel_spec.sandbox.plan import (
    IPC_NAMESPACE,
    MOUNT_NAMESPACE,
    NETWORK_NAMESPACE,
    PID_NAMESPACE,
    USER_NAMESPACE,
    UTS_NAMESPACE,
    SandboxPlan,
)

HOST_NAME: Final = "transform"

_FLAGS: Final = {
    MOUNT_NAMESPACE: syscalls.CLONE_NEWNS,
    PID_NAMESPACE: syscalls.CLONE_NEWPID,
    NETWORK_NAMESPACE: syscalls.CLONE_NEWNET,
    IPC_NAMESPACE: syscalls.CLONE_NEWIPC,
    UTS_NAMESPACE: syscalls.CLONE_NEWUTS,
}


@dataclass(frozen=True, slots=True)
class Entered:
    """What the process learned that entered, and what the kernel needs.

    Attributes
    ----------
    lineage
        Pidfds that tell the kernel when it belongs to the launcher.
    init_pid
        Init that a middle process has started, as the launcher sees it, or None. It is a child of the launcher as soon
        as the middle has ended; killing it kills all of the kernel's processes. It is gone only when the kernel has
        been reaped as well, so never wait for it before waiting for the kernel.
    proc_fd
        Descriptor of the host's /proc, which a private root may not have.
    broker
        Where the filter's questions go, for a plan that brokers sockets; see `network_policy`.
    base
        Where the private root stands that `settle` turns into the root, or None.
    """

    lineage: Lineage
    init_pid: int | None
    proc_fd: int
    broker: socket.socket | None = None
    base: str | None = None


class _Current:
    """What `enter_namespaces` or `enter_directly` left in this process, for `confine`."""

    entered: Entered | None = None


def current() -> Entered | None:
    """Return what was entered by this process or by the one that forked it."""
    return _Current.entered


def forget() -> None:
    """Drop the record and close its descriptors."""
    entered, _Current.entered = _Current.entered, None
    if entered is not None:
        entered.lineage.close()
        os.close(entered.proc_fd)
        if entered.broker is not None:
            entered.broker.close()


def enter_namespaces(plan: SandboxPlan, lifeline: int | None = None) -> Entered:
    """Enter the namespaces of the plan, in the middle process, before it forks the kernel and ends.

    The caller has one thread, forks the kernel right after and then ends with ``os._exit``: the kernel waits for that.
    Call it without namespaces too, for the handover to the launcher.

    Parameters
    ----------
    plan
        What to enter.
    lifeline
        Read end of a pipe whose other end is the launcher's alone; needed for a pid namespace. The caller closes it.

    Raises
    ------
    SandboxError
        A namespace of the plan could not be had; nothing may be started from this process then.
    """
    lineage = parent_death.leave_lineage(plan.parent_pid)
    proc_fd = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    init_pid = None
    try:
        # Before any namespace: out of the job's sight where there is one for processes.
        broker = network_policy.start_broker_of(plan, lineage) if plan.brokers_sockets else None
        if plan.has(USER_NAMESPACE):
            _enter_user_namespace(plan)
        _unshare(plan, _FLAGS)
        base = _furnish(plan)
        if plan.has(PID_NAMESPACE):
            init_pid = inits.start_while_ignoring(plan.identity, lifeline)
    except OSError as error:
        raise SandboxError(_first_namespace(plan), str(error)) from error
    # After an error the caller ends; until then the two handles do no harm.
    _Current.entered = Entered(lineage, init_pid, proc_fd, broker, base)
    return _Current.entered


def enter_directly(plan: SandboxPlan, launcher_pidfd: int) -> None:
    """Enter all namespaces but that of processes, in the kernel, which was born in that one as the launcher's child.

    Parameters
    ----------
    plan
        What to enter; without a user namespace and without a broker of sockets.
    launcher_pidfd
        Of our parent; ours from now on, see `forget`.

    Raises
    ------
    SandboxError
        A namespace of the plan could not be had; the caller must end.
    """
    lineage = Lineage(None, launcher_pidfd)
    proc_fd = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _unshare(plan, _FLAGS.keys() - {PID_NAMESPACE})
        base = _furnish(plan)
    except OSError as error:
        raise SandboxError(_first_namespace(plan), str(error)) from error
    _Current.entered = Entered(lineage, None, proc_fd, None, base)


def settle(plan: SandboxPlan) -> None:
    """Move into the private root, once, in the kernel: unlike the middle it is in the pid namespace that /proc shows.

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
        if name not in names or not plan.has(name) or (name == NETWORK_NAMESPACE and plan.allow_network):
            continue
        try:
            syscalls.unshare(flag)
        except OSError as error:
            raise SandboxError(name, str(error)) from error


def _furnish(plan: SandboxPlan) -> str | None:
    """Give the namespaces that this process has entered their content; return where the private root stands."""
    if plan.has(UTS_NAMESPACE):
        syscalls.sethostname(HOST_NAME)
    return private_root.build(plan) if plan.has(MOUNT_NAMESPACE) else None


def _enter_user_namespace(plan: SandboxPlan) -> None:
    """Get the rights over new namespaces without having any outside: every id but one's own is unmapped."""
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
