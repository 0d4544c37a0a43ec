"""Becomes an IPython kernel in the sandbox; what ``kernel.json`` names, and how the launcher starts plain kernels.

``python -m kernel_spec.wrapper --start DESCRIPTOR``
    From the launcher: the plan comes through the named socket, descriptors 1, 2 and perhaps 3 are the outputs, and the
    one after the socket is the launcher's lifeline.
``python -m kernel_spec.wrapper -f CONNECTION_FILE``
    From a front end that knows kernel.json but not kernel provisioners: see `kernel_spec.standalone`.
"""

from __future__ import annotations

import argparse
import functools
import os
import socket
import sys
from collections.abc import Sequence

from kernel_spec import warmth
from kernel_spec.becoming import become_middle
from kernel_spec.channel import Channel
from kernel_spec.environment import LOG_DESCRIPTOR
from kernel_spec.messages import Fork, KernelPlan


def main(arguments: Sequence[str] | None = None) -> int:
    """Start the kernel that the command line describes; returns only where that failed."""
    parser = argparse.ArgumentParser(prog="python -m kernel_spec.wrapper", description=__doc__)
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("-f", "--connection-file", help="connection file of the kernel, with transport ipc")
    how.add_argument("--start", type=int, metavar="DESCRIPTOR", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.start is not None:
        _start_from_launcher(options.start)
    from kernel_spec.standalone import run_kernel

    return run_kernel(options.connection_file)


def _start_from_launcher(gate: int) -> None:
    channel = Channel(socket.socket(fileno=gate), accepts=(Fork,))
    message, _ = channel.receive()
    plan: KernelPlan = message.plan
    channel.detach()
    outputs = [1, 2, LOG_DESCRIPTOR] if plan.has_log else [1, 2]
    become_middle(plan, gate, gate + 1, outputs, warm=functools.partial(_import_for, plan.style))


def _import_for(style: str) -> None:
    """Import what the fork server's kernels have imported, so that both kinds are equal when they are ready."""
    if style == "job":
        warmth.import_all()
    warmth.renew_after_fork()


if __name__ == "__main__":
    os.environ.pop("PYTHONPATH", None)
    sys.exit(main())
