"""``python -m tests.support.balanced_cluster COMMAND``: run a command against three members behind a load balancer.

In the command, ``{url}`` and ``{token}`` stand for the address of the balancer and the token of the members. The balancer
gives each connection to the next member, whatever the request is about.
"""

from __future__ import annotations

import itertools
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress

from tests.gateway.cluster.members import members
from tests.support.gateway_process import TOKEN
from tests.support.nats_server import NatsServer

MEMBERS = 3


class Balancer(socketserver.ThreadingTCPServer):
    """Passes each connection on to the next of several ports on loopback."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, ports: Sequence[int]) -> None:
        self.ports = itertools.cycle(ports)
        super().__init__(("127.0.0.1", 0), _Passed)

    def __enter__(self) -> Balancer:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()


class _Passed(socketserver.BaseRequestHandler):
    server: Balancer

    def handle(self) -> None:
        with socket.create_connection(("127.0.0.1", next(self.server.ports)), timeout=60) as member:
            member.settimeout(None)
            answering = threading.Thread(target=_pass_on, args=(member, self.request), daemon=True)
            answering.start()
            _pass_on(self.request, member)
            answering.join()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    """Send what comes from one side to the other until it ends, also where it is reset."""
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def main(command: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    with ExitStack() as stack:
        started = members(stack, stack.enter_context(NatsServer()), MEMBERS, SLOTS="1", READY_KERNELS="1")
        host, port = stack.enter_context(Balancer([each.port for each in started])).server_address[:2]
        known = {"{url}": f"http://{host!s}:{port}", "{token}": TOKEN}
        return subprocess.run([known.get(word, word) for word in command], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
