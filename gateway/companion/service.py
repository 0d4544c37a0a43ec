"""The companion's main loop: receives the kernel's requests until the kernel or the front end has ended.

Everything but this module is imported with the first request, so that an unused companion costs little memory.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

_STANDARD_INPUT = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve one kernel and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m gateway.companion", description=__doc__)
    parser.add_argument("--socket", type=int, required=True, metavar="DESCRIPTOR", help="a connected stream socket")
    parser.add_argument("--inputs", type=Path, required=True, metavar="DIRECTORY", help="where the kernel reads")
    options = parser.parse_args(arguments)
    # the kernel's user reads the files through the group of their directory
    os.umask(0o022)
    endpoint = socket.socket(fileno=options.socket)
    if _is_first_request(endpoint):
        _serve(endpoint, options.inputs)
    return 0


def _is_first_request(endpoint: socket.socket) -> bool:
    """Wait for the first request; return False when the front end has ended before."""
    # not select(2): the number of the inherited socket may be above those that it takes
    poll = select.poll()
    for descriptor in (endpoint.fileno(), _STANDARD_INPUT):
        poll.register(descriptor, select.POLLIN)
    while True:
        ready = [descriptor for descriptor, _ in poll.poll()]
        if _STANDARD_INPUT in ready and not os.read(_STANDARD_INPUT, 4096):
            return False
        if endpoint.fileno() in ready:
            return bool(endpoint.recv(1, socket.MSG_PEEK))


def _serve(endpoint: socket.socket, inputs_dir: Path) -> None:
    from gateway.companion.protocol import Cancel, Closed, NotUnderstood, Wire
    from gateway.companion.requests import RequestWorker

    wire = Wire(endpoint)
    worker = RequestWorker(wire, inputs_dir)
    # shutting down the socket wakes the reader below, which may wait in the middle of a message
    threading.Thread(target=_end_with_front_end, args=(endpoint,), name="front-end", daemon=True).start()
    try:
        while True:
            try:
                request, descriptor = wire.receive()
            except (Closed, ConnectionError):
                return
            except NotUnderstood as error:
                if error.request_id is None:
                    sys.stderr.write(f"companion: invalid message of the notebook: {error}\n")
                else:
                    wire.send(error.request_id, "error", message=f"invalid request: {error}")
                continue
            if isinstance(request, Cancel):
                if descriptor is not None:
                    os.close(descriptor)
                worker.cancel(request.id)
            else:
                worker.begin(request, descriptor)
    finally:
        worker.close()


def _end_with_front_end(endpoint: socket.socket) -> None:
    while os.read(_STANDARD_INPUT, 4096):
        pass
    with contextlib.suppress(OSError):
        endpoint.shutdown(socket.SHUT_RDWR)
