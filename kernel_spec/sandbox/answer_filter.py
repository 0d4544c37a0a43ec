"""A fence around a TCP socket: a packet filter that drops each answer from this machine and from its link.

A connection needs an answer to its first packet, and a classic BPF program on the socket (socket(7), SO_ATTACH_FILTER)
sees each packet before TCP does. It drops those whose *sender* is out of bounds. SO_LOCK_FILTER keeps it there for
good, and sockets that are accepted inherit it.

All traffic of a machine with itself, to whichever of its addresses, arrives on the loopback device; so one look covers
127.0.0.0/8, ::1, 0.0.0.0 and the machine's own addresses, those it gets later included.

Most kernels let everybody attach such a filter, some (seen: 6.18.44) ask for CAP_NET_ADMIN; see `signed_peers` then.
"""

from __future__ import annotations

import ctypes
import ipaddress
import socket
import struct
from collections.abc import Iterable
from typing import Final

from kernel_spec.sandbox.out_of_bounds import DNS_PORT, LINK, LOOPBACK, Address, Network

SO_ATTACH_FILTER: Final = 26
SO_LOCK_FILTER: Final = 44

_LOOPBACK_INTERFACE: Final = 1  # LOOPBACK_IFINDEX of the kernel, in each network namespace

# Classic BPF, linux/filter.h and linux/bpf_common.h.
_LOAD_WORD: Final = 0x20
_LOAD_HALF: Final = 0x28
_LOAD_BYTE: Final = 0x30
_AND: Final = 0x54
_SHIFT_RIGHT: Final = 0x74
_JUMP_EQUAL: Final = 0x15
_RETURN: Final = 0x06
_NETWORK_HEADER: Final = 0xFFF00000  # SKF_NET_OFF
_INTERFACE: Final = 0xFFFFF000 + 8  # SKF_AD_OFF + SKF_AD_IFINDEX
_DROP: Final = 0
_KEEP: Final = 0xFFFFFFFF
# Where the sender's address begins in a header of this version.
_SENDER: Final = {4: 12, 6: 8}

_Block = list[tuple[int, int, int, int]]


def program(may_answer: Iterable[Address]) -> bytes:
    """Return the filter as struct sock_filter instructions.

    Parameters
    ----------
    may_answer
        Name servers: answers from their port 53 are kept wherever they come from.
    """
    allowed = tuple(may_answer)
    four, six = (_of_version(version, allowed) for version in (4, 6))
    code: _Block = [(_LOAD_BYTE, 0, 0, _NETWORK_HEADER), (_SHIFT_RIGHT, 0, 0, 4)]
    # Version four is short enough for one jump over it; what is neither does not carry TCP.
    code += [(_JUMP_EQUAL, 0, len(four), 4), *four, (_JUMP_EQUAL, 1, 0, 6), (_RETURN, 0, 0, _DROP), *six]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def attach(to: socket.socket, filter_program: bytes) -> None:
    """Put the filter on a socket for good.

    Raises
    ------
    OSError
        The kernel refused; the socket must not be used.
    """
    code = ctypes.create_string_buffer(filter_program, len(filter_program))
    header = struct.pack("@HP", len(filter_program) // 8, ctypes.addressof(code))
    to.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, header)
    to.setsockopt(socket.SOL_SOCKET, SO_LOCK_FILTER, 1)


def _of_version(version: int, may_answer: tuple[Address, ...]) -> _Block:
    block: _Block = []
    for address in may_answer:
        if address.version == version:
            block += _match(ipaddress.ip_network(address), _if_from_dns())
    for network in (*LINK, *LOOPBACK):
        if network.version == version:
            block += _match(network, [(_RETURN, 0, 0, _DROP)])
    here: _Block = [(_LOAD_WORD, 0, 0, _INTERFACE), (_JUMP_EQUAL, 0, 1, _LOOPBACK_INTERFACE), (_RETURN, 0, 0, _DROP)]
    return [*block, *here, (_RETURN, 0, 0, _KEEP)]


def _if_from_dns() -> _Block:
    """Return a block that ends: the packet begins with the TCP header, and that with the sender's port."""
    return [(_LOAD_HALF, 0, 0, 0), (_JUMP_EQUAL, 0, 1, DNS_PORT), (_RETURN, 0, 0, _KEEP), (_RETURN, 0, 0, _DROP)]


def _match(network: Network, then: _Block) -> _Block:
    """Run `then`, which ends, when the sender is in the network."""
    wanted, mask = network.network_address.packed, network.netmask.packed
    block = then
    # Backwards, because each comparison jumps over all that comes behind it.
    for at in reversed(range(0, len(wanted), 4)):
        word, bits = (int.from_bytes(part[at : at + 4], "big") for part in (wanted, mask))
        if bits:
            place = _NETWORK_HEADER + _SENDER[network.version] + at
            load: _Block = [(_LOAD_WORD, 0, 0, place), (_AND, 0, 0, bits)]
            block = [*load, (_JUMP_EQUAL, 0, len(block), word), *block]
    return block
