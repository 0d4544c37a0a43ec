"""A courtesy to jobs that have the network: a connect to where none leads fails at once, and says why.

What keeps such connections from coming about (`kernel_spec.sandbox.network_policy`) drops packets, so a caller would
wait for its time-out. This audit hook (PEP 578) sees the address that Python code hands to connect. Libraries written
in C, programs that a job starts, and connections to the machine's own other addresses are not seen, and time out.
"""

from __future__ import annotations

import errno
import ipaddress
from typing import Any

from kernel_spec.sandbox.out_of_bounds import DNS_PORT, is_closed, nameservers


def refuse_local_addresses(event: str, arguments: tuple[Any, ...]) -> None:
    """Raise PermissionError for a connect to loopback, link-local and cloud metadata addresses."""
    if event != "socket.connect":
        return
    address = arguments[1]
    if not isinstance(address, tuple) or len(address) < 2 or not isinstance(address[0], str):
        return
    try:
        host = ipaddress.ip_address(address[0].partition("%")[0])
    except ValueError:
        return  # a name; what it stands for is looked up by the C library
    if isinstance(host, ipaddress.IPv6Address) and host.ipv4_mapped is not None:
        host = host.ipv4_mapped
    if address[1] == DNS_PORT and host in nameservers():
        return
    if is_closed(host):
        raise PermissionError(
            errno.EACCES, f"jobs may not connect to {host}: addresses of this machine and link-local ones are closed"
        )
