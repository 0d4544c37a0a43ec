"""A select loop for one thread: descriptors, timers and ended children, nothing else.

asyncio would do, but the launcher is the one process that may be root: it should be possible to read all of it.
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


@dataclass(slots=True, eq=False)
class Timer:
    """A call that is due; `cancel` makes it never happen."""

    due: float
    order: int
    callback: Callback | None

    def __lt__(self, other: Timer) -> bool:
        return (self.due, self.order) < (other.due, other.order)

    def cancel(self) -> None:
        """Forget the call; harmless when it has happened."""
        self.callback = None


class Loop:
    """Runs callbacks until `stop`; a callback that raises ends `run` with its error."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[Timer] = []
        self._order = itertools.count()
        self._stopped = False
        self._wakeup, self._wakeup_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def watch(self, descriptor: int, callback: Callback) -> None:
        """Call `callback` whenever `descriptor` is readable or at its end."""
        self._selector.register(descriptor, selectors.EVENT_READ, callback)

    def unwatch(self, descriptor: int) -> None:
        """Stop watching; to be called before the descriptor is closed."""
        self._selector.unregister(descriptor)

    def call_later(self, seconds: float, callback: Callback) -> Timer:
        """Call `callback` once, `seconds` from now."""
        timer = Timer(time.monotonic() + seconds, next(self._order), callback)
        heapq.heappush(self._timers, timer)
        return timer

    def on_signals(self, child_ended: Callback, terminate: Callback) -> None:
        """Call back, from the loop, after SIGCHLD and after SIGTERM, SIGINT or SIGHUP."""

        def drain() -> None:
            numbers = os.read(self._wakeup, 4096)
            if signal.SIGCHLD in numbers:
                child_ended()
            if any(number in numbers for number in _ENDING_SIGNALS):
                terminate()

        # A handler must exist for the number to be written to the descriptor (signal.set_wakeup_fd).
        for number in (signal.SIGCHLD, *_ENDING_SIGNALS):
            signal.signal(number, lambda _number, _frame: None)
        signal.set_wakeup_fd(self._wakeup_write, warn_on_full_buffer=False)
        self.watch(self._wakeup, drain)

    def run(self) -> None:
        """Run until `stop` is called."""
        while not self._stopped:
            for key, _ in self._selector.select(self._next_due_seconds()):
                # An earlier callback of this round may have closed this descriptor.
                if self._selector.get_map().get(key.fd) is key:
                    key.data()
            self._run_due_timers()

    def stop(self) -> None:
        """Make `run` return after the callbacks of this round."""
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


_ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
