"""Machines in network namespaces of their own. One link of each leads to the broker, the other one to the storage.

Nothing has a name outside: a namespace is an open file of this process, and its devices are gone with it. Processes enter
by ``nsenter --net``; ``ip netns exec`` would mount another ``/sys``, without the control groups.
"""

from __future__ import annotations

import fcntl
import heapq
import itertools
import os
import random
import select
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import Literal, TypeVar

from kernel_spec.linux import syscalls
from tests.support.machines import Machine

Link = Literal["broker", "storage"]
T = TypeVar("T")

#: Networks of the two kinds of links.
NETWORKS: dict[Link, str] = {"broker": "10.77.1.", "storage": "10.77.2."}

#: A bad link: delay and jitter of each direction, and share of the frames that it loses.
DELAY_SECONDS, JITTER_SECONDS, LOSS = 0.05, 0.015, 0.05

#: linux/if_tun.h
TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000


def why_not() -> str:
    """Return why there can be no such machines here, or an empty string."""
    if os.geteuid() != 0:
        return "making network namespaces and devices takes root"
    missing = [name for name in ("ip", "nsenter") if shutil.which(name) is None]
    return f"{missing[0]} is not installed (Debian: iproute2, util-linux)" if missing else ""


class Namespace:
    """A network namespace; `close` must follow."""

    def __init__(self) -> None:
        def made() -> int:
            syscalls.unshare(syscalls.CLONE_NEWNET)
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY)

        self._file = _in_a_thread(made)
        self.path = f"/proc/{os.getpid()}/fd/{self._file}"
        self.prefix = ("nsenter", f"--net={self.path}")
        self.ip("link", "set", "lo", "up")

    def ip(self, *words: str) -> None:
        subprocess.run([*self.prefix, "ip", *words], check=True)

    def inside(self, work: Callable[[], T]) -> T:
        """Call a function there. Sockets and devices that it makes stay there, whoever uses them."""

        def entered() -> T:
            syscalls.setns(self._file, syscalls.CLONE_NEWNET)
            return work()

        return _in_a_thread(entered)

    def close(self) -> None:
        os.close(self._file)


class Remote(Machine):
    """A machine in a namespace."""

    def __init__(self, switch: Namespace, own: Namespace, number: int) -> None:
        self._switch, self.own, self._number = switch, own, number
        self.prefix = own.prefix
        self.host = self.address = f"{NETWORKS['broker']}{number}"
        self.storage_address = f"{NETWORKS['storage']}{number}"

    def connect(self, address: str, port: int, timeout: float = 60) -> socket.socket:
        return self.own.inside(lambda: super(Remote, self).connect(address, port, timeout))

    def listen(self, address: str) -> socket.socket:
        return self.own.inside(lambda: super(Remote, self).listen(address))

    @contextmanager
    def without(self, *links: Link) -> Iterator[None]:
        """Pull the cable of links; both ends see that it is gone."""
        try:
            for link in links:
                self._switch.ip("link", "set", port(link, self._number), "down")
            yield
        finally:
            for link in links:
                self._switch.ip("link", "set", port(link, self._number), "up")

    @contextmanager
    def mute_towards(self, other: Remote) -> Iterator[None]:
        """Throw away what this machine sends to another one; it still hears that one."""
        route = ("blackhole", f"{other.address}/32")
        self.own.ip("route", "add", *route)
        try:
            yield
        finally:
            self.own.ip("route", "del", *route)


class Network:
    """Two switches, and the machines at them; use as a context manager."""

    def __enter__(self) -> Network:
        self._numbers = itertools.count(1)
        with ExitStack() as opened:
            self._switch = self._namespace(opened)
            for link in NETWORKS:
                self._switch.ip("link", "add", link, "type", "bridge")
                self._switch.ip("link", "set", link, "up")
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def machine(self, *, is_bad: bool = False) -> Remote:
        """Return a new machine; the links of a bad one are slow and lose frames."""
        own, number = self._namespace(self._opened), next(self._numbers)
        for link, network in NETWORKS.items():
            if is_bad:
                self._opened.enter_context(Wire(own, link, self._switch, port(link, number)))
            else:
                peer = ("peer", "name", link, "netns", own.path)
                self._switch.ip("link", "add", port(link, number), "type", "veth", *peer)
            self._switch.ip("link", "set", port(link, number), "master", link, "up")
            own.ip("address", "add", f"{network}{number}/24", "dev", link)
            own.ip("link", "set", link, "up")
        return Remote(self._switch, own, number)

    @staticmethod
    def _namespace(opened: ExitStack) -> Namespace:
        made = Namespace()
        opened.callback(made.close)
        return made


class Wire:
    """A bad cable between two namespaces: netem, which this needs no kernel with ``CONFIG_NET_SCH_NETEM`` for."""

    def __init__(self, one: Namespace, one_device: str, other: Namespace, other_device: str) -> None:
        self._ends = [one.inside(lambda: _tap(one_device)), other.inside(lambda: _tap(other_device))]
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._carry, daemon=True)

    def __enter__(self) -> Wire:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._stopped)
        self._thread.join(60)
        for file in (self._stop, *self._ends):
            os.close(file)

    def _carry(self) -> None:
        chance = random.Random(1)
        on_the_way: list[tuple[float, int, int, bytes]] = []
        numbers = itertools.count()
        while True:
            wait = max(0.0, on_the_way[0][0] - time.monotonic()) if on_the_way else None
            ready = select.select([self._stop, *self._ends], [], [], wait)[0]
            if self._stop in ready:
                return
            for end in ready:
                with suppress(OSError):  # the device is not up yet
                    frame = os.read(end, 2048)
                    delay = DELAY_SECONDS + chance.uniform(-JITTER_SECONDS, JITTER_SECONDS)
                    target = self._ends[1 - self._ends.index(end)]
                    if chance.random() >= LOSS:
                        heapq.heappush(on_the_way, (time.monotonic() + delay, next(numbers), target, frame))
            while on_the_way and on_the_way[0][0] <= time.monotonic():
                _, _, target, frame = heapq.heappop(on_the_way)
                with suppress(OSError):
                    os.write(target, frame)


def port(link: Link, number: int) -> str:
    """Return the name of a machine's port at the switch."""
    return f"{link}-{number}"


def _tap(name: str) -> int:
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return file


def _in_a_thread(work: Callable[[], T]) -> T:
    """Call a function in a thread of its own, which may go to another namespace and ends there."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(120)
