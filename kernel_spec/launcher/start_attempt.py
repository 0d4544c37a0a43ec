"""One attempt to start a kernel: requested, forked, handed over to the launcher, bound, booted.

Two conditions must hold, in either order, before the kernel may pass its start barrier: the launcher has its pid, and
is its parent. The fork server reports both at once for a kernel that it forked as the launcher's child (`Forked`). An
intermediate process sends the pid (`KernelForked`), and its parent, the fork server or the launcher, reports that it
was reaped.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import msgspec

from kernel_spec.kernel import confinement
from kernel_spec.kernel.environment import LOG_DESCRIPTOR, interpreter_command, interpreter_environment
from kernel_spec.launcher.event_loop import Loop, Timer
from kernel_spec.launcher.fork_server_client import ForkServerSupervisor
from kernel_spec.launcher.kernel import Kernel, KernelPhase
from kernel_spec.launcher.spawn import spawn
from kernel_spec.protocol.channel import Channel, ChannelClosed, ChannelError, close_all, pair
from kernel_spec.protocol.messages import (
    BARRIER_REPORTS,
    Fork,
    Go,
    KernelForked,
    StageReached,
    Start,
    Started,
    StartFailed,
)
from kernel_spec.protocol.values import KernelPlan, StartedBy
from kernel_spec.sandbox import SandboxError
from kernel_spec.sandbox.accounting.cgroup_tree import Tree

#: A fork takes 10 ms; a fork server that has not answered after this time hangs and is replaced.
FORK_SECONDS = 5.0
#: A plain start imports pandas and ipykernel: 1.3 s on an idle machine.
START_SECONDS = 30.0
_SANDBOX_STEPS = ("cgroup", "namespaces", "sandbox")


class StartListener(Protocol):
    """Receives the results of attempts."""

    def start_succeeded(self, attempt: StartAttempt, answer: Started) -> None:
        """Send the answer to the gateway: clients can connect."""

    def start_failed(self, attempt: StartAttempt, code: str, message: str) -> None:
        """Terminate the kernel and refuse the gateway's request."""

    def pid_known(self, attempt: StartAttempt) -> None:
        """Claim the exit status of the kernel's pid, which may have been reaped already."""


@dataclass(frozen=True, slots=True)
class StartContext:
    """The parts of the launcher that an attempt uses.

    Attributes
    ----------
    count_plain : callable
        Called for each plain start.
    groups : Tree or None
        Where control groups are made; None without control groups.
    liveness_pipe : int
        Read end of a pipe that ends with the launcher, for the init of each pid namespace.
    can_start_inits : bool
        Whether the launcher can start these inits.
    """

    loop: Loop
    fork_server: ForkServerSupervisor
    listener: StartListener
    count_plain: Callable[[], None]
    groups: Tree | None
    liveness_pipe: int
    can_start_inits: bool


