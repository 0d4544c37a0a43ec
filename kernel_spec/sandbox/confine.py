"""Put the layers on the kernel process, in the one order that works."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress

from kernel_spec.sandbox import (
    dumpable,
    identity,
    landlock,
    namespaces,
    network_policy,
    no_new_privs,
    parent_death,
    rlimits,
    seccomp,
)
from kernel_spec.sandbox.errors import SandboxError
from kernel_spec.sandbox.plan import (
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
    """Put every layer of the plan on this process and go to the seat's work directory.

    Called in the kernel process while it has one thread and before anything of a job is read. The order:

    1. what may need root: the private root, opening the paths for Landlock, limits;
    2. the user, which clears the parent-death signal and the dumpable flag;
    3. these two, and the check that the launcher still lives;
    4. no_new_privs, which Landlock and seccomp need;
    5. Landlock, which binds this thread and those it starts;
    6. seccomp, last, because it forbids the calls made before.

    Raises
    ------
    SandboxError
        A layer of the plan could not be put on; the process must end.
    """
    if threading.active_count() != 1:
        raise SandboxError(LANDLOCK, f"{threading.active_count()} threads run where one may")
    with suppress(PermissionError):  # already the leader of a session
        os.setsid()
    os.umask(identity.UMASK)
    entered = namespaces.current()
    namespaces.settle(plan)
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
    namespaces.forget()
    try:
        os.chdir(f"{plan.seat_dir}/work")
    except OSError as error:
        raise SandboxError(IDENTITY, f"cannot enter the seat: {error}") from error
    if plan.has(NO_NEW_PRIVS):
        no_new_privs.apply()
    if ruleset_fd is not None:
        landlock.enter(ruleset_fd)
    if plan.has(SECCOMP):
        _filter_calls(plan, broker)


def _filter_calls(plan: SandboxPlan, broker: socket.socket | None) -> None:
    listener = seccomp.apply(plan)
    if listener is not None and broker is not None:
        network_policy.hand_over(listener, broker)


def _broker_of(plan: SandboxPlan, entered: namespaces.Entered | None) -> socket.socket | None:
    """Return our own copy of the socket to the broker, which the record's end does not close."""
    if not plan.brokers_sockets:
        return None
    if not (plan.has(NETWORK_POLICY) and plan.has(SECCOMP)):
        raise SandboxError(NETWORK_POLICY, "a job cannot have the network without it; ALLOW_LOOPBACK does without")
    if entered is None or entered.broker is None:
        raise SandboxError(NETWORK_POLICY, "no broker of sockets was started")
    return entered.broker.dup()


def _prepare_landlock(plan: SandboxPlan) -> int | None:
    if not plan.has(LANDLOCK):
        return None
    return landlock.prepare(landlock.rules_of(plan), allow_network=plan.allow_network)
