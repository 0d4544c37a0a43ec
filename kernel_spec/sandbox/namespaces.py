"""Namespaces of one kernel: entered by the middle process of the double fork, finished by the kernel itself.

The pid namespace has an init of its own. A kernel that is pid 1 would be immune to its own signals
(``os.kill(os.getpid(), 9)``, abort) and would collect the zombies of every orphan until its process limit is full. As
the second process it is an ordinary one, and as both are children of the middle, both become children of the launcher,
which sees their true exits. The end of the init ends everything in the namespace at once.

The init is cat(1), reading the launcher's lifeline: a pipe that nothing is ever written to and that ends with the
launcher, however that ends. A process that ignores SIGCHLD, as exec lets it go on doing, has its orphans reaped by the
kernel (wait(2)). A fork of our own did the same with a copy of our page tables and of 800 pages: 3 ms to start and 2 to
end, where this takes 0.4 and 0.2 (measured).
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from kernel_spec.sandbox import descriptors, identity, network_policy, parent_death, private_root, syscalls
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
_INIT: Final = "cat"

_FLAGS: Final = {
    MOUNT_NAMESPACE: syscalls.CLONE_NEWNS,
    PID_NAMESPACE: syscalls.CLONE_NEWPID,
    NETWORK_NAMESPACE: syscalls.CLONE_NEWNET,
    IPC_NAMESPACE: syscalls.CLONE_NEWIPC,
    UTS_NAMESPACE: syscalls.CLONE_NEWUTS,
}


@dataclass(frozen=True, slots=True)
class Entered:
    """What the middle process learned, and what its children need.

    Attributes
    ----------
    lineage
        Pidfds that tell a child when it belongs to the launcher.
    init_pid
        Init of the pid namespace as the launcher sees it, or None without one. It is a child of the launcher as soon
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
    """What `enter_namespaces` left in this process, for `confine` in its child."""

    entered: Entered | None = None


def current() -> Entered | None:
    """Return what `enter_namespaces` returned in this process or in the one that forked it."""
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
        _unshare(plan)
        if plan.has(UTS_NAMESPACE):
            syscalls.sethostname(HOST_NAME)
        base = private_root.build(plan) if plan.has(MOUNT_NAMESPACE) else None
        if plan.has(PID_NAMESPACE):
            init_pid = _start_init(plan, lifeline)
    except OSError as error:
        raise SandboxError(_first_namespace(plan), str(error)) from error
    # After an error the caller ends; until then the two handles do no harm.
    _Current.entered = Entered(lineage, init_pid, proc_fd, broker, base)
    return _Current.entered


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


def _unshare(plan: SandboxPlan) -> None:
    for name, flag in _FLAGS.items():
        if not plan.has(name) or (name == NETWORK_NAMESPACE and plan.allow_network):
            continue
        try:
            syscalls.unshare(flag)
        except OSError as error:
            raise SandboxError(name, str(error)) from error


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


def _to_close() -> list[int]:
    """Return what the init would inherit beside its standard descriptors: exec closes only what is not inheritable."""
    return [number for number in descriptors.open_descriptors() if number > 2 and os.get_inheritable(number)]


def _start_init(plan: SandboxPlan, lifeline: int | None) -> int:
    """Start the init, as the seat's user with no right and no other descriptor; return its pid as seen from here."""
    program = shutil.which(_INIT, path=os.defpath)
    if program is None or lifeline is None:
        missing = f"no {_INIT}(1) in {os.defpath}" if program is None else "no lifeline"
        raise SandboxError(PID_NAMESPACE, f"there is nothing to be its init: {missing}")
    actions = [
        (os.POSIX_SPAWN_DUP2, lifeline, 0),
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
        (os.POSIX_SPAWN_DUP2, 1, 2),
        *((os.POSIX_SPAWN_CLOSE, number) for number in _to_close()),
    ]
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with identity.borrowed(plan.identity):
            return os.posix_spawn(program, [_INIT], {}, file_actions=actions, setsid=True)
    finally:
        signal.signal(signal.SIGCHLD, before)
