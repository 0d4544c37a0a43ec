"""`transform-gateway held` and `release`: list and release held kernels."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from gateway.cli import common
from gateway.cli.display import printable
from gateway.client.client import TransformClient

DESCRIPTIONS = {
    "held": "List the held kernels, with the command that attaches a console to each.",
    "release": "Release held kernels, which ends them.",
}


def main(name: str, arguments: Sequence[str]) -> int:
    """List or release held kernels, and return the exit code."""
    parser = common.parser(name, DESCRIPTIONS[name])
    if name == "held":
        parser.add_argument("--json", action="store_true", help="print the whole response as JSON")
    else:
        parser.add_argument("id", nargs="*", help="ids of held kernels")
        parser.add_argument("--all", action="store_true", help="release all of them, in a cluster those of all hosts")
    common.add_local_gateway(parser)
    options = parser.parse_args(arguments)
    if name == "release" and bool(options.id) == options.all:
        parser.error("expected either ids of held kernels or --all")
    action = _held if name == "held" else _release
    return common.guarded(lambda: action(common.local_client_of(options), options))


def _held(client: TransformClient, options: argparse.Namespace) -> int:
    held = client.held()
    sys.stdout.write(json.dumps(held, indent=2) + "\n" if options.json else described(held))
    return 0


def _release(client: TransformClient, options: argparse.Namespace) -> int:
    for name in options.id or [kernel["id"] for kernel in client.held()]:
        client.release(name)
        sys.stdout.write(f"released {name}\n")
    return 0


def described(held: Sequence[dict[str, Any]]) -> str:
    """Return the list as text, two lines for each kernel."""
    if not held:
        return "no kernel is held\n"
    lines = []
    for kernel in held:
        what = f"job {kernel['request_id']}: {kernel['code']}" if kernel["code"] else "console"
        age = time.time() - datetime.fromisoformat(kernel["held_at"]).timestamp()
        left = datetime.fromisoformat(kernel["expires_at"]).timestamp() - time.time()
        host = f" on host {printable(kernel['host'])}" if kernel.get("host") else ""
        lines.append(f"{kernel['id']}  {printable(what)}, held{host} for {_minutes(age)}, ends in {_minutes(left)}")
        lines.append(f"          {printable(kernel['attach'])}")
    return "\n".join(lines) + "\n"


def _minutes(seconds: float) -> str:
    whole = max(0, round(seconds))
    return f"{whole // 60} min {whole % 60} s"
