"""The launcher's side of the fork server: starting it, asking it, and doing without it.

=========== ============================================================================
state       meaning
=========== ============================================================================
off         not wanted
starting    started, still importing
ready       forks kernels
waiting     died, hung or was unfit; will be started again after a pause
=========== ============================================================================

The pause doubles from `FIRST_PAUSE_SECONDS` to `LONGEST_PAUSE_SECONDS` and begins anew after a stable minute. Losing
the fork server loses no kernel: they are children of the launcher.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from kernel_spec.channel import Channel, ChannelClosed, ChannelError, close_all, pair
from kernel_spec.environment import interpreter_command, interpreter_environment
from kernel_spec.loop import Loop, Timer
from kernel_spec.messages import (
    FORK_ANSWERS,
    Fork,
    Forked,
    ForkRefused,
    ForkServerReady,
    ForkServerUnfit,
)
from kernel_spec.options import LauncherOptions
from kernel_spec.sandbox import procfs
from kernel_spec.spawning import spawn

State = Literal["off", "starting", "ready", "waiting"]

FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 30.0
_STABLE_SECONDS = 60.0
# Importing takes 1 s on an idle machine; a cold disk and a busy machine are given their time.
_START_SECONDS = 60.0
_CONTROL_DESCRIPTOR = 3


@dataclass(slots=True)
class Counters:
    """What has happened to the fork server since the launcher started."""

    starts: int = 0
    deaths: int = 0
    forks: int = 0
    refusals: int = 0


class ForkServerKeeper:
    """Keeps one fork server alive.

    Parameters
    ----------
    on_forked, on_refused
        Called with the number of a `fork` and the kernel's pid, 0 where a middle process has forked it and ended, or
        with the reason why nothing was forked; a refusal for every unanswered number follows the fork server's death
        too.
    on_change
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
        self.pid = 0
        self.state: State = "off"
        self.reason = "switched off"
        self.counters = Counters()
        self.ready: ForkServerReady | None = None

    @property
    def is_first_start(self) -> bool:
        """Whether it is starting for the first time: then waiting for it is cheaper than starting beside it."""
        return self.state == "starting" and self.counters.starts == 1

    @property
    def copies_pages(self) -> bool:
        """Whether forked kernels have the pages of a first job from the start, see `kernel_spec.pages`."""
        return self.ready is not None and self.ready.copied_pages > 0

    @property
    def forks_directly(self) -> bool:
        """Whether it can fork children of ours, without a middle process."""
        return self.ready is not None and self.ready.forks_directly

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

    def fork(self, request: Fork, descriptors: list[int]) -> bool:
        """Ask for a kernel; return whether the fork server took the request."""
        if self.state != "ready" or self._channel is None:
            return False
        try:
            self._channel.send(request, descriptors)
        except (ChannelClosed, ChannelError, BlockingIOError) as error:
            self.give_up(f"does not take requests: {error}")
            return False
        self._pending.add(request.number)
        return True

    def status(self) -> dict[str, object]:
        """Return what there is to know, in JSON's terms."""
        return {
            "state": self.state,
            "reason": self.reason,
            "pid": self.pid,
            "starts": self.counters.starts,
            "deaths": self.counters.deaths,
            "forks": self.counters.forks,
            "refusals": self.counters.refusals,
            "missing_modules": list(self.ready.missing) if self.ready else [],
            "set_aside": list(self.ready.set_aside) if self.ready else [],
            "resident_bytes": self.ready.resident_bytes if self.ready else 0,
            "copied_pages": self.ready.copied_pages if self.ready else 0,
        }

    def give_up(self, reason: str) -> None:
        """End this fork server and start another one after a pause."""
        self.counters.deaths += 1
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
        """Take note that the process was reaped with this wait status."""
        self.pid = 0
        if self._channel is not None:
            # Its last words, such as why it is unfit, may still be unread.
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
            # Ours and not reaped yet, so the number is still its own.
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
            self.give_up(f"sent something unreadable: {error}")
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
            case ForkServerUnfit():
                self.give_up(f"is unfit: {message.reason}")
            case Forked() if message.number in self._pending:
                self._pending.discard(message.number)
                self.counters.forks += 1
                self._on_forked(message.number, message.pid)
            case ForkRefused() if message.number in self._pending:
                self._pending.discard(message.number)
                self.counters.refusals += 1
                self._on_refused(message.number, message.reason)
                # What it refused for will not go away by itself.
                self.give_up(f"refused to fork: {message.reason}")
            case _:
                self.give_up(f"answered a request that was not made: {type(message).__name__}")

    def _set_state(self, state: State, reason: str) -> None:
        self.state, self.reason = state, reason
        self._on_change(state, reason)


def _describe(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"signal {-code}" if code < 0 else f"exit code {code}"
