"""Interrupts for a main thread that is about to wait in a system call."""

from __future__ import annotations

import os
import signal
import threading
from asyncio import AbstractEventLoop

#: The first pause is too short to be noticed. The others are for a main thread that was not scheduled meanwhile.
_PAUSES_SECONDS = (0.01, 0.1, 1)


def wake_main_thread(loop: AbstractEventLoop) -> None:
    """Make each interrupt end the system call in which the main thread waits. Call this in the main thread.

    CPython's C handler of a signal only sets a flag, and the main thread runs the Python handler before its next
    bytecode. An interrupt between the last bytecode and the system call of ``time.sleep(1000)`` is therefore lost for
    1,000 s, and so is one that Linux delivers to another thread (1 of 1,000 interrupts on busy cores). So a thread
    that is told of each signal (`signal.set_wakeup_fd`) sends another signal to the main thread. Its handler does
    nothing, but the system call ends with EINTR, and Python runs the waiting handler before it repeats the call
    (PEP 475).

    Parameters
    ----------
    loop : AbstractEventLoop
        A loop of another thread, which has not started yet.
    """
    readable, writable = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    main_thread = threading.get_ident()

    def on_signals() -> None:
        if signal.SIGINT in os.read(readable, 4096):
            for pause_seconds in _PAUSES_SECONDS:
                loop.call_later(pause_seconds, signal.pthread_kill, main_thread, signal.SIGURG)

    # By default a process ignores this signal, so none is lost that a library waits for.
    signal.signal(signal.SIGURG, lambda _number, _frame: None)
    loop.add_reader(readable, on_signals)
    signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
