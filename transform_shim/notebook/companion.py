"""The kernel's end of the socket to its companion: the process outside of the sandbox that fetches and runs for it.

A message is a uint32 (network order) and that many bytes of JSON; `gateway.companion.protocol` names the requests. One
request is under way at a time. Ctrl-C cancels it there and waits for its end; a second one stops waiting.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

from transform_shim.notebook.errors import NotebookError

__all__ = ["Companion", "connect"]

_DESCRIPTOR_VARIABLE = "TRANSFORM_COMPANION_FD"
_LENGTH = struct.Struct("!I")
_BLOCK_BYTES = 1 << 18
#: Seconds between two checks for Ctrl-C.
_LOOK_SECONDS = 0.1
_NOBODY = (
    "this needs the companion of a notebook or console on the kernel `transform`; this process has no companion"
    " (a job never has one)"
)

OnEvent = Callable[[dict[str, Any]], None]


class Companion:
    """Requests to the companion; owns the socket."""

    def __init__(self, endpoint: socket.socket) -> None:
        self._socket = endpoint
        self._pid = os.getpid()
        self._ids = itertools.count(1)
        self._lock = threading.RLock()
        self._unwanted: list[int] = []
        self._received = bytearray()

    def ask(self, op: str, on_event: OnEvent | None = None, descriptor: int | None = None, **fields: Any) -> Any:
        """Send a request and return its result.

        Parameters
        ----------
        op : str
            Name of the request.
        on_event : callable, optional
            Called with each event that comes before the result.
        descriptor : int, optional
            Sent with the request; the caller's copy stays open.
        **fields
            Fields of the request.

        Raises
        ------
        NotebookError
            The request failed, with the companion's text, or the companion is gone.
        KeyboardInterrupt
            The request was cancelled.
        """
        if os.getpid() != self._pid:
            raise NotebookError("only the notebook's own process can ask its companion, not a child of it")
        with self._lock:
            self._forget_unwanted()
            return self._ask(op, on_event or (lambda event: None), descriptor, fields)

    def unwanted(self, number: int) -> None:
        """Let the companion remove the files that it keeps under this number, at the next request.

        The garbage collector calls this, at any moment and in any thread.
        """
        self._unwanted.append(number)

    def _forget_unwanted(self) -> None:
        if self._unwanted:
            numbers, self._unwanted = self._unwanted, []
            self._ask("forget", lambda event: None, None, {"numbers": numbers})

    def _ask(self, op: str, on_event: OnEvent, descriptor: int | None, fields: dict[str, Any]) -> Any:
        request_id = next(self._ids)
        try:
            with _counted_interrupts() as interrupts:
                self._send({"id": request_id, "op": op, **fields}, descriptor)
                answer = self._answer(request_id, on_event, interrupts)
        except (BrokenPipeError, ConnectionResetError, EOFError):
            text = "the companion of this notebook is gone; restart the kernel. Its messages are in Jupyter's log"
            raise NotebookError(text) from None
        if answer["event"] == "done":
            return answer["result"]
        if answer.get("cancelled"):
            raise KeyboardInterrupt
        raise NotebookError(answer["message"])

    def _answer(self, request_id: int, on_event: OnEvent, interrupts: list[int]) -> dict[str, Any]:
        is_cancelled = False
        while True:
            for message in self._messages():
                if message["id"] != request_id:
                    continue  # of a request that was given up
                if message["event"] in ("done", "error"):
                    return message
                on_event(message)
            if len(interrupts) > 1:
                raise KeyboardInterrupt
            if interrupts and not is_cancelled:
                is_cancelled = True
                self._send({"id": request_id, "op": "cancel"})
            if select.select([self._socket], [], [], _LOOK_SECONDS)[0]:
                data = self._socket.recv(_BLOCK_BYTES)
                if not data:
                    raise EOFError
                self._received += data

    def _messages(self) -> Iterator[dict[str, Any]]:
        """Yield the complete messages that have arrived; the rest stays in the buffer."""
        while len(self._received) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._received)[0]
            if len(self._received) < end:
                return
            message: dict[str, Any] = json.loads(self._received[_LENGTH.size : end])
            del self._received[:end]
            yield message

    def _send(self, message: dict[str, Any], descriptor: int | None = None) -> None:
        # escaped, so that a lone surrogate in a script gets through as it would in any JSON
        body = json.dumps(message).encode()
        data = memoryview(_LENGTH.pack(len(body)) + body)
        if descriptor is not None:
            data = data[socket.send_fds(self._socket, [data], [descriptor]) :]
        self._socket.sendall(data)


@contextlib.contextmanager
def _counted_interrupts() -> Iterator[list[int]]:
    """Collect Ctrl-C in a list: an exception at any moment could cut a message in two, sent or received."""
    interrupts: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, lambda number, _: interrupts.append(number))
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)


_connected: Companion | None = None


def connect() -> Companion:
    """Return the socket to this kernel's companion.

    Raises
    ------
    NotebookError
        This is not the kernel of a notebook.
    """
    global _connected
    if _connected is None:
        descriptor = os.environ.get(_DESCRIPTOR_VARIABLE)
        if descriptor is None:
            raise NotebookError(_NOBODY)
        try:
            endpoint = socket.socket(fileno=int(descriptor))
            endpoint.set_inheritable(False)
        except (OSError, ValueError):
            raise NotebookError(_NOBODY) from None
        _connected = Companion(endpoint)
    return _connected
