"""Allow requests to some hosts only, and never to the metadata service of a cloud.

A URL comes from the caller, and the gateway may reach more than the caller does. Addresses are therefore checked twice:
in the URL, and after the name was resolved, because a name of the caller's may have any address.
"""

from __future__ import annotations

import asyncio
import fnmatch
import ipaddress
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import aiohttp
from aiohttp.abc import ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

#: Link-local addresses, where clouds have their metadata service, and the other addresses of such services: AWS over
#: IPv6 (instance metadata, and credentials of pods), Google Cloud over IPv6, Azure's WireServer, Alibaba Cloud, Oracle
#: Cloud. Jobs with a network do not reach them either.
REFUSED_NETWORKS = tuple(
    map(
        ipaddress.ip_network,
        (
            *("169.254.0.0/16", "fe80::/10", "fd00:ec2::/32", "fd20:ce::254"),
            *("168.63.129.16", "100.100.100.200", "192.0.0.192"),
        ),
    )
)

#: Names that are looked up at the same time.
LOOKUPS = 8

#: IPv4 addresses inside of IPv6 ones, by NAT64 (RFC 6052).
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class AddressRefused(OSError):
    """A host has an address to which no request is sent."""


def check_address(address: str) -> None:
    """Check that requests may go to `address`.

    Parameters
    ----------
    address : str
        IPv4 or IPv6, which may have a zone.

    Raises
    ------
    AddressRefused
        The address is link-local or belongs to a metadata service.
    """
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        elif found in _NAT64:
            found = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
    if any(found in network for network in REFUSED_NETWORKS):
        raise AddressRefused(f"{found} is a link-local or metadata address, to which no request is sent")


def refusal(url: URL, patterns: Sequence[str]) -> str | None:
    """Return the reason why no request is sent to `url`, by its text alone.

    Parameters
    ----------
    url : yarl.URL
        With a host.
    patterns : sequence of str
        Allowed hosts, such as ``s3.example.com``, ``*.example.com`` or ``minio:9000``; without a port, any port is
        allowed. Empty allows all hosts.

    Returns
    -------
    str or None
        A sentence without the path and query of the URL; None if it is allowed.
    """
    host = (url.raw_host or "").lower().rstrip(".")
    try:
        # also the older forms of IPv4 addresses, such as 0xa9fea9fe, which the resolver understands
        check_address(host if ":" in host else socket.inet_ntoa(socket.inet_aton(host)))
    except AddressRefused as error:
        return str(error)
    except (OSError, ValueError):
        pass  # it is a name, whose addresses are checked when it is resolved
    if patterns and not any(_matches(host, url.port, pattern.lower()) for pattern in patterns):
        return f"the host {host} is not one of STORAGE_HOSTS"
    return None


class _Lookups:
    """The calls of a loop that a resolver makes, in threads of their own.

    A thread waits as long as a name server is silent, and the few threads of the loop read and write the files of all
    jobs.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(LOOKUPS, thread_name_prefix="gateway-names")

    async def getaddrinfo(self, *arguments: Any, **options: Any) -> Any:
        return await self._call(partial(socket.getaddrinfo, *arguments, **options))

    async def getnameinfo(self, *arguments: Any) -> Any:
        return await self._call(partial(socket.getnameinfo, *arguments))

    async def _call(self, look_up: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, look_up)


class CheckedResolver(ThreadedResolver):
    """Resolves names, and fails for a name that has a refused address."""

    def __init__(self) -> None:
        super().__init__()
        self._loop: Any = _Lookups()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await super().resolve(host, port, family)
        for result in found:
            check_address(result["host"])
        return found


def refused_address(error: Exception) -> AddressRefused | None:
    """Return why a connection was refused here, if it was.

    Parameters
    ----------
    error : Exception
        As aiohttp raised it.

    Returns
    -------
    AddressRefused or None
    """
    inner = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    return inner if isinstance(inner, AddressRefused) else None


def _matches(host: str, port: int | None, pattern: str) -> bool:
    name, separator, number = pattern.rpartition(":")
    if not separator or not number.isdigit():
        name, number = pattern, ""
    return fnmatch.fnmatchcase(host, name.strip("[]")) and number in ("", str(port))
