"""Two machines on one link, in network namespaces of their own: this one, with services, and one that is far."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from kernel_spec.linux import syscalls
from tests.kernel_spec.sandbox.children import fork

PORT = 7001
NEAR, FAR = "10.77.0.1", "10.77.0.2"
NEAR_SIX, FAR_SIX = "fd77::1", "fd77::2"
NEAR_LINK, FAR_LINK = "fe80::77:1", "fe80::77:2"
METADATA = "169.254.169.254"
DEVICE = "near0"
# by name it takes a datagram socket to find
DEVICE_NUMBER = 77
LOCAL_NAMESERVER = "127.0.0.53"
NAME = "service.example"


def why_not() -> str:
    """Why two machines cannot be played here, or an empty string."""
    if os.geteuid() != 0:
        return "making network namespaces and devices takes root"
    return "" if shutil.which("ip") else "there is no `ip` (iproute2) to make network devices with"


@contextlib.contextmanager
def two_machines(nameserver: str) -> Iterator[list[str]]:
    """Make this process the near machine; yields the peers that its own service has seen. Call it in a child."""
    syscalls.unshare(syscalls.CLONE_NEWNET | syscalls.CLONE_NEWNS)
    syscalls.mount("none", "/", "none", syscalls.MS_REC | syscalls.MS_PRIVATE)
    file = Path(tempfile.mkdtemp(prefix="tgs-", dir="/tmp"), "resolv.conf")
    far = None
    try:
        file.parent.chmod(0o755)
        file.write_text(f"nameserver {nameserver}\noptions timeout:1 attempts:1\n")
        subprocess.run(["mount", "--bind", str(file), "/etc/resolv.conf"], check=True)
        far = Far()
        _wire(far.pid)
        far.serve()
        seen: list[str] = []
        serve(seen)
        yield seen
    finally:
        if far is not None:
            far.end()
        shutil.rmtree(file.parent)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def _wire(far_pid: int) -> None:
    ip("link", "set", "lo", "up")
    peer = ("peer", "name", "far0", "netns", str(far_pid))
    ip("link", "add", DEVICE, "index", str(DEVICE_NUMBER), "type", "veth", *peer)
    # nodad: else the addresses of version six cannot be used for a second
    for address in (f"{NEAR}/24", f"{NEAR_SIX}/64", f"{NEAR_LINK}/64"):
        ip("address", "add", address, "dev", DEVICE, *(("nodad",) if ":" in address else ()))
    ip("link", "set", DEVICE, "up")
    ip("route", "add", "default", "via", FAR)


class Far:
    """The far machine: a process that waits until its device is there, and serves until it is ended."""

    def __init__(self) -> None:
        self._go, go = socket.socketpair()
        self.pid = fork()
        if self.pid == 0:
            try:
                self._be(go)
            finally:
                os._exit(1)
        go.close()
        self._await()

    def _await(self) -> None:
        self._go.settimeout(60)
        assert self._go.recv(1) == b"x", "the far machine did not come up"

    def _be(self, go: socket.socket) -> None:
        syscalls.unshare(syscalls.CLONE_NEWNET)
        go.send(b"x")
        go.recv(1)
        ip("link", "set", "lo", "up")
        for address in (f"{FAR}/24", f"{METADATA}/16", f"{FAR_SIX}/64", f"{FAR_LINK}/64"):
            ip("address", "add", address, "dev", "far0", *(("nodad",) if ":" in address else ()))
        ip("link", "set", "far0", "up")
        serve([])
        go.send(b"x")
        signal.pause()

    def serve(self) -> None:
        self._go.send(b"x")
        self._await()

    def end(self) -> None:
        self._go.close()
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def serve(seen: list[str]) -> None:
    """Greet everybody at `PORT` and answer every question for a name with the far machine's address."""

    def greet(caller: socket.socket, peer: str) -> None:
        seen.append(peer)
        caller.sendall(b"hello")

    for family, address, port, answer in (
        (socket.AF_INET6, "::", PORT, greet),
        (socket.AF_INET6, "::", 53, lambda caller, _: _answer_question(caller)),
    ):
        listener = socket.socket(family)
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((address, port))
        listener.listen(64)
        threading.Thread(target=_accept, args=(listener, answer), daemon=True).start()


def _accept(listener: socket.socket, answer: Callable[[socket.socket, str], None]) -> None:
    while True:
        caller, peer = listener.accept()
        with caller, contextlib.suppress(OSError):
            caller.settimeout(10)
            answer(caller, str(peer[0]))


def _answer_question(caller: socket.socket) -> None:
    """DNS over TCP (RFC 1035, 4.2.2): an A record, or nothing for another type; as long as the caller asks."""
    while True:
        length = int.from_bytes(caller.recv(2, socket.MSG_WAITALL), "big")
        if not length:
            return
        query = caller.recv(length, socket.MSG_WAITALL)
        end = query.index(b"\0", 12) + 5
        is_address = query[end - 4 : end - 2] == b"\0\1"
        head = query[:2] + b"\x81\x80" + b"\0\1" + (b"\0\1" if is_address else b"\0\0") + b"\0\0\0\0"
        record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + socket.inet_aton(FAR) if is_address else b""
        reply = head + query[12:end] + record
        caller.sendall(len(reply).to_bytes(2, "big") + reply)
