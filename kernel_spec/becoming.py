"""How a process becomes the kernel of a seat; the same steps for a forked one and for a freshly started one.

The launcher shall be its parent, whoever forks it. Where the fork server can fork a sibling of its own and no user
namespace is needed, that is all there is to it:

    fork server ── clone ──▶ kernel: descriptors, control group, namespaces, waits, confines itself
         └── Forked(pid) to the launcher

Elsewhere it takes two forks, as for a daemon. The middle process enters the namespaces, because a pid namespace begins
with the next child, and ends; the kernel is thereby handed to the nearest subreaper, the launcher. Either way it
outlives the fork server. It waits at its gate until the launcher knows it and is its parent: a parent-death signal set
sooner would be delivered when a middle process ends, and in a pid namespace the kernel could not see who its parent is.
Then it leads a session of its own, confines itself and boots.

    fork server ── fork ──▶ middle: descriptors, control group, namespaces ── fork ──▶ kernel: waits, confines itself
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
from dataclasses import dataclass
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


@dataclass(slots=True)
class _Start:
    """How far it has come, for whoever has to say what went wrong."""

    plan: KernelPlan
    step: str = "descriptors"
    channel: Channel | None = None

    def begin(self, outputs: Sequence[int], gate: int, other: int) -> tuple[Channel, int]:
        """Take up the descriptors and enter the control group; return the gate's channel and the other's new number."""
        gate, other = place_descriptors(outputs, (gate, other))
        self.channel = Channel(socket.socket(fileno=gate), accepts=GATE_ORDERS)
        os.umask(0o007)
        self.step = "cgroup"
        _enter_group(self.plan.group_entrances)
        self.step = "namespaces"
        return self.channel, other


def become_kernel(
    plan: KernelPlan,
    gate: int,
    launcher_pidfd: int,
    outputs: Sequence[int],
    *,
    early: Callable[[], None],
    warm: Callable[[], None],
) -> NoReturn:
    """Turn the calling process, a child of the launcher in the plan's pid namespace, into the kernel.

    Parameters
    ----------
    plan
        What the kernel shall be.
    gate
        The kernel's end of the socket pair of this start.
    launcher_pidfd
        Of the parent.
    outputs
        Descriptors for standard output, standard error and, if the plan says so, the log pipe.
    early
        Called while the kernel would only wait at its gate.
    warm
        Called in the confined kernel before it boots: what a forked kernel has to renew, or what a freshly started
        one has to import.
    """
    start = _Start(plan)
    try:
        channel, launcher_pidfd = start.begin(outputs, gate, launcher_pidfd)
        confinement.enter_directly(plan, launcher_pidfd)
        early()
        _live(start, channel, warm)
    except BaseException as error:
        _tell_failure(start, error)
    finally:
        os._exit(_EXIT_START_FAILED)


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
    lifeline
        The read end of the pipe that ends with the launcher.
    plan, gate, outputs, early, warm
        As for `become_kernel`.
    """
    start = _Start(plan)
    try:
        channel, lifeline = start.begin(outputs, gate, lifeline)
        init_pid = confinement.enter(plan, lifeline)
        os.close(lifeline)
        start.step = "fork"
        child = os.fork()
        if child:
            channel.send(Prepared(child, init_pid))
            os._exit(0)
        early()
        _live(start, channel, warm)
    except BaseException as error:
        _tell_failure(start, error)
    finally:
        os._exit(_EXIT_START_FAILED)


def _live(start: _Start, channel: Channel, warm: Callable[[], None]) -> NoReturn:
    plan = start.plan
    start.step = "gate"
    _await_gate(channel)
    # The kernel leads a session of its own, so that a signal to its group reaches nobody else.
    os.setsid()
    start.step = "environment"
    os.environ.clear()
    os.environ.update(plan.environment)
    if _is_fenced(plan):
        os.environ.update(RESOLVER_WITHOUT_DATAGRAMS)
    start.step = "sandbox"
    confinement.confine(plan)
    os.chdir(plan.seat.work_dir)
    channel.send(Staged("confined"))
    start.step = "warm-up"
    warm()
    start.step = "boot"
    _boot(plan, channel)


def _enter_group(entrances: Sequence[str]) -> None:
    """Move this process into the seat's control group; it has one thread, and all that it forks is born there."""
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


def _tell_failure(start: _Start, error: BaseException) -> None:
    step, channel = start.step, start.channel
    reason = f"{type(error).__name__}: {error}"
    if channel is not None:
        try:
            channel.send(StartFailed(step=step, reason=reason[:2000]))
        except (OSError, ValueError):
            reason += " (and the launcher could not be told)"
    with os.fdopen(2, "w", closefd=False) as stderr:
        print(f"kernel start failed at {step}: {reason}", file=stderr)
        traceback.print_exception(error, file=stderr)
