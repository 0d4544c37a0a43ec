"""The command of ``kernel.json``, and of kernels that the launcher starts plainly: it becomes a sandboxed kernel.

``python -m kernel_spec.wrapper --start DESCRIPTOR``
    From the launcher: the plan comes through the named socket, descriptors 1, 2 and perhaps 3 are the outputs, and the
    descriptor after the socket is the launcher's liveness pipe.
``python -m kernel_spec.wrapper -f CONNECTION_FILE``
    From a front end that supports kernel.json but not kernel provisioners: see `kernel_spec.client.standalone`.
"""

from __future__ import annotations

import argparse
import functools
import os
import socket
import sys
from collections.abc import Sequence

from kernel_spec.fork_server import preload
from kernel_spec.kernel.added_packages import append_to_path
from kernel_spec.kernel.child import double_fork
from kernel_spec.kernel.environment import LOG_DESCRIPTOR
from kernel_spec.protocol.channel import Channel
from kernel_spec.protocol.messages import Fork
from kernel_spec.protocol.values import KernelPlan


def main(arguments: Sequence[str] | None = None) -> int:
    """Start the kernel that the command line describes; returns only if that failed."""
    parser = argparse.ArgumentParser(prog="python -m kernel_spec.wrapper", description=__doc__)
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("-f", "--connection-file", help="connection file of the kernel, with transport ipc")
    how.add_argument("--start", type=int, metavar="DESCRIPTOR", help=argparse.SUPPRESS)
    parser.add_argument("--packages", default="", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    append_to_path(options.packages)
    if options.start is not None:
        _start_from_launcher(options.start)
    from kernel_spec.client.standalone import run_kernel

    return run_kernel(options.connection_file)


def _start_from_launcher(barrier: int) -> None:
    channel = Channel(socket.socket(fileno=barrier), accepts=(Fork,))
    message, _ = channel.receive()
    plan: KernelPlan = message.plan
    channel.detach()
    preload.import_if_there(preload.SHIM_PACKAGE)
    outputs = [1, 2, LOG_DESCRIPTOR] if plan.has_log else [1, 2]
    double_fork(plan, barrier, barrier + 1, outputs, after_fork=functools.partial(_import_for, plan.style))


def _import_for(style: str) -> None:
    """Import the modules of the fork server, so that both kinds of kernels are equal when they are ready."""
    if style == "job":
        preload.import_all()
    preload.renew_after_fork()


if __name__ == "__main__":
    os.environ.pop("PYTHONPATH", None)
    sys.exit(main())
