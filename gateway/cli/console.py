"""`transform-gateway console`: `jupyter console` on a kernel of the running gateway.

With an id, or when exactly one kernel is held, it attaches to that kernel, in which a job has failed. When no kernel is
held, it takes a ready kernel from the pool; this kernel ends with the console.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from gateway.cli import common
from gateway.cli.display import printable
from gateway.cli.held import described
from gateway.client.client import TransformClient
from gateway.client.errors import GatewayRefused


def main(name: str, arguments: Sequence[str]) -> int:
    """Attach a console and return its exit code."""
    parser = common.parser(name, "Attach a console to a kernel of the running gateway.")
    parser.add_argument(
        "id", nargs="?", help="a held kernel; default: the only held kernel, or a fresh kernel when none is held"
    )
    parser.add_argument("--new", action="store_true", help="always a fresh kernel, even if one is held")
    parser.add_argument(
        "--minutes",
        type=common.minutes,
        default=60.0,
        metavar="DURATION",
        help="longest time of a fresh kernel, such as 90 (minutes) or 2h; default: 60",
    )
    common.add_local_gateway(parser)
    options = parser.parse_args(arguments)
    if options.id and options.new:
        parser.error("expected either an id or --new")
    return common.guarded(lambda: _console(common.local_client_of(options), options))


def _console(client: TransformClient, options: argparse.Namespace) -> int:
    if importlib.util.find_spec("jupyter_console") is None:
        raise common.UsageError("jupyter_console is not installed here: pip install 'transform-gateway[console]'")
    kernel, is_ours = _kernel(client, options)
    if not os.access(kernel["connection_file"], os.R_OK):
        if _is_elsewhere(kernel):
            raise common.UsageError(
                f"the kernel {kernel['id']} is held on host {printable(kernel['host'])}: run this there, as the user "
                f"who started the gateway, or here with --new for a fresh kernel:\n{printable(kernel['attach'])}"
            )
        raise common.UsageError(
            f"{kernel['connection_file']} cannot be read: run this on the gateway's machine as the user who started "
            "the gateway"
        )
    try:
        return _attach(kernel["connection_file"])
    finally:
        if is_ours:
            _release(client, kernel["id"])


def _kernel(client: TransformClient, options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Return the kernel to attach to, and whether it is a fresh one for this console."""
    held = client.held()
    if options.id:
        found = [kernel for kernel in held if kernel["id"] == options.id]
        if not found:
            raise common.unknown_id(f"no kernel {options.id!r} is held; `transform-gateway held` lists them")
        return found[0], False
    failed = [kernel for kernel in held if kernel["code"] and not _is_elsewhere(kernel)]
    if len(failed) > 1 and not options.new:
        raise common.UsageError(f"{len(failed)} kernels are held; name one, or --new:\n{described(failed).rstrip()}")
    if failed and not options.new:
        return failed[0], False
    return client.open_console(options.minutes), True


def _is_elsewhere(kernel: dict[str, Any]) -> bool:
    """Return whether another host of the cluster holds a kernel."""
    return bool(kernel.get("host")) and not os.access(kernel["connection_file"], os.R_OK)


def _attach(connection_file: str) -> int:
    command = [sys.executable, "-P", "-m", "gateway.cli.attached_console", "--existing", connection_file]
    before = signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C goes to the whole process group, and is meant for the console
    try:
        return common.exit_code_of(code) if (code := subprocess.run(command, check=False).returncode) else 0
    finally:
        signal.signal(signal.SIGINT, before)


def _release(client: TransformClient, name: str) -> None:
    try:
        client.release(name)
    except GatewayRefused as refusal:
        if refusal.status != 404:  # it expired or was released meanwhile
            raise
