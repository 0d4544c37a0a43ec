"""The command `transform-gateway`: runs a subcommand or, with options only, the gateway in the foreground.

Subcommands parse their own options and import only what they need: importing the application takes half a second,
which would slow down commands such as `status`.
"""

from __future__ import annotations

import difflib
import importlib
import os
import signal
import sys
from collections.abc import Sequence

from gateway.core.standard_output import with_output

#: Subcommand to the module whose ``main(name, arguments)`` runs it, and its summary.
COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("gateway.cli.run", "run a transform from a script or a notebook and wait for its result"),
    "new": ("gateway.cli.new", "write an example project: transform, contract, table, test, notebook"),
    "check": ("gateway.cli.check", "find errors in a transform without running it"),
    "submit": ("gateway.cli.submit", "submit a transform without waiting for its result"),
    "logs": ("gateway.cli.jobs", "show the log of a job"),
    "cancel": ("gateway.cli.jobs", "cancel a job"),
    "status": ("gateway.cli.jobs", "show the state of a gateway or of a job"),
    "jobs": ("gateway.cli.history", "list the jobs that run, wait and are finished"),
    "result": ("gateway.cli.history", "write the kept result of a job to a file"),
    "replay": ("gateway.cli.replay.command", "run a failed job again, here, or write it as a notebook"),
    "held": ("gateway.cli.held", "list the held kernels of failed jobs"),
    "release": ("gateway.cli.held", "release held kernels"),
    "pause": ("gateway.cli.pause", "refuse new jobs, while accepted ones go on"),
    "resume": ("gateway.cli.pause", "accept new jobs again"),
    "packages": ("gateway.cli.install.packages", "list the packages that jobs can import, add and remove some"),
    "systemd": ("gateway.cli.install.systemd", "print a systemd unit that runs this installation"),
    "completion": ("gateway.cli.install.completion", "print the script that completes commands in bash, zsh or fish"),
    "console": ("gateway.cli.console", "attach a console to a kernel of the running gateway"),
    "doctor": ("gateway.cli.doctor", "show which layers of the sandbox are on, and how to turn on the others"),
    "smoke": ("gateway.cli.smoke", "run a transform on real data through a gateway"),
}

EXIT_USAGE = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    return with_output(lambda: _run(given))


def _run(given: list[str]) -> int:
    if "_ARGCOMPLETE" in os.environ:
        importlib.import_module(COMMANDS["completion"][0]).complete(COMMANDS)
    if not given or given[0].startswith("-"):
        return _start_gateway(given)
    name, *rest = given
    if name in ("commands", "help"):
        sys.stdout.write(overview())
        return 0
    if name == "run" and "--internal-s3" in rest:
        if scripts := [word for word in rest if word.endswith((".py", ".ipynb"))]:
            text = f"run --internal-s3 starts a gateway with an S3 server and runs no script; remove {scripts[0]}"
            sys.stderr.write(f"transform-gateway: {text}\n")
            return EXIT_USAGE
        return _start_gateway(["--enable-internal-s3=true", *(word for word in rest if word != "--internal-s3")])
    if name == "host":
        return _start_gateway(rest, runs_only=True)
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, 1)
        meant = f"; did you mean {close[0]}?" if close else ""
        sys.stderr.write(f"transform-gateway: unknown command {name!r}{meant} (see transform-gateway help)\n")
        return EXIT_USAGE
    try:
        return int(importlib.import_module(COMMANDS[name][0]).main(name, rest))
    except KeyboardInterrupt:  # during the imports, which take a part of a second; later the command handles it
        sys.stderr.write("transform-gateway: interrupted\n")
        return EXIT_INTERRUPTED


def overview() -> str:
    """Return the list of commands."""
    lines = [f"  {name:10} {summary}\n" for name, (_, summary) in COMMANDS.items()]
    return (
        "transform-gateway [OPTIONS]            start the gateway in the foreground; --help-all lists the options\n"
        "transform-gateway run --internal-s3    the same, with an embedded S3 server\n"
        "transform-gateway host [OPTIONS]       run jobs of a cluster, and accept none\n"
        "transform-gateway COMMAND [OPTIONS]    COMMAND --help explains each\n\n" + "".join(lines)
    )


def _start_gateway(arguments: list[str], *, runs_only: bool = False) -> int:
    from gateway.process.signals import keep_hangups

    keep_hangups()
    from gateway.process.app import TransformGatewayApp

    try:
        TransformGatewayApp.launch_instance(arguments, runs_only=runs_only)
    except KeyboardInterrupt:  # before the gateway serves, which handles SIGINT itself
        return EXIT_INTERRUPTED
    return 0
