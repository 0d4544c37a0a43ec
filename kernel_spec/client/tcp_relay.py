"""A relay from TCP ports to a kernel's unix sockets, for front ends that speak only tcp.

ZeroMQ's protocol is the same over tcp and ipc, so the relay need not understand it. It listens where the front end
expects it, on the loopback interface as every Jupyter kernel does, and each connection becomes one to the kernel's
socket. The kernel itself still has no network. Messages are signed with the connection file's key, as always.
"""

from __future__ import annotations

import contextlib
import ipaddress
import selectors
import socket
import threading
from collections.abc import Callable, Iterator, Mapping

_BLOCK_BYTES = 1 << 18


@contextlib.contextmanager
def relayed(ip: str, sockets: Mapping[int, str]) -> Iterator[Callable[[], None]]:
    """Listen on TCP ports until the end of the block.

    Parameters
    ----------
    ip : str
        A loopback address.
    sockets : mapping of int to str
        For each port the path of a unix socket.

    Yields
    ------
    callable
        To be called once, when those sockets exist; earlier connections wait.

    Raises
    ------
    ValueError
        `ip` is not a loopback address.
    OSError
        A port is taken.
    """
    if not ipaddress.ip_address(ip).is_loopback:
        raise ValueError(f"this kernel listens on a loopback address only, not on {ip}")
    relay = _Relay()
    try:
        for port, path in sockets.items():
            relay.listen(ip, port, path)
        yield relay.start
    finally:
        relay.stop()


class _Pair:
    """One direction of a connection: the bytes that were read from `source` and not yet written to `target`."""

    def __init__(self, source: socket.socket, target: socket.socket) -> None:
        self.source, self.target = source, target
        self.waiting = bytearray()


class _Relay:
    """A thread that moves bytes; a slow reader blocks only its own writer."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._listeners: dict[socket.socket, str] = {}
        self._from: dict[socket.socket, _Pair] = {}
        self._wake, self._waker = socket.socketpair()
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)

    def listen(self, ip: str, port: int, path: str) -> None:
        listener = socket.create_server((ip, port), family=socket.AF_INET6 if ":" in ip else socket.AF_INET)
        listener.setblocking(False)
        self._listeners[listener] = path
        self._selector.register(listener, selectors.EVENT_READ)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Close everything; safe when it was never started."""
        self._waker.close()
        if self._thread.ident is not None:
            self._thread.join()
        for endpoint in (self._wake, *self._listeners, *self._from):
            endpoint.close()
        self._selector.close()

    def _run(self) -> None:
        while True:
            for key, events in self._selector.select():
                endpoint = key.fileobj
                if endpoint is self._wake:
                    return
                if not isinstance(endpoint, socket.socket):
                    continue
                if endpoint in self._listeners:
                    self._accept(endpoint)
                elif endpoint in self._from:  # an earlier event of this iteration may have closed it
                    self._move(endpoint, events)

    def _accept(self, listener: socket.socket) -> None:
        try:
            outer, _ = listener.accept()
        except OSError:
            return  # the client has closed it already
        inner = socket.socket(socket.AF_UNIX)
        try:
            inner.connect(self._listeners[listener])
        except OSError:
            # the kernel is ending; libzmq tries again
            inner.close()
            outer.close()
            return
        outer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for source, target in ((outer, inner), (inner, outer)):
            source.setblocking(False)
            self._from[source] = _Pair(source, target)
            self._selector.register(source, selectors.EVENT_READ)

    def _move(self, endpoint: socket.socket, events: int) -> None:
        out, back = self._from[endpoint], self._from[self._from[endpoint].target]
        try:
            if events & selectors.EVENT_READ and not out.waiting:
                data = endpoint.recv(_BLOCK_BYTES)
                if not data:
                    raise ConnectionResetError
                out.waiting += data
                self._write(out)
            if events & selectors.EVENT_WRITE:
                self._write(back)
        except BlockingIOError:
            return
        except OSError:
            self._close(out)
            return
        self._watch(out, back)

    @staticmethod
    def _write(pair: _Pair) -> None:
        with contextlib.suppress(BlockingIOError):
            while pair.waiting:
                del pair.waiting[: pair.target.send(pair.waiting)]

    def _watch(self, one: _Pair, other: _Pair) -> None:
        """Read only if all earlier bytes were written, and wait for writability only if bytes are left."""
        for pair, back in ((one, other), (other, one)):
            wanted = (0 if pair.waiting else selectors.EVENT_READ) | (selectors.EVENT_WRITE if back.waiting else 0)
            registered = pair.source in self._selector.get_map()
            if wanted and registered:
                self._selector.modify(pair.source, wanted)
            elif wanted:
                self._selector.register(pair.source, wanted)
            elif registered:
                self._selector.unregister(pair.source)

    def _close(self, pair: _Pair) -> None:
        for endpoint in (pair.source, pair.target):
            if endpoint in self._selector.get_map():
                self._selector.unregister(endpoint)
            del self._from[endpoint]
            endpoint.close()
