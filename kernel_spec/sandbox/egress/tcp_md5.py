"""The egress filter of a TCP socket where `bpf_filter` needs CAP_NET_ADMIN: denied addresses would have to sign.

TCP lets a socket demand that the segments of certain peers carry a signature (RFC 2385, TCP_MD5SIG_EXT with a prefix,
Linux 4.13; made for routers, and needs no privilege). A peer without the key drops the segments of this socket, and the
socket drops those of the peer, so no connection is established. The key is random and is not kept. The filter of system
calls keeps a job from changing it.

It is weaker than `bpf_filter` in two ways. The machine's own addresses are those that it had when the socket was made.
And it cannot look at ports: a name server at a denied address (127.0.0.11 in Docker's own networks, 127.0.0.53) cannot
be reached, so names are not found.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Final

from kernel_spec.sandbox.egress.denied_addresses import LINK, LOOPBACK, Network, own_networks

TCP_MD5SIG_EXT: Final = 32
_FLAG_PREFIX: Final = 1
_KEY_BYTES: Final = 16
_ADDRESS_BYTES: Final = 128  # struct sockaddr_storage
_MAPPED: Final = b"\0" * 10 + b"\xff\xff"


def attach(to: socket.socket) -> None:
    """Demand signatures from every denied address.

    Raises
    ------
    OSError
        Linux has no CONFIG_TCP_MD5SIG, or the machine's addresses are unknown; the socket must not be used.
    """
    for network in dict.fromkeys((*LINK, *LOOPBACK, *own_networks())):
        if network.version == 4 or to.family == socket.AF_INET6:
            to.setsockopt(socket.IPPROTO_TCP, TCP_MD5SIG_EXT, _demand(to.family, network))


def _demand(family: int, network: Network) -> bytes:
    """Return struct tcp_md5sig; a socket of version six takes addresses of version four as mapped ones."""
    packed = network.network_address.packed
    if family == socket.AF_INET:
        address = struct.pack("=HH4s", family, 0, packed)
    else:
        address = struct.pack("=HHI16s", family, 0, 0, packed if network.version == 6 else _MAPPED + packed)
    return address.ljust(_ADDRESS_BYTES, b"\0") + struct.pack(
        "=BBHi80s", _FLAG_PREFIX, network.prefixlen, _KEY_BYTES, 0, os.urandom(_KEY_BYTES)
    )
