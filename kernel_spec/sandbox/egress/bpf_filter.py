"""The egress filter of a TCP socket: it drops each answer from this machine and from its link.

A connection needs an answer to its first packet, and a classic BPF program on the socket (socket(7), SO_ATTACH_FILTER)
tests each packet before TCP gets it. It drops those whose *sender* is a denied address. SO_LOCK_FILTER makes it
permanent, and accepted sockets inherit it.

All traffic of a machine with itself, to any of its addresses, arrives on the loopback device; so one test covers
127.0.0.0/8, ::1, 0.0.0.0 and the machine's own addresses, also those that it gets later.

Linux lets every process attach such a filter until commit 5d39580f68e6 (2026; also in stable releases, seen in
6.18.44), which requires CAP_NET_ADMIN on a TCP socket. `tcp_md5` replaces it there.
"""

from __future__ import annotations

import ctypes
import ipaddress
import socket
import struct
from collections.abc import Iterable
from typing import Final

from kernel_spec.linux import bpf
from kernel_spec.linux.bpf import Block
from kernel_spec.sandbox.egress.denied_addresses import DNS_PORT, LINK, LOOPBACK, Address, Network

SO_ATTACH_FILTER: Final = 26
SO_LOCK_FILTER: Final = 44

#: LOOPBACK_IFINDEX of Linux, in each network namespace.
_LOOPBACK_INTERFACE: Final = 1

#: SKF_NET_OFF and SKF_AD_OFF + SKF_AD_IFINDEX of linux/filter.h.
_NETWORK_HEADER: Final = 0xFFF00000
_INTERFACE: Final = 0xFFFFF000 + 8
_DROP: Final = 0
_KEEP: Final = 0xFFFFFFFF
#: Offset of the sender's address in the header of each IP version.
_SENDER: Final = {4: 12, 6: 8}


def program(may_answer: Iterable[Address]) -> bytes:
    """Return the filter.

    Parameters
    ----------
    may_answer : iterable of Address
        Name servers: answers from their port 53 are kept, even from denied addresses.

    Returns
    -------
    bytes
        Instructions, see `kernel_spec.linux.bpf.assemble`.
    """
    allowed = tuple(may_answer)
    four, six = (_of_version(version, allowed) for version in (4, 6))
    # Version four is short enough for one jump over it; any other protocol does not carry TCP.
    code = [bpf.load_byte(_NETWORK_HEADER), bpf.shift_right(4), *bpf.if_equal(4, four)]
    return bpf.assemble([*code, *bpf.unless_equal(6, [bpf.end(_DROP)]), *six])


def attach(to: socket.socket, filter_program: bytes) -> None:
    """Put the filter on a socket for good.

    Parameters
    ----------
    to : socket.socket
        A TCP socket that is not connected.
    filter_program : bytes
        From `program`.

    Raises
    ------
    OSError
        Linux refused; the socket must not be used.
    """
    code = ctypes.create_string_buffer(filter_program, len(filter_program))
    header = struct.pack("@HP", len(filter_program) // 8, ctypes.addressof(code))
    to.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, header)
    to.setsockopt(socket.SOL_SOCKET, SO_LOCK_FILTER, 1)


def _of_version(version: int, may_answer: tuple[Address, ...]) -> Block:
    """Return a block that always ends, for packets of one IP version."""
    block: Block = []
    for address in may_answer:
        if address.version == version:
            block += _if_from(ipaddress.ip_network(address), _keep_dns_only())
    for network in (*LINK, *LOOPBACK):
        if network.version == version:
            block += _if_from(network, [bpf.end(_DROP)])
    return [
        *block,
        bpf.load(_INTERFACE),
        *bpf.if_equal(_LOOPBACK_INTERFACE, [bpf.end(_DROP)]),
        bpf.end(_KEEP),
    ]


def _keep_dns_only() -> Block:
    """Return a block that always ends: a packet begins with the TCP header, and that with the sender's port."""
    return [bpf.load_half(0), *bpf.by_value({DNS_PORT: _KEEP}, _DROP)]


def _if_from(network: Network, block: Block) -> Block:
    """Run the block, which always ends, if the sender is in the network."""
    wanted, mask = network.network_address.packed, network.netmask.packed
    # Backwards, because each comparison jumps over everything that follows it.
    for at in reversed(range(0, len(wanted), 4)):
        word, bits = (int.from_bytes(part[at : at + 4], "big") for part in (wanted, mask))
        if bits:
            place = _NETWORK_HEADER + _SENDER[network.version] + at
            block = [bpf.load(place), bpf.keep_bits(bits), *bpf.if_equal(word, block)]
    return block
