"""`transform-gateway doctor`: show the layers of the sandbox on this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gateway.cli import common
from gateway.core.settings import Settings
from kernel_spec.kernel.added_packages import usable_set
from kernel_spec.kernel.environment import interpreter_command, interpreter_environment

TIERS = ("A", "B", "C", "D")
DEFAULT_REQUIRED = "C"

#: Imports of large packages from a cold disk.
MEASURE_SECONDS = 120


def main(name: str, arguments: Sequence[str]) -> int:
    """Probe and print; the exit code is 1 when the required tier is not reached."""
    parser = common.parser(name, "Show which layers of the sandbox are on here, and how to turn on the others.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--allow-network", action="store_true", help="as for a gateway with ALLOW_NETWORK")
    parser.add_argument("--allow-loopback", action="store_true", help="as for a gateway with ALLOW_LOOPBACK")
    parser.add_argument("--state-dir", type=Path, help="the gateway's STATE_DIR; default: a temporary directory")
    parser.add_argument(
        "--require",
        "--require-tier",
        choices=TIERS,
        default=os.environ.get("REQUIRE_TIER") or DEFAULT_REQUIRED,
        help="fail when this tier is not reached; default: REQUIRE_TIER or C, the lowest tier that starts without "
        "ALLOW_UNSANDBOXED",
    )
    options = parser.parse_args(arguments)
    if options.require not in TIERS:  # argparse does not look at defaults
        parser.error(f"REQUIRE_TIER is {options.require!r} and must be one of {', '.join(TIERS)}")

    def examine() -> int:
        from gateway.process import privileges
        from gateway.process.app import TransformGatewayApp
        from gateway.process.checks import memory_of_host, warnings_of
        from kernel_spec.sandbox.probe.probe import probe

        app = TransformGatewayApp()
        app.initialize([] if options.state_dir is None else [f"--state-dir={options.state_dir}"])
        settings = app.settings()
        if options.state_dir is not None and not settings.state_dir.is_dir():
            raise common.UsageError(f"--state-dir {options.state_dir}: there is no such directory")
        warnings, preload = warnings_of(settings), _preload_costs(settings)

        scratch_dir = str(settings.state_dir) if options.state_dir is not None else None
        report = probe(
            allow_network=options.allow_network, allow_loopback=options.allow_loopback, scratch_dir=scratch_dir
        )
        user = privileges.gateway_user()
        width = min(shutil.get_terminal_size((110, 24)).columns, 140)
        if options.json:
            gateway = {"has_root": user.uid == 0, "why": user.problem}
            host = {"cores": os.cpu_count(), "memory_bytes": memory_of_host(), "warnings": warnings}
            text = json.dumps({**report.to_json(), "gateway": gateway, "host": host, "preload": preload}, indent=2)
        else:
            text = report.render(width=width)
            if user.problem:
                text += "\n" + textwrap.fill(f"The gateway's own process: {user.problem}.", width)
            text += f"\n\nThis host: {os.cpu_count()} cores, {memory_of_host() / 1e9:.1f} GB of memory."
            for each in preload:
                cost = (
                    f"{each['memory_bytes'] / 1e6:.1f} MB shared by all kernels, {each['seconds']:.2f} s at the start"
                )
                text += "\n" + textwrap.fill(f"Preloaded {each['module']}: {each['problem'] or cost}.", width)
            for warning in warnings:
                text += "\n" + textwrap.fill(f"Warning: {warning}.", width)
        sys.stdout.write(text.rstrip() + "\n")
        return 0 if report.tier.value <= options.require else common.EXIT_FAILED

    return common.guarded(examine)


def _preload_costs(settings: Settings) -> list[dict[str, Any]]:
    """Return the cost of the modules of PRELOAD, measured in a process of their own."""
    if not settings.preload:
        return []
    packages = f"--packages={usable_set(settings.state_dir)}"
    command = interpreter_command("kernel_spec.fork_server.memory_cost", packages, *settings.preload)
    try:
        done = subprocess.run(
            command, env=interpreter_environment(), capture_output=True, text=True, timeout=MEASURE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise common.UsageError(f"PRELOAD: its modules were not imported within {MEASURE_SECONDS} s") from None
    if done.returncode != 0:
        reason = done.stderr.strip().rpartition("\n")[2]
        raise common.UsageError(f"PRELOAD: importing its modules ended the process: {reason or done.returncode}")
    return list(json.loads(done.stdout.splitlines()[-1]))
