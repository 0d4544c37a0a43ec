"""`transform-gateway packages`: list the packages that jobs can import, and add or remove some."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gateway.cli import common
from gateway.cli.install.package_sets import PackageSets, without
from gateway.client.client import TransformClient
from gateway.client.errors import GatewayRefused
from gateway.process.pidfile import DaemonError, Running, find_running
from gateway.process.tls import local_trust
from kernel_spec.kernel.added_packages import UntrustedPackages, current_set

#: Longer than a gateway waits for its new fork server.
_RELOAD_SECONDS = 90.0

LIST = (
    "List the packages that jobs can import, with their versions. A preloaded package is imported before the job. "
    "`packages add NAME...` and `packages remove NAME...` add and remove packages for jobs."
)
ADD = (
    "Add packages for jobs: wheels only, in versions that fit the gateway's. They are in a directory of their own "
    "below STATE_DIR, which only the kernels of jobs and notebooks have on their path. Jobs that run go on; later ones "
    "have the packages. The package index is that of pip's configuration, or of uv's if that is set in the environment."
)
REMOVE = "Remove packages that were added, and those that only they needed."


def main(name: str, arguments: Sequence[str]) -> int:
    """List, add or remove packages, and return the exit code."""
    action, *rest = arguments or [""]
    if action in ("add", "remove"):
        return _main_of_change(f"{name} {action}", action, rest)
    parser = common.parser(name, LIST)
    part = parser.add_argument("part", nargs="?", default="", help="part of the names to list; default: all")
    part.completer = lambda **_: ["add", "remove"]  # type: ignore[attr-defined]
    parser.add_argument("--json", action="store_true", help="print JSON")
    common.add_gateway(parser, otherwise="the packages of this installation and of STATE_DIR")
    options = parser.parse_args(arguments)
    return common.guarded(lambda: _list(options))


def _list(options: argparse.Namespace) -> int:
    found = [package for package in _packages(options) if options.part.lower() in package["name"].lower()]
    if options.json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    for package in () if options.json else found:
        notes = [note for note in ("added", "preloaded") if package.get(note)]
        sys.stdout.write("  ".join([f"{package['name']} {package['version']}", *notes]) + "\n")
    if not found and options.part:
        sys.stderr.write(f"transform-gateway: no package has {options.part!r} in its name\n")
    return 0 if found else common.EXIT_FAILED


def _packages(options: argparse.Namespace) -> list[dict[str, Any]]:
    if options.url:
        return common.client_of(options).packages()
    from kernel_spec.packages import job_packages

    try:
        added = current_set(Path(os.environ.get("STATE_DIR") or ".state"))
    except UntrustedPackages as error:
        sys.stderr.write(f"transform-gateway: the added packages are not used: {error}\n")
        added = None
    return [dataclasses.asdict(package) for package in job_packages(added_dir=added)]


def _main_of_change(name: str, action: str, arguments: Sequence[str]) -> int:
    parser = common.parser(name, ADD if action == "add" else REMOVE)
    text = "a package, also with a version, or the file of a wheel" if action == "add" else "a package"
    parser.add_argument("names", nargs="+", metavar="NAME", help=text)
    place = os.environ.get("STATE_DIR") or ".state"
    text = f"state directory of the gateway (environment: STATE_DIR; default: {place})"
    parser.add_argument("--state-dir", type=Path, default=Path(place), help=text)
    options = parser.parse_args(arguments)
    return common.guarded(lambda: _change(action, options))


def _change(action: str, options: argparse.Namespace) -> int:
    state_dir = options.state_dir.expanduser().absolute()
    running = _running(state_dir)
    with PackageSets.opened(state_dir, say=_say) as sets:
        before = sets.requested()
        if action == "add":
            names = [_absolute(name) for name in options.names]
            wanted = [*without(before, names), *names]
        else:
            wanted = without(before, options.names)
            if len(wanted) == len(before):
                raise common.UsageError(f"{', '.join(options.names)}: not added; added are: {', '.join(before) or '-'}")
        former = sets.current()
        made = sets.make(wanted)
        if made == former and running is None:
            _say("nothing to do: jobs have these packages")
            return 0
        sets.activate(made)
        running = _running(state_dir)  # again: the installation may have taken minutes
        if running is None:
            sets.remove_others(former)
            _say("the next start of the gateway uses them" if wanted else "the next start of the gateway has none")
            return 0
        try:
            problem = _reload(running)
        except BaseException:  # such as Ctrl-C, or a gateway that does not answer
            sets.activate(former)
            raise
        if problem:
            sets.activate(former)
            _reload(running)
            raise common.UsageError(f"the gateway keeps the packages that it had: {problem}")
    _say("jobs that begin now have them" if wanted else "jobs that begin now have none")
    return 0


def _reload(running: Running) -> str:
    """Make the gateway use the current packages; return the reason of a failure, or an empty text."""
    client = TransformClient(
        running.url, running.token, timeout_seconds=_RELOAD_SECONDS, trust=local_trust(running.cert)
    )
    try:
        client.reload_packages()
    except GatewayRefused as refusal:
        return str(refusal)
    state = client.status().get("fork_server") or {}
    return "" if state.get("state") in ("ready", "off") else f"the fork server {state.get('reason')}"


def _running(state_dir: Path) -> Running | None:
    try:
        return find_running(state_dir, of_any_user=True)
    except PermissionError as error:
        raise common.UsageError(
            f"{error.filename} cannot be read: run this as the user who started the gateway"
        ) from None
    except DaemonError as error:
        raise common.UsageError(str(error)) from None


def _absolute(name: str) -> str:
    """Return the absolute path of a wheel, which is installed again when others are added."""
    if not name.endswith(".whl"):
        return name
    if not Path(name).is_file():
        raise common.UsageError(f"{name}: no such file")
    return str(Path(name).absolute())


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
