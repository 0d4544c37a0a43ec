"""The addresses that jobs may not reach: this machine, its link, cloud metadata; and the name servers."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

DNS_PORT: Final = 53

#: Link-local addresses, where clouds have their metadata service, which hands out the credentials of the machine, and
#: the other addresses of such services: Alibaba Cloud, Azure's WireServer, Oracle Cloud, AWS over IPv6 (instance
#: metadata, and credentials of pods), Google Cloud over IPv6. `gateway.storage.objects.hosts` has the same list.
METADATA: Final[tuple[Network, ...]] = tuple(
    ipaddress.ip_network(text)
    for text in (
        *("169.254.0.0/16", "fe80::/10"),
        *("100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::/32", "fd20:ce::254"),
    )
)
#: The same and link-local addresses behind a translator (NAT64, RFC 6052).
LINK: Final[tuple[Network, ...]] = (*METADATA, ipaddress.ip_network("64:ff9b::a9fe:0/112"))
LOOPBACK: Final[tuple[Network, ...]] = tuple(
    ipaddress.ip_network(text) for text in ("127.0.0.0/8", "0.0.0.0/8", "::1", "::", "64:ff9b::7f00:0/104")
)

_MOST_NAMESERVERS: Final = 3  # resolv.conf(5), MAXNS


def is_denied(address: Address) -> bool:
    """Return whether no job may reach the address, on any machine."""
    return any(address in network for network in (*LINK, *LOOPBACK))


def nameservers(resolv_conf: Path = Path("/etc/resolv.conf")) -> tuple[Address, ...]:
    """Return the name servers of the C library; without a file it asks this machine, resolv.conf(5)."""
    found: list[Address] = []
    try:
        lines = resolv_conf.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        try:
            found.append(ipaddress.ip_address(words[1].partition("%")[0]))
        except ValueError:
            continue
    return tuple(found[:_MOST_NAMESERVERS]) or (ipaddress.IPv4Address("127.0.0.1"),)


def own_networks() -> tuple[Network, ...]:
    """Return the machine's own addresses, those that the network namespace delivers to itself, as networks.

    Raises
    ------
    OSError
        The tables of Linux cannot be read, so the addresses are unknown.
    """
    proc_net = Path("/proc/self/net")
    return tuple(dict.fromkeys((*_own_version_four(proc_net / "fib_trie"), *_own_version_six(proc_net / "if_inet6"))))


def _own_version_four(fib_trie: Path) -> Iterator[Network]:
    """Read the routes of type LOCAL: below each address, one line for each prefix length."""
    address = ""
    for line in fib_trie.read_text().splitlines():
        words = line.split()
        if words and words[0] in ("|--", "+--"):
            address = words[1]
        elif len(words) >= 3 and words[0].startswith("/") and words[-1] == "LOCAL":
            yield ipaddress.ip_network(f"{address}{words[0]}", strict=False)


def _own_version_six(if_inet6: Path) -> Iterator[Network]:
    try:
        lines = if_inet6.read_text().splitlines()
    except FileNotFoundError:  # IPv6 is off
        return
    for line in lines:
        yield ipaddress.ip_network(int(line.split()[0], 16).to_bytes(16, "big"))
