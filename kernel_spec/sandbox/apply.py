"""Apply the layers to the kernel process, in the only order that works."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress

from kernel_spec.sandbox.egress import socket_broker
from kernel_spec.sandbox.layers import dumpable, identity, landlock, no_new_privs, parent_death, rlimits, seccomp
from kernel_spec.sandbox.namespaces import enter
from kernel_spec.sandbox.policy.errors import SandboxError
from kernel_spec.sandbox.policy.plan import (
    DUMPABLE,
    IDENTITY,
    LANDLOCK,
    NETWORK_POLICY,
    NO_NEW_PRIVS,
    PARENT_DEATH,
    RLIMITS,
    SECCOMP,
    SandboxPlan,
)


def confine(plan: SandboxPlan) -> None:
    """Apply every layer of the plan to this process and change to the workspace's work directory.

    Called in the kernel process while it has one thread and before it reads anything of a job. The order:

    1. steps that may need root: the private root, opening the paths for Landlock, limits;
    2. the user; the change clears the parent-death signal and the dumpable flag;
    3. these two, and the check that the launcher still lives;
    4. no_new_privs, which Landlock and seccomp need;
    5. Landlock, which binds this thread and those that it starts;
    6. seccomp, last, because it forbids the calls made before.

    Raises
    ------
    SandboxError
        A layer of the plan could not be applied; the process must end.
    """
    if threading.active_count() != 1:
        raise SandboxError(LANDLOCK, f"{threading.active_count()} threads run where one may")
    with suppress(PermissionError):  # already the leader of a session
        os.setsid()
    os.umask(identity.UMASK)
    entered = enter.current()
    enter.enter_private_root(plan)
    rlimits.remember_own_mappings(entered.proc_fd if entered else None)
    ruleset_fd = _prepare_landlock(plan)
    if plan.has(RLIMITS):
        rlimits.apply(plan)
    if plan.has(IDENTITY) and plan.identity is not None:
        identity.become(plan.identity)
    identity.drop_capabilities()
    if plan.has(DUMPABLE):
        dumpable.apply()
    if plan.has(PARENT_DEATH):
        parent_death.follow_launcher(plan.parent_pid, entered.lineage if entered else None)
    broker = _broker_of(plan, entered)
    enter.forget()
    try:
        os.chdir(f"{plan.workspace_dir}/work")
    except OSError as error:
        raise SandboxError(IDENTITY, f"cannot enter the workspace: {error}") from error
    if plan.has(NO_NEW_PRIVS):
        no_new_privs.apply()
    if ruleset_fd is not None:
        landlock.enter(ruleset_fd)
    if plan.has(SECCOMP):
        _filter_calls(plan, broker)


def _filter_calls(plan: SandboxPlan, broker: socket.socket | None) -> None:
    listener = seccomp.apply(plan)
    if listener is not None and broker is not None:
        socket_broker.hand_over(listener, broker)


def _broker_of(plan: SandboxPlan, entered: enter.Entered | None) -> socket.socket | None:
    """Return a copy of the socket to the broker; `enter.forget` closes the original."""
    if not plan.brokers_sockets:
        return None
    if not (plan.has(NETWORK_POLICY) and plan.has(SECCOMP)):
        raise SandboxError(NETWORK_POLICY, "jobs with the network need this layer; set ALLOW_LOOPBACK to do without it")
    if entered is None or entered.broker is None:
        raise SandboxError(NETWORK_POLICY, "no broker of sockets was started")
    return entered.broker.dup()


def _prepare_landlock(plan: SandboxPlan) -> int | None:
    if not plan.has(LANDLOCK):
        return None
    return landlock.prepare(landlock.rules_of(plan), allow_network=plan.opens_sockets)
