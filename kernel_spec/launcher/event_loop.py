"""A select loop for one thread: descriptors, timers and ended children, nothing else.

asyncio would do, but the launcher is the one process that may be root: its code should be short enough to be read.
"""

from __future__ import annotations

import heapq
import itertools
import os
import selectors
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

Callback = Callable[[], None]

#: Signals that the launcher ignores.
IGNORED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(slots=True, eq=False)
class Timer:
    """A callback that is due at a time of the monotonic clock."""

    due: float
    order: int
    callback: Callback | None

    def __lt__(self, other: Timer) -> bool:
        return (self.due, self.order) < (other.due, other.order)

    def cancel(self) -> None:
        """Drop the callback; does nothing after it was called."""
        self.callback = None


class Loop:
    """Runs callbacks until `stop`; an exception of a callback ends `run`."""

    def __init__(self) -> None:
        # not epoll: a job of the same user could use up its descriptors (epoll(7), max_user_watches), and end the loop
        self._selector = selectors.PollSelector()
        self._timers: list[Timer] = []
        self._order = itertools.count()
        self._stopped = False
        self._wakeup, self._wakeup_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def watch(self, descriptor: int, callback: Callback) -> None:
        """Call `callback` whenever `descriptor` is readable or at end of file."""
        self._selector.register(descriptor, selectors.EVENT_READ, callback)

    def unwatch(self, descriptor: int) -> None:
        """Stop watching a descriptor; call this before closing it."""
        self._selector.unregister(descriptor)

    def call_later(self, seconds: float, callback: Callback) -> Timer:
        """Call `callback` once, `seconds` from now."""
        timer = Timer(time.monotonic() + seconds, next(self._order), callback)
        heapq.heappush(self._timers, timer)
        return timer

    def on_child_ended(self, callback: Callback) -> None:
        """Call `callback` after SIGCHLD."""

        def drain() -> None:
            if signal.SIGCHLD in os.read(self._wakeup, 4096):
                callback()

        # A handler must exist for the number to be written to the descriptor (signal.set_wakeup_fd).
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(self._wakeup_write, warn_on_full_buffer=False)
        self.watch(self._wakeup, drain)

    def run(self) -> None:
        """Run until `stop` is called."""
        while not self._stopped:
            for key, _ in self._selector.select(self._next_due_seconds()):
                # An earlier callback of this iteration may have closed this descriptor.
                if self._selector.get_map().get(key.fd) is key:
                    key.data()
            self._run_due_timers()

    def stop(self) -> None:
        """Make `run` return after the callbacks of this iteration."""
        self._stopped = True

    def _next_due_seconds(self) -> float | None:
        while self._timers and self._timers[0].callback is None:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0].due - time.monotonic()) if self._timers else None

    def _run_due_timers(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0].due <= now:
            callback = heapq.heappop(self._timers).callback
            if callback is not None:
                callback()
