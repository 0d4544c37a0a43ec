"""The gateway's side of the launcher, for asyncio.

`LauncherClient.spawn` blocks and needs no loop: it is called while the gateway still has its privileges. `attach` then
takes the socket over into the running loop. Every request has a deadline, after which the launcher counts as broken but
is not given up: the answer may still come and is then dropped.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

from kernel_spec.channel import ChannelClosed, ChannelError, close_all
from kernel_spec.launcher_process import LauncherError, LauncherProcess
from kernel_spec.limits import Limits
from kernel_spec.messages import (
    Exited,
    ExitReport,
    ForkServerChanged,
    Halt,
    Halted,
    Hello,
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
    StartedBy,
    Status,
    StatusReport,
    Style,
    Usage,
    UsageReport,
)
from kernel_spec.options import LauncherOptions

__all__ = ["KernelProcess", "LauncherClient", "LauncherError", "LauncherOptions"]

log = logging.getLogger(__name__)
A = TypeVar("A")

ANSWER_SECONDS = 10.0
# Longer than the launcher gives a start, so that its reason arrives and not our own.
START_SECONDS = 40.0

LOST = ExitReport(
    wait_status=None,
    signal=None,
    exit_code=None,
    cause="launcher_lost",
    peak_memory_bytes=0,
    cpu_seconds=0.0,
    detail="the launcher is gone, and its kernels with it",
)


@dataclass(slots=True, eq=False)
class KernelProcess:
    """A kernel that clients can connect to.

    Attributes
    ----------
    pidfd
        Readable when the process has ended (pidfd_open(2)); owned by this, see `close`.
    exited
        Resolves when the launcher has told how the process ended; never fails.
    """

    kernel_id: str
    pid: int
    pidfd: int
    seat: SeatInfo
    exited: asyncio.Future[ExitReport]
    started_by: StartedBy
    spawn_seconds: float
    bound_seconds: float
    is_warm: bool

    @property
    def uid(self) -> int:
        """User of the seat."""
        return self.seat.uid

    @property
    def gid(self) -> int:
        """Group of the seat."""
        return self.seat.gid

    def close(self) -> None:
        """Give up the pidfd; safe to call twice."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


