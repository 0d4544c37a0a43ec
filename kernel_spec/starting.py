"""One attempt to start a kernel, seen from the launcher: asked for, prepared, handed over, bound, booted.

Two things must have happened before the kernel may pass its gate, in either order: its pid is known, and the launcher
is its parent. The fork server tells both at once of a kernel that it forked directly (`Forked`). Where there was a
middle process, that tells the pid (`Prepared`), and whoever started it tells that it is reaped: the fork server, or
the launcher's own reaper.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from kernel_spec import confinement
from kernel_spec.channel import Channel, ChannelClosed, ChannelError, close_all, pair
from kernel_spec.environment import LOG_DESCRIPTOR, interpreter_command, interpreter_environment
from kernel_spec.fork_keeper import ForkServerKeeper
from kernel_spec.kernels import Kernel, Phase
from kernel_spec.loop import Loop, Timer
from kernel_spec.messages import (
    GATE_REPORTS,
    Fork,
    KernelPlan,
    Prepared,
    Proceed,
    Staged,
    Start,
    Started,
    StartedBy,
    StartFailed,
)
from kernel_spec.sandbox import SandboxError
from kernel_spec.sandbox.cgroup import Tree
from kernel_spec.spawning import spawn

# A fork takes 10 ms; a fork server that has not answered after this long hangs and is replaced.
FORK_SECONDS = 5.0
# A plain start imports pandas and ipykernel: 1.3 s when the machine is idle.
START_SECONDS = 30.0
_SANDBOX_STEPS = ("cgroup", "namespaces", "sandbox")


class StartListener(Protocol):
    """What the launcher does about an attempt."""

    def start_succeeded(self, attempt: StartAttempt, answer: Started) -> None:
        """Tell the gateway that clients can connect."""

    def start_failed(self, attempt: StartAttempt, code: str, message: str) -> None:
        """End what there is of the kernel and tell the gateway."""

    def pid_known(self, attempt: StartAttempt) -> None:
        """Watch for the end of this pid; it may have come already."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What an attempt works with.

    Attributes
    ----------
    lifeline
        Read end of a pipe that ends with the launcher, for the init of each pid namespace.
    starts_inits
        Whether the launcher can start these inits.
    """

    loop: Loop
    keeper: ForkServerKeeper
    listener: StartListener
    count_plain: Callable[[], None]
    groups: Tree | None
    lifeline: int
    starts_inits: bool


class StartAttempt:
    """Owns the outputs' descriptors and the gate until the kernel has booted or the attempt has failed."""

    def __init__(
        self, tools: Tools, request: Start, number: int, kernel: Kernel, plan: KernelPlan, outputs: list[int]
    ) -> None:
        self._tools = tools
        self.request_id = request.id
        self.number = number
        self.kernel = kernel
        self.plan = plan
        self._outputs = outputs
        self._plain = request.plain
        self._gate: Channel | None = None
        self._deadline: Timer = tools.loop.call_later(START_SECONDS, self._out_of_time)
        self._fork_deadline: Timer | None = None
        self._began = time.monotonic()
        self._spawned = 0.0
        self._prepared = False
        self._handed_over = False
        self.is_over = False
        self.answered = False
        self.started_by: StartedBy = "plain"
        self.middle_pid = 0
        kernel.phase = Phase.STARTING
        kernel.started = self._began

    def begin(self) -> None:
        """Ask the fork server, or start plainly where it cannot."""
        if self.is_over:
            return
        try:
            entrances = self.kernel.containment.enclose(self._tools.groups, self.plan.limits)
        except SandboxError as error:
            self._fail("sandbox_failed", str(error))
            return
        self.plan = dataclasses.replace(self.plan, group_entrances=entrances)
        gate = self._open_gate()
        try:
            if self._plain or not self._ask_fork_server(gate):
                self._start_plainly(gate)
        except (SandboxError, OSError) as error:
            self._fail("sandbox_failed", str(error))
        finally:
            os.close(gate)

    def _ask_fork_server(self, gate: int) -> bool:
        """Ask for the kernel, and return whether the fork server has taken the request."""
        keeper = self._tools.keeper
        if keeper.state != "ready":
            return False
        self.started_by = "fork"
        is_direct = keeper.forks_directly and confinement.enters_directly(
            self.plan, starts_inits=self._tools.starts_inits
        )
        init_pidfd = self._start_init() if is_direct else None
        second = self._tools.lifeline if init_pidfd is None else init_pidfd
        try:
            taken = keeper.fork(Fork(self.number, self.plan, is_direct), [gate, second, *self._outputs])
        finally:
            if init_pidfd is not None:
                os.close(init_pidfd)
        if taken:
            self._fork_deadline = self._tools.loop.call_later(FORK_SECONDS, self._fork_server_hangs)
        else:
            self._end_init()
        return taken

    def _start_init(self) -> int | None:
        """Make the kernel's pid namespace; return a pidfd of its init, or None without that layer."""
        init_pid = self.kernel.init_pid = confinement.start_init(self.plan, self._tools.lifeline)
        return None if init_pid is None else os.pidfd_open(init_pid)

    def _end_init(self) -> None:
        """End the pid namespace that was made for a fork, with whatever may have come into it."""
        init_pid, self.kernel.init_pid = self.kernel.init_pid, None
        if init_pid is not None:
            # Ours and not reaped, or the reaper would have forgotten it.
            os.kill(init_pid, signal.SIGKILL)

    def forked(self, pid: int) -> None:
        """The fork server has forked the kernel, or has reaped the middle process."""
        if self._fork_deadline is not None:
            self._fork_deadline.cancel()
        if self.is_over:
            self._leave(pid)
            return
        self._handed_over = True
        if pid:
            self._prepare(pid, self.kernel.init_pid)
            return
        # What it had to say it said before it ended: a middle process that was killed is not waited for.
        self._read_gate()
        if not self._prepared:
            self._fail("kernel_start_failed", "the process between fork server and kernel was ended")
        self._proceed_when_possible()

    def _leave(self, pid: int) -> None:
        """Have a kernel that came too late end with the rest of its start, or by itself at its closed gate.

        Once the rest has ended its pid must not be taken for that of another kernel, which may have been started in
        the same seat since.
        """
        kernel = self.kernel
        if pid and kernel.phase is Phase.ENDING and kernel.pid == 0:
            kernel.pid = pid
            self._tools.listener.pid_known(self)
            if kernel.wait_status is None:
                # Ours and not reaped, so the number is still its own.
                os.kill(pid, signal.SIGKILL)

    def fork_refused(self, reason: str) -> None:
        """Start plainly instead, unless the kernel exists already."""
        if self._fork_deadline is not None:
            self._fork_deadline.cancel()
        if self.is_over:
            return
        if self._prepared:
            # It waits at its gate with an unknown parent; another start in the same seat would meet it.
            self._fail("kernel_start_failed", f"the fork server was lost in the middle of a fork: {reason}")
            return
        # A kernel that was forked and not told of finds its gate closed, and ends.
        self._close_gate()
        self._end_init()
        gate = self._open_gate()
        try:
            self._start_plainly(gate)
        finally:
            os.close(gate)

    def middle_reaped(self, status: int) -> None:
        """The middle process of a plain start has ended."""
        self.middle_pid = 0
        if status == 0:
            self._handed_over = True
            self._proceed_when_possible()
        elif not self.is_over:
            # What it had to say is still in the gate.
            self._read_gate()
            if not self.is_over:
                code = os.waitstatus_to_exitcode(status)
                self._fail("kernel_start_failed", f"the wrapper ended with status {code} before the kernel was there")

    def kernel_reaped(self) -> None:
        """The kernel has ended while it started."""
        if not self.is_over:
            self._read_gate()
        if not self.is_over:
            report = self.kernel.make_report()
            self._fail("kernel_start_failed", f"the kernel {report.detail} while it started")

    def abort(self) -> None:
        """Give up without telling anybody; the kernel is being ended."""
        self._finish()

    def _open_gate(self) -> int:
        ours, theirs = pair()
        self._gate = Channel(ours, accepts=GATE_REPORTS)
        self._gate.set_blocking(False)
        self._tools.loop.watch(self._gate.fileno(), self._read_gate)
        return theirs.detach()

    def _close_gate(self) -> None:
        if self._gate is not None:
            self._tools.loop.unwatch(self._gate.fileno())
            self._gate.close()
            self._gate = None

    def _start_plainly(self, gate: int) -> None:
        self.started_by = "plain"
        self._tools.count_plain()
        outputs = dict(enumerate(self._outputs, start=1))
        descriptors = outputs | {LOG_DESCRIPTOR + 1: gate, LOG_DESCRIPTOR + 2: self._tools.lifeline}
        command = interpreter_command("kernel_spec.wrapper", "--start", str(LOG_DESCRIPTOR + 1))
        environment = {**self.plan.environment, **interpreter_environment()}
        try:
            self.middle_pid = spawn(command, environment, descriptors)
            if self._gate is not None:
                self._gate.send(Fork(self.number, self.plan))
        except (OSError, ChannelError) as error:
            # No process to be had, or one that is gone again.
            self._fail("kernel_start_failed", f"the wrapper could not be started: {error}")

    def _read_gate(self) -> None:
        while self._gate is not None:
            try:
                message, descriptors = self._gate.receive()
            except BlockingIOError:
                return
            except ChannelClosed:
                # The end of the process follows, and with it the reason.
                self._close_gate()
                return
            except ChannelError as error:
                self._fail("kernel_start_failed", f"the kernel said something unreadable: {error}")
                return
            close_all(descriptors)
            self._handle(message)

    def _handle(self, message: object) -> None:
        match message:
            case Prepared() if not self._prepared:
                self._prepare(message.pid, message.init_pid)
            case Staged(stage="confined"):
                self._spawned = time.monotonic()
            case Staged(stage="bound"):
                self._succeed()
            case Staged(stage="booted"):
                self.kernel.phase = Phase.RUNNING
                self._finish()
            case StartFailed():
                code = "sandbox_failed" if message.step in _SANDBOX_STEPS else "kernel_start_failed"
                self._fail(code, f"at {message.step}: {message.reason}")
            case _:
                self._fail("kernel_start_failed", f"unexpected {type(message).__name__} from the kernel")

    def _prepare(self, pid: int, init_pid: int | None) -> None:
        self._prepared = True
        self.kernel.pid = pid
        self.kernel.init_pid = init_pid
        self._tools.listener.pid_known(self)
        self._proceed_when_possible()

    def _proceed_when_possible(self) -> None:
        if not (self._prepared and self._handed_over) or self.is_over or self._gate is None:
            return
        if self.kernel.wait_status is not None:
            self.kernel_reaped()
            return
        # Ours and not reaped, so the number cannot have passed to another process.
        self.kernel.pidfd = os.pidfd_open(self.kernel.pid)
        try:
            self._gate.send(Proceed())
        except (ChannelClosed, BlockingIOError):
            self._close_gate()

    def _succeed(self) -> None:
        if self.kernel.pidfd < 0:
            self._fail("kernel_start_failed", "the kernel did not wait at its gate")
            return
        self.answered = True
        now = time.monotonic()
        self._tools.listener.start_succeeded(
            self,
            Started(
                id=self.request_id,
                pid=self.kernel.pid,
                started_by=self.started_by,
                spawn_seconds=round((self._spawned or now) - self._began, 6),
                bound_seconds=round(now - self._began, 6),
                is_warm=self.started_by == "fork" and self._tools.keeper.copies_pages,
            ),
        )

    def _fork_server_hangs(self) -> None:
        self._tools.keeper.give_up(f"did not fork within {FORK_SECONDS:g} s")

    def _out_of_time(self) -> None:
        self._fail("kernel_start_failed", f"the kernel was not there after {START_SECONDS:g} s")

    def _fail(self, code: str, message: str) -> None:
        if self.is_over:
            return
        self._finish()
        self._tools.listener.start_failed(self, code, message)

    def _finish(self) -> None:
        self.is_over = True
        self._deadline.cancel()
        if self._fork_deadline is not None:
            self._fork_deadline.cancel()
        self._close_gate()
        close_all(self._outputs)
        self._outputs = []
