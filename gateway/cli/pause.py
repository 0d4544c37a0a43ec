"""`transform-gateway pause` and `resume`: the intake of jobs of a running gateway."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from gateway.cli import common
from gateway.client.client import TransformClient

DESCRIPTIONS = {
    "pause": "Refuse new jobs until `resume`, also after a restart. Accepted jobs go on.",
    "resume": "Accept new jobs again.",
}


def main(name: str, arguments: Sequence[str]) -> int:
    """Pause or resume the intake of jobs, and return the exit code."""
    parser = common.parser(name, DESCRIPTIONS[name])
    common.add_local_gateway(parser)
    options = parser.parse_args(arguments)
    action = _pause if name == "pause" else _resume
    return common.guarded(lambda: action(common.local_client_of(options)))


def _pause(client: TransformClient) -> int:
    client.pause()
    sys.stdout.write("paused: new jobs are refused, accepted jobs go on\n")
    return 0


def _resume(client: TransformClient) -> int:
    client.resume()
    sys.stdout.write("resumed: new jobs are accepted\n")
    return 0
