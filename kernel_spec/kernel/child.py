"""Turn a process into the kernel of a workspace, with the same steps whether it was forked or started plainly.

The launcher must be its parent. Where the fork server can fork a child of its own parent and no user namespace is
needed, one fork is enough:

    fork server ── clone ──▶ kernel: descriptors, control group, namespaces, waits, confines itself
         └── Forked(pid) to the launcher

Elsewhere it takes two forks, as for a daemon. The intermediate process enters the namespaces, because a pid namespace
begins with the next child, and ends; Linux then hands the kernel to the nearest subreaper, the launcher. Either way the
kernel outlives the fork server. It waits at its barrier until the launcher has its pid and is its parent: a
parent-death signal set sooner would be delivered when an intermediate process ends, and in a pid namespace the kernel
could not see who its parent is. Then it leads a session of its own, confines itself and boots.

    fork server ── fork ──▶ intermediate: descriptors, cgroup, namespaces ── fork ──▶ kernel: waits, confines itself
                                 └── KernelForked(pid) to the launcher, ends

Every failure is reported through the barrier and ends the process: a kernel without all its layers must not run.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from kernel_spec.kernel import boot, confinement
from kernel_spec.kernel.connect_audit import connect_audit_hook
from kernel_spec.kernel.environment import LOG_DESCRIPTOR, RESOLVER_WITHOUT_DATAGRAMS
from kernel_spec.linux import syscalls
from kernel_spec.protocol.channel import Channel
from kernel_spec.protocol.messages import BARRIER_ORDERS, Go, KernelForked, StageReached, StartFailed
from kernel_spec.protocol.values import KernelPlan

#: Longer than a living launcher takes to send Go.
_BARRIER_SECONDS = 20.0
#: libzmq waits 100 ms and at random up to 100 ms more before a socket connects again (ZMQ_RECONNECT_IVL).
_RECONNECT_SECONDS = 0.25
_EXIT_START_FAILED = 70
_LAST_DESCRIPTOR = 0xFFFF_FFFF


@dataclass(slots=True)
class _Start:
    """The current step of a start, for the report of a failure."""

    plan: KernelPlan
    step: str = "descriptors"
    channel: Channel | None = None

    def begin(self, outputs: Sequence[int], barrier: int, other: int) -> tuple[Channel, int]:
        """Place the descriptors and enter the control group; return the barrier's channel and the other descriptor."""
        barrier, other = place_descriptors(outputs, (barrier, other))
        self.channel = Channel(socket.socket(fileno=barrier), accepts=BARRIER_ORDERS)
        os.umask(0o007)
        self.step = "cgroup"
        _enter_group(self.plan.group_entrances)
        self.step = "namespaces"
        return self.channel, other


def run_kernel(
    plan: KernelPlan,
    barrier: int,
    launcher_pidfd: int,
    outputs: Sequence[int],
    *,
    prefault: Callable[[], None],
    after_fork: Callable[[], None],
) -> NoReturn:
    """Turn the calling process, a child of the launcher in the plan's pid namespace, into the kernel.

    Parameters
    ----------
    plan : KernelPlan
        The kernel to start.
    barrier : int
        The kernel's end of the socket pair of this start.
    launcher_pidfd : int
        Pidfd of the launcher, which is the parent.
    outputs : sequence of int
        Descriptors for standard output, standard error and, if the plan says so, the log pipe.
    prefault : callable
        Called while the kernel waits at its barrier.
    after_fork : callable
        Called in the confined kernel before it boots: renews the state of a forked kernel, or imports the modules of
        a plainly started one.
    """
    start = _Start(plan)
    try:
        channel, launcher_pidfd = start.begin(outputs, barrier, launcher_pidfd)
        confinement.enter_directly(plan, launcher_pidfd)
        prefault()
        _run_confined(start, channel, after_fork)
    except BaseException as error:
        _report_failure(start, error)
    finally:
        os._exit(_EXIT_START_FAILED)


