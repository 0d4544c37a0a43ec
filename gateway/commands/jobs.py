"""`transform-gateway logs`, `cancel` and `status`: look at jobs of a running gateway, or end one."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from gateway.client import TransformClient
from gateway.client_http import GatewayRefused
from gateway.commands import common
from gateway.commands.display import Display
from gateway.health import health_of

DESCRIPTIONS = {
    "logs": "Show what a job has said; without an id, the one that runs, waits or ended last.",
    "cancel": "End a job, whether it runs or waits.",
    "status": "Show how the gateway is (exit code 3: not well); with an id, where that job stands.",
}


def main(name: str, arguments: Sequence[str]) -> int:
    """Carry out one of the three."""
    parser = common.parser(name, DESCRIPTIONS[name])
    parser.add_argument("id", nargs=None if name == "cancel" else "?", help="request_id of the job")
    if name == "logs":
        parser.add_argument("--follow", action="store_true", help="go on until the job is over")
    if name == "status":
        parser.add_argument("--json", action="store_true", help="print the whole answer")
    common.add_gateway(parser)
    options = parser.parse_args(arguments)
    action = {"logs": _logs, "cancel": _cancel, "status": _status}[name]
    return common.guarded(lambda: action(common.client_of(options), options))


def _logs(client: TransformClient, options: argparse.Namespace) -> int:
    display = Display(progress=False)
    if options.follow and options.id is not None:
        client.follow(options.id, display)
        return 0
    if options.follow:
        raise common.UsageError("--follow: needs the id of a job")
    for line in client.logs(options.id):
        display(line)
    return 0


def _cancel(client: TransformClient, options: argparse.Namespace) -> int:
    *first, last = common.request_ids(options.id)
    for request_id in first:
        try:
            client.cancel(request_id)
        except GatewayRefused as refusal:
            if refusal.status != 404:
                raise
        else:
            return 0
    client.cancel(last)
    return 0


def _status(client: TransformClient, options: argparse.Namespace) -> int:
    status = client.status(options.id)
    text = json.dumps(status, indent=2) if options.json else _described(status, options.id is not None)
    sys.stdout.write(text + "\n")
    return 0 if options.id is not None or status.get("healthy") else common.EXIT_UNREACHABLE


def _described(status: dict[str, Any], is_job: bool) -> str:
    if is_job:
        lines = [f"{status.get('request_id')}: {status.get('state')} {status.get('stage') or ''}".rstrip()]
        result = status.get("result")
        if isinstance(result, dict):
            lines.append(
                f"{result.get('code')}, exit code {result.get('exit_code')}: {result.get('error') or 'success'}"
            )
        return "\n".join(lines)
    sandbox, metrics = status.get("sandbox") or {}, status.get("metrics") or {}
    root = ", but the gateway keeps root" if sandbox.get("gateway_has_root") else ""
    kernels = status.get("kernels") or {}
    return "\n".join(
        (
            f"version   {status.get('version')}",
            f"health    {health_of(status)}",
            f"slots     {status.get('busy_slots')} of {status.get('slots')} busy",
            f"queue     {status.get('queue_size')} of {status.get('max_queue_size')}",
            f"held      {kernels.get('held', 0)} of {kernels.get('held_limit', 0)} kernels",
            f"jobs      {metrics.get('completed')} done, {metrics.get('failed')} of them failed",
            f"sandbox   tier {sandbox.get('tier', '?')}{root}",
        )
    )