class StartAttempt:
    """Owns the outputs' descriptors and the start barrier until the kernel has booted or the attempt has failed.

    Parameters
    ----------
    context : StartContext
    request : Start
    number : int
        The number of this attempt, for the fork server.
    kernel : Kernel
    plan : KernelPlan
    outputs : list of int
        Descriptors for standard output, standard error and perhaps the log pipe.
    """

    def __init__(
        self, context: StartContext, request: Start, number: int, kernel: Kernel, plan: KernelPlan, outputs: list[int]
    ) -> None:
        self._context = context
        self.request_id = request.id
        self.number = number
        self.kernel = kernel
        self.plan = plan
        self._outputs = outputs
        # The fork server has imported ipykernel without debugpy.
        self.is_plain = request.plain or request.debugger
        self._barrier: Channel | None = None
        self._deadline: Timer = context.loop.call_later(START_SECONDS, self._out_of_time)
        self._fork_deadline: Timer | None = None
        self._is_forked = False
        self._handed_over = False
        self.is_over = False
        self.answered = False
        self.started_by: StartedBy = "plain"
        self.intermediate_pid = 0
        kernel.phase = KernelPhase.STARTING

    def begin(self) -> None:
        """Ask the fork server, or start plainly where it cannot."""
        if self.is_over:
            return
        try:
            entrances = self.kernel.processes.create_group(self._context.groups, self.plan.limits)
        except SandboxError as error:
            self._fail("sandbox_failed", str(error))
            return
        self.plan = msgspec.structs.replace(self.plan, group_entrances=entrances)
        with self._open_barrier() as barrier:
            try:
                if self.is_plain or not self._ask_fork_server(barrier):
                    self._start_plainly(barrier)
            except (SandboxError, OSError) as error:
                self._fail("sandbox_failed", str(error))

    def _ask_fork_server(self, barrier: int) -> bool:
        """Ask the fork server for the kernel, and return whether it has taken the request."""
        fork_server = self._context.fork_server
        if fork_server.state != "ready":
            return False
        self.started_by = "fork"
        plan = self._plan_with_packages()
        is_direct = fork_server.can_clone_parent and confinement.enters_directly(
            plan, can_start_inits=self._context.can_start_inits
        )
        init_pidfd = self._start_init() if is_direct else None
        second = self._context.liveness_pipe if init_pidfd is None else init_pidfd
        try:
            taken = fork_server.fork(Fork(self.number, plan, is_direct), [barrier, second, *self._outputs])
        finally:
            if init_pidfd is not None:
                os.close(init_pidfd)
        if taken:
            self._fork_deadline = self._context.loop.call_later(FORK_SECONDS, self._fork_server_hangs)
        else:
            self._end_init()
        return taken

    def _plan_with_packages(self) -> KernelPlan:
        """Return the plan with the current added packages, which may have changed since the request."""
        directory = self._context.fork_server.packages_dir
        paths = (*self.plan.read_only_paths, directory) if directory else self.plan.read_only_paths
        return msgspec.structs.replace(self.plan, read_only_paths=paths)

    def _start_init(self) -> int | None:
        """Make the kernel's pid namespace; return a pidfd of its init, or None without that layer."""
        init_pid = self.kernel.init_pid = confinement.start_init(self.plan, self._context.liveness_pipe)
        return None if init_pid is None else os.pidfd_open(init_pid)

    def _end_init(self) -> None:
        """End the pid namespace that was made for a fork, with all processes in it."""
        init_pid, self.kernel.init_pid = self.kernel.init_pid, None
        if init_pid is not None:
            # A child and not reaped, or the reaper would have cleared it.
            os.kill(init_pid, signal.SIGKILL)

    def forked(self, pid: int) -> None:
        """Go on after the fork server has forked the kernel, or, with pid 0, has reaped the intermediate process."""
        self._cancel_fork_deadline()
        if self.is_over:
            self._orphan_late_child(pid)
            return
        self._handed_over = True
        if pid:
            self._on_kernel_forked(pid, self.kernel.init_pid)
            return
        # An intermediate process sends its messages before it ends; one that was killed sends none.
        self._read_barrier()
        if not self._is_forked:
            self._fail("kernel_start_failed", "the process between fork server and kernel was ended")
        self._go_when_possible()

    def _orphan_late_child(self, pid: int) -> None:
        """Kill a kernel that was forked too late, or let it end at its closed start barrier.

        After the end of that start the launcher must not take its pid for that of another kernel, which may have been
        started in the same workspace since.
        """
        kernel = self.kernel
        if pid and kernel.phase is KernelPhase.ENDING and kernel.pid == 0:
            kernel.pid = pid
            self._context.listener.pid_known(self)
            if kernel.wait_status is None:
                # A child and not reaped, so no other process has its pid.
                os.kill(pid, signal.SIGKILL)

    def fork_refused(self, reason: str) -> None:
        """Start the kernel plainly instead, unless it exists already."""
        self._cancel_fork_deadline()
        if self.is_over:
            return
        if self._is_forked:
            # It waits at the barrier, and its parent is unknown; another kernel must not share its workspace.
            self._fail("kernel_start_failed", f"the fork server was lost in the middle of a fork: {reason}")
            return
        # A kernel that was forked but not reported finds its barrier closed, and ends.
        self._close_barrier()
        self._end_init()
        with self._open_barrier() as barrier:
            self._start_plainly(barrier)

    def intermediate_reaped(self, status: int) -> None:
        """Go on after the intermediate process of a plain start has ended."""
        self.intermediate_pid = 0
        if status == 0:
            self._handed_over = True
            self._go_when_possible()
        elif not self.is_over:
            # Its messages may still be unread.
            self._read_barrier()
            if not self.is_over:
                code = os.waitstatus_to_exitcode(status)
                self._fail("kernel_start_failed", f"the wrapper ended with status {code} before the kernel started")

    def kernel_reaped(self) -> None:
        """Fail because the kernel has ended while it started."""
        if not self.is_over:
            self._read_barrier()
        if not self.is_over:
            report = self.kernel.make_report()
            self._fail("kernel_start_failed", f"the kernel {report.detail} while it started")

    def abort(self) -> None:
        """Give up without a report; the kernel is being terminated."""
        self._finish()

    @contextmanager
    def _open_barrier(self) -> Iterator[int]:
        """Read the barrier from now on, and yield the kernel's end of it for a start."""
        ours, theirs = pair()
        with theirs:
            self._barrier = Channel(ours, accepts=BARRIER_REPORTS)
            self._barrier.set_blocking(False)
            self._context.loop.watch(self._barrier.fileno(), self._read_barrier)
            yield theirs.fileno()

    def _close_barrier(self) -> None:
        if self._barrier is not None:
            self._context.loop.unwatch(self._barrier.fileno())
            self._barrier.close()
            self._barrier = None

    def _start_plainly(self, barrier: int) -> None:
        self.started_by = "plain"
        self._context.count_plain()
        outputs = dict(enumerate(self._outputs, start=1))
        descriptors = outputs | {LOG_DESCRIPTOR + 1: barrier, LOG_DESCRIPTOR + 2: self._context.liveness_pipe}
        packages = f"--packages={self._context.fork_server.packages_dir}"
        command = interpreter_command("kernel_spec.wrapper", "--start", str(LOG_DESCRIPTOR + 1), packages)
        environment = {**self.plan.environment, **interpreter_environment()}
        try:
            self.intermediate_pid = spawn(command, environment, descriptors)
            if self._barrier is not None:
                self._barrier.send(Fork(self.number, self._plan_with_packages()))
        except (OSError, ChannelError) as error:
            # There is no process, or it has ended already.
            self._fail("kernel_start_failed", f"the wrapper could not be started: {error}")

    def _read_barrier(self) -> None:
        while self._barrier is not None:
            try:
                message, descriptors = self._barrier.receive()
            except BlockingIOError:
                return
            except ChannelClosed:
                # The end of the process follows, with its exit status.
                self._close_barrier()
                return
            except ChannelError as error:
                self._fail("kernel_start_failed", f"the kernel sent an invalid message: {error}")
                return
            close_all(descriptors)
            self._handle(message)

    def _handle(self, message: object) -> None:
        match message:
            case KernelForked() if not self._is_forked:
                self._on_kernel_forked(message.pid, message.init_pid)
            case StageReached(stage="bound"):
                self._succeed()
            case StageReached(stage="booted"):
                self.kernel.phase = KernelPhase.RUNNING
                self._finish()
            case StartFailed():
                code = "sandbox_failed" if message.step in _SANDBOX_STEPS else "kernel_start_failed"
                self._fail(code, f"at {message.step}: {message.reason}")
            case _:
                self._fail("kernel_start_failed", f"unexpected {type(message).__name__} from the kernel")

    def _on_kernel_forked(self, pid: int, init_pid: int | None) -> None:
        self._is_forked = True
        self.kernel.pid = pid
        self.kernel.init_pid = init_pid
        self._context.listener.pid_known(self)
        self._go_when_possible()

    def _go_when_possible(self) -> None:
        if not (self._is_forked and self._handed_over) or self.is_over or self._barrier is None:
            return
        if self.kernel.wait_status is not None:
            self.kernel_reaped()
            return
        # A child and not reaped, so no other process has its pid.
        self.kernel.pidfd = os.pidfd_open(self.kernel.pid)
        try:
            self._barrier.send(Go())
        except (ChannelClosed, BlockingIOError):
            self._close_barrier()

    def _succeed(self) -> None:
        if self.kernel.pidfd < 0:
            self._fail("kernel_start_failed", "the kernel did not wait at its start barrier")
            return
        self.answered = True
        self._context.listener.start_succeeded(
            self,
            Started(
                id=self.request_id,
                pid=self.kernel.pid,
                started_by=self.started_by,
                is_prefaulted=self.started_by == "fork" and self._context.fork_server.prefaults,
            ),
        )

    def _fork_server_hangs(self) -> None:
        self._context.fork_server.give_up(f"did not fork within {FORK_SECONDS:g} s")

    def _out_of_time(self) -> None:
        self._fail("kernel_start_failed", f"the kernel did not start within {START_SECONDS:g} s")

    def _cancel_fork_deadline(self) -> None:
        if self._fork_deadline is not None:
            self._fork_deadline.cancel()

    def _fail(self, code: str, message: str) -> None:
        if self.is_over:
            return
        self._finish()
        self._context.listener.start_failed(self, code, message)

    def _finish(self) -> None:
        self.is_over = True
        self._deadline.cancel()
        self._cancel_fork_deadline()
        self._close_barrier()
        close_all(self._outputs)
        self._outputs = []
