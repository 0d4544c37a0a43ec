"""Ports that are known before their server listens."""

from __future__ import annotations

import secrets
import socket
from pathlib import Path

#: Lower ones are those of well-known services.
FIRST = 20_000


def free_port() -> int:
    """Return a TCP port of loopback on which nothing listens, for this process alone until it ends.

    A port that the system chooses and that is closed again may become the own port of any connection, even of one to
    this port while nothing listens there. So this one is not among those that the system chooses from, unless these are
    nearly all. A UDP socket on the same number, which stays open, reserves it: no server of the tests uses UDP.
    """
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    ports = [*range(FIRST, low), *range(max(high + 1, FIRST), 65_536)] or [*range(FIRST, 65_536)]
    while True:
        port = secrets.choice(ports)
        with socket.socket(type=socket.SOCK_DGRAM) as reservation, socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                reservation.bind(("127.0.0.1", port))
                probe.bind(("", port))
            except OSError:
                continue
            reservation.detach()
            return port
