"""The machine on which a process of a test runs: on this machine, or on one that `tests.gateway.cluster.faults.network` makes."""

from __future__ import annotations

import socket


class Machine:
    """This machine.

    Attributes
    ----------
    prefix : tuple of str
        Goes before a command line to run it there.
    host : str
        Name or address by which the members of a cluster reach a broker there.
    address, storage_address : str
        What a broker and a storage listen on.
    """

    prefix: tuple[str, ...] = ()
    host = "localhost"
    address = storage_address = "127.0.0.1"

    def connect(self, address: str, port: int, timeout: float = 60) -> socket.socket:
        """Return a connection that begins there."""
        made = socket.create_connection((address, port), timeout)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    def listen(self, address: str) -> socket.socket:
        """Return a server's socket there."""
        return socket.create_server((address, 0), backlog=64)


HERE = Machine()