class LauncherClient:
    """One launcher, as the gateway sees it.

    Examples
    --------
    >>> async with LauncherClient.spawn(LauncherOptions(state_dir="/var/lib/transform")) as launcher:
    ...     seat = await launcher.reserve("k1")
    ...     write_connection_file(seat)
    ...     process = await launcher.start_kernel("k1", output_fds=(out, err, log))
    ...     report = await launcher.kill("k1")
    ...     await launcher.remove("k1")
    """

    def __init__(self, process: LauncherProcess) -> None:
        self._process = process
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[tuple[Any, list[int]]]] = {}
        self._seats: dict[str, SeatInfo] = {}
        self._processes: dict[str, KernelProcess] = {}
        self._early_exits: dict[str, ExitReport] = {}
        self._lost: asyncio.Future[None] | None = None
        self._fork_server = ForkServerChanged("starting", "not heard of yet")
        self._fork_server_starts = 0
        self._awaiting_change: list[asyncio.Future[None]] = []
        self._closed = False

    @classmethod
    def spawn(cls, options: LauncherOptions) -> Self:
        """Start a launcher with the privileges that the caller has now, and wait until it is ready.

        Raises
        ------
        LauncherError
            It did not start; the text says why.
        """
        return cls(LauncherProcess(options))

    @property
    def hello(self) -> Hello:
        """What the launcher said about itself and the host when it was ready."""
        return self._process.hello

    @property
    def pid(self) -> int:
        """Process id of the launcher."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the launcher is there, as far as its socket tells."""
        return not self._closed and (self._lost is None or not self._lost.done())

    async def __aenter__(self) -> Self:
        await self.attach()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def attach(self) -> None:
        """Read the launcher's answers in the running loop from now on."""
        self._loop = asyncio.get_running_loop()
        self._lost = self._loop.create_future()
        self._process.channel.set_blocking(False)
        self._loop.add_reader(self._process.channel.fileno(), self._on_readable)
        fork_server = (await self.status()).get("fork_server")
        if isinstance(fork_server, dict):
            self._fork_server = ForkServerChanged(str(fork_server["state"]), str(fork_server["reason"]))
            if fork_server["state"] == "ready":
                # It was ready before anybody listened.
                self._fork_server_starts = max(1, self._fork_server_starts)

    async def lost(self) -> None:
        """Return when the launcher is gone; its kernels are then gone too."""
        if self._lost is None:
            raise RuntimeError("attach() first")
        await asyncio.shield(self._lost)

    async def aclose(self) -> None:
        """End every kernel and the launcher; its seats are removed when this returns."""
        self._detach()
        if not self._closed:
            self._closed = True
            await asyncio.to_thread(self._process.close)

    def close(self) -> None:
        """Like `aclose`, for callers without a loop; safe to call twice."""
        self._detach()
        if not self._closed:
            self._closed = True
            self._process.close()

    # ------------------------------------------------------------------ requests
    async def reserve(self, kernel_id: str) -> SeatInfo:
        """Take a free seat for a kernel and return where it is; `remove` gives it back.

        Raises
        ------
        LauncherError
            ``no_seat``: all are taken.
        """
        answer = await self._ask(Reserve(next(self._ids), kernel_id), Reserved)
        self._seats[kernel_id] = answer.seat
        return answer.seat

    async def start_kernel(
        self,
        kernel_id: str,
        *,
        output_fds: tuple[int, ...],
        limits: Limits | None = None,
        style: Style = "job",
        allow_network: bool = False,
        plain: bool = False,
    ) -> KernelProcess:
        """Start the kernel of a reserved seat over ``<seat>/ipc/connection.json``; return when clients can connect.

        Parameters
        ----------
        kernel_id
            Of a seat that was reserved, or whose kernel was killed.
        output_fds
            Its standard output, standard error and, if there are three, its log pipe. They stay the caller's.
        limits
            Of everything the kernel starts; the processor time counts from `limit_cpu` for a job.
        style
            Whether it serves one job, or a person.
        allow_network
            Leave it the network.
        plain
            Do without the fork server.

        Raises
        ------
        LauncherError
            ``kernel_start_failed`` or ``sandbox_failed`` with the reason; the seat is still to be removed.
        """
        request = Start(
            id=next(self._ids),
            kernel_id=kernel_id,
            limits=limits or Limits(),
            style=style,
            allow_network=allow_network,
            plain=plain,
            has_log=len(output_fds) > 2,
        )
        # Of a start in this seat that failed: it has answered with all there is to know of that end.
        self._early_exits.pop(kernel_id, None)
        answer, (pidfd,) = await self._exchange(request, Started, START_SECONDS, output_fds)
        process = KernelProcess(
            kernel_id=kernel_id,
            pid=answer.pid,
            pidfd=pidfd,
            seat=self._seats[kernel_id],
            exited=asyncio.get_running_loop().create_future(),
            started_by=answer.started_by,
            spawn_seconds=answer.spawn_seconds,
            bound_seconds=answer.bound_seconds,
            is_warm=answer.is_warm,
        )
        self._processes[kernel_id] = process
        if kernel_id in self._early_exits:
            process.exited.set_result(self._early_exits.pop(kernel_id))
        return process

    async def signal(self, kernel_id: str, number: int) -> None:
        """Send a signal to the kernel's process group; nothing happens if it has ended.

        Raises
        ------
        LauncherError
            There is no such kernel.
        """
        await self._ask(Signal(next(self._ids), kernel_id, int(number)), Signalled)

    async def limit_cpu(self, kernel_id: str, cpu_seconds: int) -> None:
        """Bound the processor time of everything of the kernel, counted from now.

        Raises
        ------
        LauncherError
            The kernel has ended.
        """
        await self._ask(LimitCpu(next(self._ids), kernel_id, cpu_seconds), Limited)

    async def halt(self, kernel_id: str) -> ExitReport:
        """Return once nothing of a kernel can run any more, ever; `kill` must follow, and ends what is still there.

        Raises
        ------
        LauncherError
            ``not_confirmed``: something does not end. ``no_kernel``: it was removed, or never was.
        """
        return (await self._ask(Halt(next(self._ids), kernel_id), Halted)).report

    async def kill(self, kernel_id: str) -> ExitReport:
        """End everything of a kernel; return how it ended once nothing of it lives. Safe to repeat.

        Raises
        ------
        LauncherError
            ``not_confirmed``: something does not end. ``no_kernel``: it was removed, or never was.
        """
        return (await self._ask(Kill(next(self._ids), kernel_id), Killed)).report

    async def remove(self, kernel_id: str) -> None:
        """Remove the seat's directory and free the seat, after `kill`.

        Raises
        ------
        LauncherError
            The kernel was not ended, or something in the directory cannot be removed.
        """
        await self._ask(Remove(next(self._ids), kernel_id), Removed, seconds=60.0)
        self._seats.pop(kernel_id, None)
        self._early_exits.pop(kernel_id, None)
        process = self._processes.pop(kernel_id, None)
        if process is not None:
            process.close()

    async def usage(self, kernel_id: str) -> UsageReport:
        """Return what everything of the kernel uses now."""
        return await self._ask(Usage(next(self._ids), kernel_id), UsageReport)

    async def status(self) -> dict[str, object]:
        """Return layers, seats, kernels, fork server and counters."""
        return (await self._ask(Status(next(self._ids)), StatusReport)).status

    # ------------------------------------------------------------------ what is known without asking
    def sandbox_status(self) -> dict[str, object]:
        """Return the sandbox report of the launcher's start, and what of it is used."""
        hello = self.hello
        return {
            **hello.report,
            "used_layers": list(hello.layers),
            "own_uids": hello.own_uids,
            "notes": list(hello.notes),
        }

    def fork_server_status(self) -> dict[str, object]:
        """Return the state of the fork server and the reason for it, as last told."""
        return {
            "state": self._fork_server.state,
            "reason": self._fork_server.reason,
            "restarts": max(0, self._fork_server_starts - 1),
        }

    async def fork_server_changed(self) -> None:
        """Return at the next change of the fork server's state."""
        change = asyncio.get_running_loop().create_future()
        self._awaiting_change.append(change)
        await change

    # ------------------------------------------------------------------ the socket
    async def _ask(self, request: Any, expected: type[A], seconds: float = ANSWER_SECONDS) -> A:
        answer, descriptors = await self._exchange(request, expected, seconds)
        close_all(descriptors)
        return answer

    async def _exchange(
        self, request: Any, expected: type[A], seconds: float, descriptors: tuple[int, ...] = ()
    ) -> tuple[A, list[int]]:
        if self._loop is None or not self.alive:
            raise LauncherError("launcher_lost", "the launcher is gone")
        future: asyncio.Future[tuple[Any, list[int]]] = self._loop.create_future()
        self._answers[request.id] = future
        try:
            self._process.channel.send(request, descriptors)
            async with asyncio.timeout(seconds):
                answer, received = await future
        except TimeoutError:
            raise LauncherError("timeout", f"no answer from the launcher within {seconds:g} s") from None
        except (ChannelClosed, ChannelError, BlockingIOError) as error:
            raise LauncherError("launcher_lost", f"the launcher does not take requests: {error}") from None
        finally:
            self._answers.pop(request.id, None)
        if isinstance(answer, Refused):
            raise LauncherError.of(answer)
        if not isinstance(answer, expected):
            close_all(received)
            raise LauncherError("launcher_failed", f"the launcher answered with {type(answer).__name__}")
        return answer, received

    def _on_readable(self) -> None:
        while True:
            try:
                message, descriptors = self._process.channel.receive()
            except BlockingIOError:
                return
            except ChannelClosed:
                self._on_lost()
                return
            except ChannelError as error:
                log.error("the launcher said something unreadable: %s", error)
                continue
            self._on_message(message, descriptors)

    def _on_message(self, message: Any, descriptors: list[int]) -> None:
        match message:
            case Exited():
                self._on_exited(message.kernel_id, message.report)
            case ForkServerChanged():
                self._fork_server = message
                self._fork_server_starts += message.state == "ready"
                for change in self._awaiting_change:
                    if not change.done():
                        change.set_result(None)
                self._awaiting_change.clear()
                level = logging.WARNING if message.state == "waiting" else logging.INFO
                log.log(level, "fork server %s: %s", message.state, message.reason)
            case _:
                future = self._answers.get(message.id)
                if future is not None and not future.done():
                    future.set_result((message, descriptors))
                    return
                # its asker was cancelled: a start that failed elsewhere, a stop in the middle of one
                log.debug("an answer nobody waits for any more: %s", type(message).__name__)
        close_all(descriptors)

    def _on_exited(self, kernel_id: str, report: ExitReport) -> None:
        process = self._processes.get(kernel_id)
        if process is None:
            # It ended before its start was answered, or the answer was no longer waited for.
            if kernel_id in self._seats:
                self._early_exits[kernel_id] = report
        elif not process.exited.done():
            process.exited.set_result(report)

    def _on_lost(self) -> None:
        self._detach()
        for future in self._answers.values():
            if not future.done():
                future.set_result((Refused(0, "launcher_lost", "the launcher is gone"), []))

    def _detach(self) -> None:
        if self._loop is None:
            return
        # A loop that is closed has forgotten its readers by itself.
        if not self._loop.is_closed():
            self._loop.remove_reader(self._process.channel.fileno())
            if self._lost is not None and not self._lost.done():
                self._lost.set_result(None)
            for process in self._processes.values():
                if not process.exited.done():
                    process.exited.set_result(LOST)
        for process in self._processes.values():
            process.close()
        self._processes.clear()
        self._early_exits.clear()
        self._loop = None
