"""Addresses of servers: the URL for an address that a server listens on."""

from __future__ import annotations

import ipaddress

#: Address at which this machine reaches a server that listens on all addresses.
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
    return f"{scheme}://{authority(local_host(host), port)}"


def authority(host: str, port: int | str) -> str:
    """Return host and port as in a URL; an empty host, which means all addresses, is ``[::]``."""
    host = host or "::"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
