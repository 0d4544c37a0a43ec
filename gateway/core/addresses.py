"""Addresses of servers: from where one listens to where it is reached."""

from __future__ import annotations

import ipaddress

#: Where a server that listens on all addresses is reached from this machine.
_WILDCARDS = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - to connect to, not to listen on


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a server that listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def local_host(host: str) -> str:
    """Return the address at which this machine reaches a server that listens on `host`."""
    return _WILDCARDS.get(host, host)


def local_url(host: str, port: int | str, scheme: str = "http") -> str:
    """Return the URL at which this machine reaches a server that listens on `host` and `port`."""
    name = local_host(host)
    return f"{scheme}://[{name}]:{port}" if ":" in name else f"{scheme}://{name}:{port}"
