"""Signals of the gateway: the first one drains, a second interrupt ends the drain, and SIGHUP may read files again."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

_early: list[int] = []


def keep_hangups() -> None:
    """Let a SIGHUP of the start wait until the gateway can read its files again.

    It would end the process, and systemd does not start a service again that SIGHUP ended. With nohup it stays ignored.
    """
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda number, _frame: _early.append(number))


class StopSignals:
    """Turns signals into events of the running loop.

    Attributes
    ----------
    stop : asyncio.Event
        Set by SIGTERM or SIGINT, and by SIGHUP if there is nothing to read again, except after nohup(1).
    hurry : asyncio.Event
        Set by a SIGINT that follows another of these signals.
    """

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.hurry = asyncio.Event()

    def install(self, on_hangup: Callable[[], None] | None = None) -> None:
        """Handle the signals in the running loop from now on.

        Parameters
        ----------
        on_hangup : callable, optional
            Called at SIGHUP. Without it SIGHUP drains, because the end of a terminal sends it.
        """
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.stop.set)
        loop.add_signal_handler(signal.SIGINT, self._interrupt)
        if on_hangup is not None or signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            hang_up = on_hangup or self.stop.set
            loop.add_signal_handler(signal.SIGHUP, hang_up)
            if _early:
                hang_up()

    def _interrupt(self) -> None:
        if self.stop.is_set():
            self.hurry.set()
        self.stop.set()
