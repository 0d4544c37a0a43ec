"""Accept connections, and pause while the process or the machine has no more descriptors.

Tornado's own accept handler raises when accept(2) does. The connection stays in the backlog, so the loop calls it again
at once: a traceback in each iteration, 2 to 7 MB of log a second, and a core that does nothing else (measured).
"""

from __future__ import annotations

import errno
import logging
import socket
import time
from collections.abc import Callable
from typing import Any

from tornado.ioloop import IOLoop

log = logging.getLogger(__name__)

#: Errors of accept(2) that pass only when something else closes a descriptor or frees memory.
EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

PAUSE_SECONDS = 0.1

#: Connections that are accepted in one iteration of the loop, so that requests in progress have their turn as well.
ACCEPTS_PER_TURN = 64

#: Time between two log lines about the same shortage.
LOG_SECONDS = 60.0


class Listener:
    """Accepts the connections of one socket until `close`.

    Parameters
    ----------
    sock : socket
        Listens, does not block, and stays the caller's.
    on_connection : callable
        Called with each connection and its address.
    on_exhausted : callable
        Called when there is no descriptor for a connection; it may close one.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_connection: Callable[[socket.socket, Any], None],
        on_exhausted: Callable[[], object],
    ) -> None:
        self._socket = sock
        self._on_connection = on_connection
        self._on_exhausted = on_exhausted
        self._loop = IOLoop.current()
        self._pause: object = None
        self._next_log_at = 0.0
        self._resume()

    def close(self) -> None:
        """Accept the connections that wait, and then no more."""
        self._end_pause()
        self._accept(self._socket, 0)  # which pauses again if there are no descriptors
        self._loop.remove_handler(self._socket)
        self._end_pause()

    def _end_pause(self) -> None:
        if self._pause is not None:
            self._loop.remove_timeout(self._pause)
            self._pause = None

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_handler(self._socket, self._accept, IOLoop.READ)

    def _accept(self, _socket: socket.socket, _events: int) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                connection, address = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                # others are faults of the connection that waits, such as ECONNABORTED, and accept(2) drops it
                if error.errno in EXHAUSTED:
                    self._wait(error)
                    return
                continue
            self._on_connection(connection, address)

    def _wait(self, error: OSError) -> None:
        self._loop.remove_handler(self._socket)
        self._pause = self._loop.call_later(PAUSE_SECONDS, self._resume)
        if time.monotonic() >= self._next_log_at:
            self._next_log_at = time.monotonic() + LOG_SECONDS
            log.error("no connection can be accepted: %s; trying again every %g s", error.strerror, PAUSE_SECONDS)
        self._on_exhausted()
