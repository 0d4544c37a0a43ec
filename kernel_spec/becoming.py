"""How a process becomes the kernel of a seat; the same steps for a forked one and for a freshly started one.

Two forks, as for a daemon. The middle process enters the namespaces, because a pid namespace begins with the next
child, and ends; the kernel is thereby handed to the nearest subreaper, the launcher, and outlives the fork server.
The kernel waits at its gate until the launcher says that the middle process is gone: a parent-death signal set sooner
would be delivered when the middle process ends, and in a pid namespace the kernel could not see who its parent is.

    fork server ── fork ──▶ middle: session, descriptors, namespaces ── fork ──▶ kernel: waits, confines itself, boots
                                 └── Prepared(pid) to the launcher, ends

Every failure is told through the gate and ends the process: a kernel with less than all its layers must not run.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from kernel_spec import boot, confinement
from kernel_spec.channel import Channel
from kernel_spec.environment import LOG_DESCRIPTOR, RESOLVER_WITHOUT_DATAGRAMS
from kernel_spec.local_addresses import refuse_local_addresses
from kernel_spec.messages import GATE_ORDERS, KernelPlan, Prepared, Proceed, Staged, StartFailed
from kernel_spec.sandbox import syscalls

# Longer than any launcher that is alive takes to say Proceed, shorter than a person's patience.
_GATE_SECONDS = 20.0
_EXIT_START_FAILED = 70
_LAST_DESCRIPTOR = 0xFFFF_FFFF


def become_middle(
    plan: KernelPlan,
    gate: int,
    lifeline: int,
    outputs: Sequence[int],
    *,
    warm: Callable[[], None],
    early: Callable[[], None] = lambda: None,
) -> NoReturn:
    """Turn the calling process into the middle process and its child into the kernel; nothing here returns.

    Parameters
    ----------
    plan
        What the kernel shall be.
    gate
        The kernel's end of the socket pair of this start.
    lifeline
        The read end of the pipe that ends with the launcher.
    outputs
        Descriptors for standard output, standard error and, if the plan says so, the log pipe.
    warm
        Called in the confined kernel before it boots: what a forked kernel has to renew, or what a freshly started
        one has to import.
    early
        Called in the kernel while it would only wait at its gate.
    """
    channel: Channel | None = None
    step = "descriptors"
    try:
        gate, lifeline = place_descriptors(outputs, (gate, lifeline))
        channel = Channel(socket.socket(fileno=gate), accepts=GATE_ORDERS)
        os.umask(0o007)
        step = "cgroup"
        _enter_group(plan.group_entrances)
        step = "namespaces"
        init_pid = confinement.enter(plan, lifeline)
        os.close(lifeline)
        step = "fork"
        child = os.fork()
        if child:
            channel.send(Prepared(child, init_pid))
            os._exit(0)
        early()
        step = "gate"
        _await_gate(channel)
        # The kernel leads a session of its own, so that a signal to its group reaches nobody else.
        os.setsid()
        step = "environment"
        os.environ.clear()
        os.environ.update(plan.environment)
        if _is_fenced(plan):
            os.environ.update(RESOLVER_WITHOUT_DATAGRAMS)
        step = "sandbox"
        confinement.confine(plan)
        os.chdir(plan.seat.work_dir)
        channel.send(Staged("confined"))
        step = "warm-up"
        warm()
        step = "boot"
        _boot(plan, channel)
    except BaseException as error:
        _tell_failure(channel, step, error)
    finally:
        os._exit(_EXIT_START_FAILED)


def _enter_group(entrances: Sequence[str]) -> None:
    """Move this process into the seat's control group; the kernel, its child, is then born there."""
    for path in entrances:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, b"0")
        finally:
            os.close(descriptor)


def place_descriptors(outputs: Sequence[int], others: Sequence[int]) -> list[int]:
    """Put the outputs at 1, 2 and 3 and /dev/null at 0, close everything else, and return the others' new numbers."""
    target_count = 1 + len(outputs)
    # First out of the way of the targets, then into place: an output may arrive as any number, 0 to 3 included.
    lifted = [_lift(descriptor) for descriptor in outputs]
    lifted_others = [_lift(descriptor) for descriptor in others]
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(null, 0)
    for target, descriptor in enumerate(lifted, start=1):
        # Inheritable, the log pipe too: children made with multiprocessing print into it.
        os.dup2(descriptor, target)
    first = max(target_count, LOG_DESCRIPTOR + 1)
    placed = list(range(first, first + len(others)))
    for target, descriptor in zip(placed, lifted_others, strict=True):
        os.dup2(descriptor, target, inheritable=False)
    if target_count <= LOG_DESCRIPTOR:
        syscalls.close_range(target_count, LOG_DESCRIPTOR)
    syscalls.close_range(first + len(others), _LAST_DESCRIPTOR)
    return placed


def _lift(descriptor: int) -> int:
    import fcntl

    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 64)


def _await_gate(channel: Channel) -> None:
    channel.set_timeout(_GATE_SECONDS)
    message, _ = channel.receive()
    if not isinstance(message, Proceed):
        raise TypeError(f"unexpected {type(message).__name__} at the gate")
    channel.set_timeout(None)


def _boot(plan: KernelPlan, channel: Channel) -> NoReturn:
    kernel = boot.boot(plan.connection_path, plan.style, on_bound=lambda: channel.send(Staged("bound")))
    confinement.bound_memory(plan.limits)
    confinement.seal(plan)
    if _is_fenced(plan):
        # Known at once, not after a time-out; what keeps the promise is the broker's filter.
        sys.addaudithook(refuse_local_addresses)
    channel.send(Staged("booted"))
    # Before any request is served: what the job could reach here it could use to lie to the launcher.
    channel.close()
    gc.enable()
    boot.serve(kernel)


def _is_fenced(plan: KernelPlan) -> bool:
    return plan.allow_network and not plan.allow_loopback


def _tell_failure(channel: Channel | None, step: str, error: BaseException) -> None:
    reason = f"{type(error).__name__}: {error}"
    if channel is not None:
        try:
            channel.send(StartFailed(step=step, reason=reason[:2000]))
        except (OSError, ValueError):
            reason += " (and the launcher could not be told)"
    with os.fdopen(2, "w", closefd=False) as stderr:
        print(f"kernel start failed at {step}: {reason}", file=stderr)
        traceback.print_exception(error, file=stderr)
