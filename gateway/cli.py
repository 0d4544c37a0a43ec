"""The command `transform-gateway`: a subcommand, or, with options only, the gateway itself in the foreground.

Subcommands parse their own options and import only what they need: the application's traits cost half a second, which
somebody who asks for a status should not pay.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("gateway.commands.run", "run a transform from a script or a notebook and wait for its result"),
    "new": ("gateway.commands.new", "write a transform to begin with, and a test that runs it"),
    "check": ("gateway.commands.check", "find what is wrong with a transform without running it"),
    "submit": ("gateway.commands.submit", "hand over a transform without waiting for its end"),
    "logs": ("gateway.commands.jobs", "show what a job has said"),
    "cancel": ("gateway.commands.jobs", "end a job"),
    "status": ("gateway.commands.jobs", "show how a gateway is, or where a job stands"),
    "held": ("gateway.commands.held", "list the kernels of failed jobs that are held for inspection"),
    "release": ("gateway.commands.held", "end held kernels"),
    "console": ("gateway.commands.console", "attach a console to a kernel of the running gateway"),
    "doctor": ("gateway.commands.doctor", "show which layers of the sandbox hold here, and what would turn others on"),
    "smoke": ("gateway.commands.smoke", "run a transform on real data through a gateway"),
}
"""Subcommand to the module whose ``main(name, arguments)`` carries it out, and what it is for."""

EXIT_USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0].startswith("-"):
        return _start_gateway(given)
    name, *rest = given
    if name in ("commands", "help"):
        sys.stdout.write(overview())
        return 0
    if name == "run" and "--internal-s3" in rest:
        if scripts := [word for word in rest if word.endswith((".py", ".ipynb"))]:
            text = (
                f"run --internal-s3 starts a gateway with its storage beside it and runs no script, so not {scripts[0]}"
            )
            sys.stderr.write(f"transform-gateway: {text}\n")
            return EXIT_USAGE
        return _start_gateway(["--enable-internal-s3=true", *(word for word in rest if word != "--internal-s3")])
    if name not in COMMANDS:
        sys.stderr.write(f"transform-gateway: unknown command {name!r}\n\n{overview()}")
        return EXIT_USAGE
    code = importlib.import_module(COMMANDS[name][0]).main(name, rest)
    return int(code)


def overview() -> str:
    """Return the list of commands."""
    lines = [f"  {name:8} {summary}\n" for name, (_, summary) in COMMANDS.items()]
    return (
        "transform-gateway [OPTIONS]            start the gateway in the foreground; --help-all lists the options\n"
        "transform-gateway run --internal-s3    the same, with an S3 server beside it\n"
        "transform-gateway COMMAND [OPTIONS]    COMMAND --help explains each\n\n" + "".join(lines)
    )


def _start_gateway(arguments: list[str]) -> int:
    from gateway.app import TransformGatewayApp

    TransformGatewayApp.launch_instance(arguments)
    return 0
