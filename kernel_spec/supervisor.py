"""What the launcher does with each request, and what happens by itself: kernels end, the gateway goes away."""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from kernel_spec import confinement
from kernel_spec.channel import Channel, ChannelClosed, ChannelError, close_all
from kernel_spec.confinement import Host
from kernel_spec.containment import Containment
from kernel_spec.ending import Freezing, send_signal
from kernel_spec.environment import kernel_environment
from kernel_spec.fork_keeper import ForkServerKeeper
from kernel_spec.kernels import Kernel, Phase
from kernel_spec.limits import Limits
from kernel_spec.loop import Loop, Timer
from kernel_spec.messages import (
    Cause,
    ExitReport,
    ForkServerChanged,
    Halt,
    Halted,
    KernelPlan,
    Kill,
    Killed,
    LimitCpu,
    Limited,
    Refused,
    Remove,
    Removed,
    Reserve,
    Reserved,
    SeatInfo,
    Signal,
    Signalled,
    Start,
    Started,
    Status,
    StatusReport,
    Stop,
    Stopped,
    Usage,
    UsageReport,
)
from kernel_spec.options import LauncherOptions
from kernel_spec.roster import Roster
from kernel_spec.sandbox import SandboxError
from kernel_spec.seats import SeatError, Seats, SeatUser
from kernel_spec.starting import StartAttempt, Tools
from kernel_spec.turnover import SeatTurnover
from kernel_spec.watching import Watches

# How long a start waits for a fork server that is still importing, before it starts plainly beside it.
FIRST_FORK_SERVER_SECONDS = 15.0
# How long everything may take to end when the gateway is gone.
SHUTDOWN_SECONDS = 10.0
UNBOUND_CPU_SECONDS = 7 * 86_400


