"""`transform-gateway console`: `jupyter console` on a kernel of the running gateway.

With an id, or when exactly one kernel is held, that one: the job that failed in it stands still there. When none is
held, a ready kernel is taken out, of the very kind that jobs get, and ended when the console ends.
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

from gateway.client import TransformClient
from gateway.client_http import GatewayRefused
from gateway.commands import common
from gateway.commands.held import described


def main(name: str, arguments: Sequence[str]) -> int:
    """Attach a console; the exit code is the console's."""
    parser = common.parser(name, "Attach a console to a kernel of the running gateway.")
    parser.add_argument(
        "id", nargs="?", help="a held kernel; without it, the one that is held, or a new one where none is"
    )
    parser.add_argument("--new", action="store_true", help="a kernel that never had a job, whatever is held")
    parser.add_argument("--minutes", type=float, default=60.0, help="when a new one is ended at the latest; default 60")
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
        raise common.UsageError(
            f"{kernel['connection_file']} cannot be read: a console works on the gateway's machine, for the user who "
            "started the gateway"
        )
    try:
        return _attach(kernel["connection_file"])
    finally:
        if is_ours:
            _release(client, kernel["id"])


def _kernel(client: TransformClient, options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Return the kernel to attach to, and whether it was taken for this console."""
    held = client.held()
    if options.id:
        found = [kernel for kernel in held if kernel["id"] == options.id]
        if not found:
            raise common.UsageError(f"no kernel {options.id} is held; `transform-gateway held` lists them")
        return found[0], False
    failed = [kernel for kernel in held if kernel["code"]]
    if len(failed) > 1 and not options.new:
        raise common.UsageError(f"{len(failed)} kernels are held; name one, or --new:\n{described(failed).rstrip()}")
    if failed and not options.new:
        return failed[0], False
    return client.open_console(options.minutes), True


def _attach(connection_file: str) -> int:
    command = [sys.executable, "-P", "-m", "gateway.commands.attached", "--existing", connection_file]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the console's; it comes to the whole group
    try:
        return common.exit_code_of(code) if (code := subprocess.run(command, check=False).returncode) else 0
    finally:
        signal.signal(signal.SIGINT, before)


def _release(client: TransformClient, name: str) -> None:
    try:
        client.release(name)
    except GatewayRefused as refusal:
        if refusal.status != 404:  # its time was over, or somebody was faster
            raise
