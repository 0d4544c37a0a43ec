"""`transform-gateway doctor`: what of the sandbox holds on this machine."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from gateway.commands import common

TIERS = ("A", "B", "C", "D")
DEFAULT_REQUIRED = "C"


def main(name: str, arguments: Sequence[str]) -> int:
    """Probe and print; fails when the tier asked for is not reached."""
    parser = common.parser(name, "Show which layers of the sandbox hold here, and what would turn the others on.")
    parser.add_argument("--json", action="store_true", help="print the finding as JSON")
    parser.add_argument("--allow-network", action="store_true", help="as for a gateway with ALLOW_NETWORK")
    parser.add_argument("--allow-loopback", action="store_true", help="as for a gateway with ALLOW_LOOPBACK")
    parser.add_argument(
        "--state-dir", type=Path, help="where the gateway's STATE_DIR will be; default: a temporary one"
    )
    parser.add_argument(
        "--require",
        "--require-tier",
        choices=TIERS,
        default=os.environ.get("REQUIRE_TIER") or DEFAULT_REQUIRED,
        help="fail when this tier is not reached; default: REQUIRE_TIER, or C, without which no gateway starts unasked",
    )
    options = parser.parse_args(arguments)
    if options.require not in TIERS:  # argparse does not look at defaults
        parser.error(f"REQUIRE_TIER is {options.require!r} and must be one of {', '.join(TIERS)}")

    def examine() -> int:
        from gateway import privileges
        from kernel_spec.sandbox import probe

        scratch_dir = str(options.state_dir) if options.state_dir is not None else None
        report = probe(
            allow_network=options.allow_network, allow_loopback=options.allow_loopback, scratch_dir=scratch_dir
        )
        user = privileges.gateway_user()
        width = min(shutil.get_terminal_size((110, 24)).columns, 140)
        if options.json:
            gateway = {"has_root": user.uid == 0, "why": user.problem}
            text = json.dumps({**report.to_json(), "gateway": gateway}, indent=2)
        else:
            text = report.render(width=width)
            if user.problem:
                text += "\n" + textwrap.fill(f"Of the gateway itself: {user.problem}.", width)
        sys.stdout.write(text.rstrip() + "\n")
        return 0 if report.tier.value <= options.require else common.EXIT_FAILED

    return common.guarded(examine)