def double_fork(
    plan: KernelPlan,
    barrier: int,
    liveness_pipe: int,
    outputs: Sequence[int],
    *,
    after_fork: Callable[[], None],
    prefault: Callable[[], None] = lambda: None,
) -> NoReturn:
    """Turn the calling process into the intermediate process and its child into the kernel; nothing here returns.

    Parameters
    ----------
    liveness_pipe : int
        The read end of the pipe that ends with the launcher.
    plan, barrier, outputs, prefault, after_fork
        As for `run_kernel`.
    """
    start = _Start(plan)
    try:
        channel, liveness_pipe = start.begin(outputs, barrier, liveness_pipe)
        init_pid = confinement.enter(plan, liveness_pipe)
        os.close(liveness_pipe)
        start.step = "fork"
        child = os.fork()
        if child:
            channel.send(KernelForked(child, init_pid))
            os._exit(0)
        prefault()
        _run_confined(start, channel, after_fork)
    except BaseException as error:
        _report_failure(start, error)
    finally:
        os._exit(_EXIT_START_FAILED)


def _run_confined(start: _Start, channel: Channel, after_fork: Callable[[], None]) -> NoReturn:
    plan = start.plan
    start.step = "barrier"
    _await_go(channel)
    # The kernel leads a session of its own, so that a signal to its group reaches no other process.
    os.setsid()
    start.step = "environment"
    os.environ.clear()
    os.environ.update(plan.environment)
    if _has_egress_filter(plan):
        os.environ.update(RESOLVER_WITHOUT_DATAGRAMS)
    start.step = "sandbox"
    confinement.confine(plan)
    os.chdir(plan.workspace.work_dir)
    start.step = "after_fork"
    after_fork()
    start.step = "boot"
    _boot(plan, channel)


def _enter_group(entrances: Sequence[str]) -> None:
    """Move this process, which has one thread, into the workspace's control group; its children start there."""
    for path in entrances:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, b"0")
        finally:
            os.close(descriptor)


def place_descriptors(outputs: Sequence[int], others: Sequence[int]) -> list[int]:
    """Put the outputs at 1, 2 and 3 and /dev/null at 0, close everything else, and return the others' new numbers."""
    target_count = 1 + len(outputs)
    # First to high numbers, then to the targets: an output may arrive under any number, 0 to 3 included.
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


def _await_go(channel: Channel) -> None:
    channel.set_timeout(_BARRIER_SECONDS)
    message, _ = channel.receive()
    if not isinstance(message, Go):
        raise TypeError(f"unexpected {type(message).__name__} at the barrier")
    channel.set_timeout(None)


def _boot(plan: KernelPlan, channel: Channel) -> NoReturn:
    kernel = boot.boot(
        plan.connection_path,
        plan.style,
        debugger=plan.debugger,
        on_bound=lambda: channel.send(StageReached("bound")),
    )
    confinement.bound_memory(plan.limits)
    confinement.seal(plan)
    if _has_egress_filter(plan):
        # Fails at once instead of after a timeout; the broker's egress filter is the barrier.
        sys.addaudithook(connect_audit_hook)
    channel.send(StageReached("booted"))
    # Before any request is served: with this channel a job could lie to the launcher.
    channel.close()
    gc.enable()
    if plan.is_restart:
        # Each socket of a client connects again by itself. A message that comes before its iopub socket is connected is
        # lost, and the client waits for it without end.
        time.sleep(_RECONNECT_SECONDS)
    boot.serve(kernel)


def _has_egress_filter(plan: KernelPlan) -> bool:
    return plan.allow_network and not plan.allow_loopback


def _report_failure(start: _Start, error: BaseException) -> None:
    step, channel = start.step, start.channel
    reason = f"{type(error).__name__}: {error}"
    if channel is not None:
        try:
            channel.send(StartFailed(step=step, reason=reason[:2000]))
        except (OSError, ValueError):
            reason += " (and it could not be reported to the launcher)"
    with os.fdopen(2, "w", closefd=False) as stderr:
        print(f"kernel start failed at {step}: {reason}", file=stderr)
        traceback.print_exception(error, file=stderr)