class RequestError(Exception):
    """A request cannot be carried out; `code` is for programs, the text for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Supervisor:
    """Carries out the requests of one gateway."""

    def __init__(self, options: LauncherOptions, channel: Channel) -> None:
        self._options = options
        self._channel = channel
        self._loop = Loop()
        self._keeper = ForkServerKeeper(
            self._loop, options, self._on_forked, self._on_fork_refused, self._on_fork_server_change
        )
        self._roster = Roster(self._loop, self._tell)
        self._waiting: list[StartAttempt] = []
        self._numbers = itertools.count(1)
        self._plain_starts = 0
        self._stopping: list[Callable[[], None]] | None = None
        self._handlers: dict[type, Callable[[Any, list[int]], None]] = {
            Reserve: self._reserve,
            Start: self._start,
            Signal: self._signal,
            LimitCpu: self._limit_cpu,
            Halt: self._halt,
            Kill: self._kill,
            Remove: self._remove,
            Usage: self._usage,
            Status: self._status,
            Stop: self._stop,
        }

    def warm_up(self) -> int:
        """Start the fork server, which imports while the caller looks at the host; return its pid."""
        self._keeper.start()
        return self._keeper.pid

    def run(self, seats: Seats, host: Host) -> None:
        """Serve until the gateway is gone or asks to stop; afterwards nothing is left of any kernel."""
        self._seats = seats
        self._turnover = SeatTurnover(self._loop, seats)
        self._host = host
        # Nobody else ever has the write end, so it closes when this process ends.
        lifeline, self._lifeline_end = os.pipe2(os.O_CLOEXEC)
        self._tools = Tools(self._loop, self._keeper, self, self._count_plain, host.groups, lifeline, host.starts_inits)
        self._watches = Watches(
            self._loop,
            memory=host.watches_memory,
            disk=host.watches_disk,
            template_bytes=self._keeper.anonymous_bytes,
            on_limit=self._on_limit,
        )
        self._tell(host.hello(tuple(dict.fromkeys(user.gid for user in seats.users))))
        self._channel.set_blocking(False)
        self._loop.watch(self._channel.fileno(), self._on_request)
        self._loop.on_signals(self._reap, self._shut_down)
        # What ended before signals were listened to.
        self._reap()
        self._loop.run()

    def stop_fork_server(self) -> None:
        """End the fork server, for a launcher that never got to `run`."""
        self._keeper.stop()

    # ------------------------------------------------------------------ requests
    def _on_request(self) -> None:
        try:
            message, descriptors = self._channel.receive()
        except BlockingIOError:
            return
        except ChannelClosed:
            self._loop.unwatch(self._channel.fileno())
            self._shut_down()
            return
        except ChannelError as error:
            self._tell(Refused(0, "bad_message", str(error)))
            return
        try:
            self._handlers[type(message)](message, descriptors)
        except RequestError as error:
            self._tell(Refused(message.id, error.code, str(error)))
        except (OSError, SeatError, SandboxError) as error:
            self._tell(Refused(message.id, "launcher_failed", f"{type(error).__name__}: {error}"))
        finally:
            close_all(descriptors)

    def _reserve(self, message: Reserve, _: list[int]) -> None:
        if self._roster.get(message.kernel_id) is not None:
            raise RequestError("kernel_exists", f"kernel {message.kernel_id} exists already")
        if self._stopping is not None:
            raise RequestError("stopping", "the launcher is stopping")

        def seated(user: SeatUser, seat: SeatInfo) -> None:
            containment = Containment(seat, own_uid=self._host.own_uids, hidden_bytes=self._host.hidden_bytes)
            self._roster.add(Kernel(message.kernel_id, user, seat, containment))
            self._tell(Reserved(message.id, seat))

        some_leave = any(kernel.phase in (Phase.ENDING, Phase.ENDED) for kernel in self._roster.all())
        self._turnover.reserve(
            seated, lambda reason: self._tell(Refused(message.id, "no_seat", reason)), some_leave=some_leave
        )

    def _start(self, message: Start, descriptors: list[int]) -> None:
        kernel = self._kernel(message.kernel_id)
        if kernel.phase not in (Phase.RESERVED, Phase.ENDED):
            raise RequestError("wrong_phase", f"kernel {message.kernel_id} is {kernel.phase.value}")
        if len(descriptors) != (3 if message.has_log else 2):
            raise RequestError("bad_message", f"{len(descriptors)} descriptors came with the start")
        kernel.prepare_again()
        kernel.limits = message.limits
        kernel.cpu_limit_seconds = message.limits.cpu_seconds
        plan = self._plan(kernel, message)
        outputs, descriptors[:] = list(descriptors), []
        attempt = StartAttempt(self._tools, message, next(self._numbers), kernel, plan, outputs)
        self._roster.add_attempt(attempt)
        if self._keeper.is_first_start and not message.plain:
            self._waiting.append(attempt)
            kernel.timers.add(self._loop.call_later(FIRST_FORK_SERVER_SECONDS, lambda: self._begin(attempt)))
        else:
            attempt.begin()

    def _plan(self, kernel: Kernel, message: Start) -> KernelPlan:
        seat = kernel.seat
        return KernelPlan(
            kernel_id=kernel.kernel_id,
            seat=seat,
            connection_path=f"{seat.ipc_dir}/connection.json",
            uid=seat.uid if self._host.own_uids else None,
            gid=seat.gid if self._host.own_uids else None,
            limits=_limits_until_bound(message),
            layers=self._host.layers,
            read_only_paths=(*confinement.read_only_paths(message.allow_network), *self._options.read_only_paths),
            allow_network=message.allow_network,
            style=message.style,
            has_log=message.has_log,
            launcher_pid=os.getpid(),
            environment=kernel_environment(seat, style=message.style, has_log=message.has_log),
            allow_loopback=self._options.allow_loopback,
        )

    def _signal(self, message: Signal, _: list[int]) -> None:
        kernel = self._kernel(message.kernel_id)
        if not 1 <= message.number <= 64:
            raise RequestError("bad_message", f"{message.number} is not a signal")
        send_signal(kernel, message.number)
        self._tell(Signalled(message.id))

    def _limit_cpu(self, message: LimitCpu, _: list[int]) -> None:
        kernel = self._kernel(message.kernel_id)
        if message.cpu_seconds < 1:
            raise RequestError("bad_message", f"{message.cpu_seconds} s is not a limit")
        kernel.limit_cpu(message.cpu_seconds)
        self._watches.begin(kernel)
        self._tell(Limited(message.id))

    def _halt(self, message: Halt, _: list[int]) -> None:
        kernel = self._kernel(message.kernel_id)
        kernel.asked_to_end = kernel.asked_to_end or kernel.wait_status is None
        if kernel.phase is Phase.RUNNING and kernel.containment.freeze():
            Freezing(self._loop, kernel, lambda frozen: self._frozen(message, kernel, frozen=frozen))
        else:
            self._halt_by_ending(message, kernel)

    def _frozen(self, message: Halt, kernel: Kernel, *, frozen: bool) -> None:
        if frozen:
            self._halted(message, kernel.make_report(stands_still=True))
        else:
            self._halt_by_ending(message, kernel)

    def _halt_by_ending(self, message: Halt, kernel: Kernel) -> None:
        self._roster.end(kernel)
        ending = self._roster.ending(kernel)
        if ending is None:
            self._halted(message, kernel.report)
        else:
            ending.when_halted(lambda report: self._halted(message, report))

    def _halted(self, message: Halt, report: ExitReport | None) -> None:
        if report is None:
            self._tell(Refused(message.id, "not_confirmed", "processes of the kernel do not end"))
        else:
            self._tell(Halted(message.id, report))

    def _kill(self, message: Kill, _: list[int]) -> None:
        kernel = self._kernel(message.kernel_id)

        def ended(report: ExitReport | None) -> None:
            if report is None:
                self._tell(Refused(message.id, "not_confirmed", "processes of the kernel do not end"))
            else:
                ending = self._roster.ending(kernel)
                self._tell(Killed(message.id, report, round(ending.seconds, 6) if ending is not None else 0.0))

        kernel.asked_to_end = kernel.asked_to_end or kernel.wait_status is None
        self._roster.end(kernel, ended)

    def _remove(self, message: Remove, _: list[int]) -> None:
        kernel = self._kernel(message.kernel_id)
        if kernel.phase not in (Phase.ENDED, Phase.RESERVED):
            raise RequestError("wrong_phase", f"kernel {message.kernel_id} is {kernel.phase.value}; kill it first")

        def cleared(problem: str | None) -> None:
            self._tell(Removed(message.id) if problem is None else Refused(message.id, "not_removed", problem))

        self._clear(kernel, cleared)

    def _usage(self, message: Usage, _: list[int]) -> None:
        kernel = self._kernel(message.kernel_id)
        usage = kernel.containment.usage(kernel.limits, self._keeper.anonymous_bytes())
        kernel.peak_memory_bytes = max(kernel.peak_memory_bytes, usage.memory_bytes)
        self._tell(
            UsageReport(
                id=message.id,
                processes=usage.processes,
                memory_bytes=usage.memory_bytes,
                peak_memory_bytes=kernel.peak_memory_bytes,
                cpu_seconds=max(kernel.cpu_seconds, usage.cpu_seconds),
                disk_bytes=kernel.containment.disk_bytes(kernel.limits.disk_bytes),
            )
        )

    def _status(self, message: Status, _: list[int]) -> None:
        self._tell(StatusReport(message.id, self.status()))

    def _stop(self, message: Stop, _: list[int]) -> None:
        self._shut_down(lambda: self._tell(Stopped(message.id)))

    def _kernel(self, kernel_id: str) -> Kernel:
        kernel = self._roster.get(kernel_id)
        if kernel is None:
            raise RequestError("no_kernel", f"there is no kernel {kernel_id}")
        return kernel

    # ------------------------------------------------------------------ starts
    def start_succeeded(self, attempt: StartAttempt, answer: Started) -> None:
        """Tell the gateway; see `kernel_spec.starting.StartListener`."""
        if attempt.plan.style == "notebook":
            self._watches.begin(attempt.kernel)
        self._tell(answer, (attempt.kernel.pidfd,))

    def start_failed(self, attempt: StartAttempt, code: str, message: str) -> None:
        """End what there is and tell the gateway; see `kernel_spec.starting.StartListener`."""
        kernel = attempt.kernel

        def ended(report: ExitReport | None) -> None:
            self._roster.drop_attempt(attempt)
            if not attempt.answered:
                self._tell(Refused(attempt.request_id, code, message, report))

        self._roster.end(kernel, ended)

    def pid_known(self, attempt: StartAttempt) -> None:
        """Take up an end that was reaped before its name was known; see `kernel_spec.starting.StartListener`."""
        self._roster.pid_known(attempt.kernel)

    def _begin(self, attempt: StartAttempt) -> None:
        if attempt in self._waiting:
            self._waiting.remove(attempt)
            attempt.begin()

    def _on_forked(self, number: int, pid: int) -> None:
        attempt = self._roster.attempt(number)
        if attempt is not None:
            attempt.forked(pid)

    def _on_fork_refused(self, number: int, reason: str) -> None:
        attempt = self._roster.attempt(number)
        if attempt is not None:
            attempt.fork_refused(reason)

    def _on_fork_server_change(self, state: str, reason: str) -> None:
        self._tell(ForkServerChanged(state, reason))
        if state != "starting":
            for attempt in tuple(self._waiting):
                self._loop.call_later(0.0, lambda attempt=attempt: self._begin(attempt))  # type: ignore[misc]

    def _count_plain(self) -> None:
        self._plain_starts += 1

    # ------------------------------------------------------------------ ends
    def _on_limit(self, kernel: Kernel, cause: Cause, reason: str) -> None:
        kernel.limit_hit = (cause, reason)
        self._roster.end(kernel)

    def _reap(self) -> None:
        self._roster.reap(self._is_fork_server)

    def _is_fork_server(self, pid: int, status: int) -> bool:
        if pid != self._keeper.pid:
            return False
        self._keeper.on_ended(status)
        return True

    def _clear(self, kernel: Kernel, then: Callable[[str | None], None]) -> None:
        """Remove the seat's directory in small steps and free the seat; what cannot be removed is not used again."""
        try:
            kernel.containment.dissolve()
        except SandboxError as error:
            then(str(error))
            return
        self._roster.forget(kernel)
        self._turnover.clear(kernel.user, kernel.seat.seat_dir, then)

    # ------------------------------------------------------------------ the whole
    def status(self) -> dict[str, object]:
        """Return what there is to know, in JSON's terms."""
        return {
            "layers": list(self._host.layers),
            "own_uids": self._host.own_uids,
            "seats": {"all": len(self._seats.users), "free": self._seats.free},
            "kernels": {kernel.kernel_id: kernel.phase.value for kernel in self._roster.all()},
            "plain_starts": self._plain_starts,
            "fork_server": self._keeper.status(),
        }

    def _shut_down(self, then: Callable[[], None] = lambda: None) -> None:
        if self._stopping is not None:
            self._stopping.append(then)
            return
        self._stopping = [then]
        self._turnover.refuse_all("the launcher is stopping")
        self._keeper.stop()
        deadline = self._loop.call_later(SHUTDOWN_SECONDS, self._loop.stop)
        for kernel in self._roster.all():
            kernel.asked_to_end = True
            self._roster.end(kernel, lambda report, kernel=kernel: self._clear_at_the_end(kernel, report, deadline))  # type: ignore[misc]
        self._stop_when_empty(deadline)

    def _clear_at_the_end(self, kernel: Kernel, report: ExitReport | None, deadline: Timer) -> None:
        if report is not None and self._roster.get(kernel.kernel_id) is kernel:
            self._clear(kernel, lambda _: self._stop_when_empty(deadline))

    def _stop_when_empty(self, deadline: Timer) -> None:
        if self._seats.free == len(self._seats.users) and self._stopping is not None:
            deadline.cancel()
            for then in self._stopping:
                then()
            self._stopping = []
            self._loop.stop()

    def _tell(self, message: object, descriptors: Sequence[int] = ()) -> None:
        try:
            self._channel.send(message, descriptors)
        except ChannelClosed:
            # The end of file is on its way through the loop.
            return
        except BlockingIOError:
            # A gateway that leaves hundreds of answers unread is stuck for good.
            print("launcher: the gateway does not read; giving up", file=sys.stderr, flush=True)  # noqa: T201
            self._shut_down()


def _limits_until_bound(message: Start) -> Limits:
    """Return the limits that a kernel starts with.

    A job's processor time is counted from the job's own start (`LimitCpu`), and a hard limit can be lowered later but
    not raised without privilege. Until then the kernel runs nothing but our own code.
    """
    if message.style == "job":
        return dataclasses.replace(message.limits, cpu_seconds=UNBOUND_CPU_SECONDS)
    return message.limits
