"""The launcher's side of the fork server: starting it, asking it for kernels, and replacing it.

=========== ============================================================================
state       meaning
=========== ============================================================================
off         switched off
starting    started, still importing
ready       forks kernels
waiting     died, hung or must not fork; the next start follows after a pause
=========== ============================================================================

The pause doubles from `FIRST_PAUSE_SECONDS` to `LONGEST_PAUSE_SECONDS`; after a stable minute it is short again. The
loss of the fork server loses no kernel: kernels are children of the launcher.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kernel_spec.kernel.added_packages import usable_set
from kernel_spec.kernel.environment import interpreter_command, interpreter_environment
from kernel_spec.launcher.event_loop import Loop, Timer
from kernel_spec.launcher.spawn import spawn
from kernel_spec.linux import procfs
from kernel_spec.protocol.channel import Channel, ChannelClosed, ChannelError, close_all, pair
from kernel_spec.protocol.messages import (
    FORK_ANSWERS,
    Fork,
    Forked,
    ForkRefused,
    ForkServerNotForkable,
    ForkServerReady,
)
from kernel_spec.protocol.options import LauncherOptions

State = Literal["off", "starting", "ready", "waiting"]

FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 30.0
_STABLE_SECONDS = 60.0
#: Importing takes 1 s on an idle machine; a cold disk and a busy machine take longer.
_START_SECONDS = 60.0
_CONTROL_DESCRIPTOR = 3


@dataclass(slots=True)
class ForkServerCounters:
    """Events of the fork server since the launcher started."""

    starts: int = 0
    deaths: int = 0
    forks: int = 0
    refusals: int = 0


class ForkServerSupervisor:
    """Keeps one fork server running.

    Parameters
    ----------
    loop : Loop
        The launcher's loop.
    options : LauncherOptions
        Settings of the launcher.
    on_forked : callable
        Called with the number of a `fork` and the kernel's pid, or 0 if an intermediate process has forked it and
        ended.
    on_refused : callable
        Called with the number of a `fork` and the reason why nothing was forked, also for every unanswered number when
        the fork server dies.
    on_change : callable
        Called with the new state and the reason for it.
    """

    def __init__(
        self,
        loop: Loop,
        options: LauncherOptions,
        on_forked: Callable[[int, int], None],
        on_refused: Callable[[int, str], None],
        on_change: Callable[[State, str], None],
    ) -> None:
        self._loop = loop
        self._options = options
        self._on_forked = on_forked
        self._on_refused = on_refused
        self._on_change = on_change
        self._channel: Channel | None = None
        self._deadline: Timer | None = None
        self._pending: set[int] = set()
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._ready_since = 0.0
        self._is_renewed = False
        self.packages_dir = usable_set(Path(options.state_dir))
        self.pid = 0
        self.state: State = "off"
        self.reason = "switched off"
        self.counters = ForkServerCounters()
        self.ready: ForkServerReady | None = None

    @property
    def is_soon_ready(self) -> bool:
        """Whether it starts for the first time or is renewed: waiting for it is then cheaper than a plain start."""
        return self.state == "starting" and (self.counters.starts == 1 or self._is_renewed)

    @property
    def prefaults(self) -> bool:
        """Whether forked kernels have the pages of a first job from the start: `kernel_spec.fork_server.prefault`."""
        return self.ready is not None and self.ready.prefault_pages > 0

    @property
    def can_clone_parent(self) -> bool:
        """Whether it can fork children of the launcher, without an intermediate process."""
        return self.ready is not None and self.ready.can_clone_parent

    def anonymous_bytes(self) -> int:
        """Return the memory of the fork server that each forked kernel shows as its own."""
        status = procfs.read_status(self.pid) if self.pid else None
        return status.anonymous_bytes if status is not None else 0

    def start(self) -> None:
        """Start the fork server, unless it is switched off."""
        if not self._options.fork_server:
            return
        ours, theirs = pair()
        try:
            module_options = [f"--module={name}" for name in self._options.modules or ()]
            module_options += [f"--packages={self.packages_dir}"] if self.packages_dir else []
            module_options += [f"--scratch-dir={self._options.state_dir}/workspaces"]
            self.pid = spawn(
                interpreter_command("kernel_spec.fork_server", str(_CONTROL_DESCRIPTOR), *module_options),
                interpreter_environment(),
                {1: sys.stderr.fileno(), 2: sys.stderr.fileno(), _CONTROL_DESCRIPTOR: theirs.fileno()},
            )
        except OSError as error:
            ours.close()
            self.give_up(f"could not be started: {error}")
            return
        finally:
            theirs.close()
        self._channel = Channel(ours, accepts=FORK_ANSWERS)
        self._channel.set_blocking(False)
        self._loop.watch(self._channel.fileno(), self._on_readable)
        self.counters.starts += 1
        self._set_state("starting", "importing")
        self._deadline = self._loop.call_later(_START_SECONDS, lambda: self.give_up("did not get ready in time"))

    def renew(self) -> None:
        """Replace the fork server by one with the current added packages; existing kernels go on."""
        self.packages_dir = usable_set(Path(self._options.state_dir))
        if self.state == "off":
            return
        self._end()
        self.pid = 0  # its end has no effect any more
        self._is_renewed = True
        refused, self._pending = self._pending, set()
        self.start()
        for number in refused:
            self._on_refused(number, "the fork server is renewed")

    def fork(self, request: Fork, descriptors: list[int]) -> bool:
        """Ask for a kernel.

        Parameters
        ----------
        request : Fork
            The number and the plan.
        descriptors : list of int
            The descriptors of the request, see `kernel_spec.protocol.messages`.

        Returns
        -------
        bool
            Whether the fork server took the request.
        """
        if self.state != "ready" or self._channel is None:
            return False
        try:
            self._channel.send(request, descriptors)
        except (ChannelClosed, ChannelError, BlockingIOError) as error:
            self.give_up(f"does not accept requests: {error}")
            return False
        self._pending.add(request.number)
        return True

    def status(self) -> dict[str, object]:
        """Return state and counters as a JSON object."""
        return {
            "state": self.state,
            "reason": self.reason,
            "pid": self.pid,
            "starts": self.counters.starts,
            "deaths": self.counters.deaths,
            "forks": self.counters.forks,
            "refusals": self.counters.refusals,
            "missing_modules": list(self.ready.missing) if self.ready else [],
            "deferred": list(self.ready.deferred) if self.ready else [],
            "resident_bytes": self.ready.resident_bytes if self.ready else 0,
            "prefault_pages": self.ready.prefault_pages if self.ready else 0,
        }

    def give_up(self, reason: str) -> None:
        """End this fork server and start another one after a pause."""
        self.counters.deaths += 1
        self._is_renewed = False
        self._end()
        if self._ready_since and time.monotonic() - self._ready_since > _STABLE_SECONDS:
            self._pause_seconds = FIRST_PAUSE_SECONDS
        self._set_state("waiting", reason)
        self._deadline = self._loop.call_later(self._pause_seconds, self.start)
        self._pause_seconds = min(2 * self._pause_seconds, LONGEST_PAUSE_SECONDS)
        refused, self._pending = self._pending, set()
        for number in refused:
            self._on_refused(number, f"the fork server {reason}")

    def on_ended(self, status: int) -> None:
        """React to the end of the process, which was reaped with this wait status."""
        self.pid = 0
        if self._channel is not None:
            # Its last message, such as why it must not fork, may still be unread.
            with suppress(BlockingIOError):
                while self._channel is not None:
                    self._on_readable()
        if self.state in ("starting", "ready"):
            self.give_up(f"ended ({_describe(status)})")

    def stop(self) -> None:
        """End the fork server for good."""
        self._end()
        self._set_state("off", "stopped")

    def _end(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        if self._channel is not None:
            self._loop.unwatch(self._channel.fileno())
            self._channel.close()
            self._channel = None
        if self.pid:
            # A child and not reaped, so no other process has its pid.
            os.kill(self.pid, signal.SIGKILL)

    def _on_readable(self) -> None:
        if self._channel is None:
            return
        try:
            message, descriptors = self._channel.receive()
        except ChannelClosed:
            self.give_up("closed its socket")
            return
        except ChannelError as error:
            self.give_up(f"sent an invalid message: {error}")
            return
        close_all(descriptors)
        self._handle(message)

    def _handle(self, message: object) -> None:
        match message:
            case ForkServerReady():
                if self._deadline is not None:
                    self._deadline.cancel()
                self.ready = message
                self._ready_since = time.monotonic()
                self._set_state("ready", f"imported in {message.import_seconds:.2f} s")
            case ForkServerNotForkable():
                self.give_up(f"is unfit: {message.reason}")
            case Forked() if message.number in self._pending:
                self._pending.discard(message.number)
                self.counters.forks += 1
                self._on_forked(message.number, message.pid)
            case ForkRefused() if message.number in self._pending:
                self._pending.discard(message.number)
                self.counters.refusals += 1
                self._on_refused(message.number, message.reason)
                # The reason of a refusal does not go away without a new fork server.
                self.give_up(f"refused to fork: {message.reason}")
            case _:
                self.give_up(f"sent an unexpected {type(message).__name__}")

    def _set_state(self, state: State, reason: str) -> None:
        self.state, self.reason = state, reason
        self._on_change(state, reason)


def _describe(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"signal {-code}" if code < 0 else f"exit code {code}"
