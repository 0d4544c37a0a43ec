"""An audit hook for jobs with the network: a connect to a denied address fails at once, with the reason.

The socket broker (`kernel_spec.sandbox.egress.socket_broker`) drops the packets of such connections, so a caller would
wait for its timeout. This audit hook (PEP 578) gets the address that Python code passes to connect. It does not get
connections of C libraries and of programs that a job starts, nor those to the machine's other addresses; these time
out.
"""

from __future__ import annotations

import errno
import ipaddress
from typing import Any

from kernel_spec.sandbox.egress.denied_addresses import DNS_PORT, is_denied, nameservers


def connect_audit_hook(event: str, arguments: tuple[Any, ...]) -> None:
    """Raise PermissionError for a connect to loopback, link-local and cloud metadata addresses."""
    if event != "socket.connect":
        return
    address = arguments[1]
    if not isinstance(address, tuple) or len(address) < 2 or not isinstance(address[0], str):
        return
    try:
        host = ipaddress.ip_address(address[0].partition("%")[0])
    except ValueError:
        return  # a name, which the C library resolves
    if isinstance(host, ipaddress.IPv6Address) and host.ipv4_mapped is not None:
        host = host.ipv4_mapped
    if address[1] == DNS_PORT and host in nameservers():
        return
    if is_denied(host):
        raise PermissionError(
            errno.EACCES, f"jobs may not connect to {host}: this machine and link-local addresses are denied"
        )
