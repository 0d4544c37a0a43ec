"""A sandboxed kernel for front ends that run ``kernel.json``'s command themselves, without a kernel provisioner.

The front end has chosen the socket paths or the TCP ports and waits for this process. So this process stays outside of
the sandbox, has a launcher start the kernel in a temporary workspace, and makes the kernel's sockets reachable where
the front end expects them: by links (connect(2) follows links), or by a relay (VS Code speaks only tcp). It forwards
signals, and exits with the kernel's exit code.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from kernel_spec.client.companion import DEFAULT_COMMAND, CompanionProcess
from kernel_spec.client.front_end import CHANNELS, FrontEndLauncher, debugger_wanted, write_connection_file
from kernel_spec.client.gateway_launcher import open_launcher
from kernel_spec.client.process import LauncherError
from kernel_spec.client.tcp_relay import relayed
from kernel_spec.protocol.limits import notebook_limits
from kernel_spec.protocol.values import WorkspaceInfo

log = logging.getLogger(__name__)


_EXIT_REFUSED = 2
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_kernel(connection_file: str) -> int:
    """Run a kernel for the front end that wrote a connection file, until the kernel has ended.

    Parameters
    ----------
    connection_file : str
        Path of the connection file.

    Returns
    -------
    int
        The exit code of this process.
    """
    try:
        fields = json.loads(Path(connection_file).read_text())
        _check(fields)
        return _run(fields)
    except (OSError, ValueError, LauncherError) as error:
        print(f"transform kernel: {error}", file=sys.stderr)  # noqa: T201
        return _EXIT_REFUSED


def _check(fields: dict[str, Any]) -> None:
    if fields.get("transport") not in ("ipc", "tcp"):
        raise ValueError(f"this kernel speaks ipc and, through a relay, tcp, not {fields.get('transport')!r}")
    if fields["transport"] == "ipc" and not Path(str(fields.get("ip", ""))).is_absolute():
        raise ValueError(f"with transport ipc, ip must be an absolute path prefix, not {fields.get('ip')!r}")
    if missing := [name for name in CHANNELS if not isinstance(fields.get(f"{name}_port"), int)]:
        raise ValueError(f"the connection file names no port for {', '.join(missing)}")


def _run(fields: dict[str, Any]) -> int:
    debugger = debugger_wanted()
    gateway = os.environ.get("TRANSFORM_GATEWAY")
    launcher, workspace = open_launcher("standalone", gateway, log, debugger=debugger)
    companion: CompanionProcess | None = None
    try:
        write_connection_file(workspace, fields)
        with _reachable(fields, workspace) as kernel_is_there, _signals_as_descriptor() as signals:
            companion = CompanionProcess(DEFAULT_COMMAND, workspace, None, os.environ, gateway)
            # a front end that restarts its kernel starts another process of this command for the same clients
            launcher.start(notebook_limits(), (1, 2), companion, debugger=debugger, has_clients=True)
            kernel_is_there()
            _forward_until_end(launcher, signals)
            report = launcher.kill()
    finally:
        launcher.close()
        if companion is not None:
            companion.close()
    return report.return_code if report.return_code >= 0 else 128 - report.return_code


def _forward_until_end(launcher: FrontEndLauncher, signals: int) -> None:
    while True:
        ready, _, _ = select.select([launcher.pidfd, signals], [], [])
        if launcher.pidfd in ready:
            return
        for number in os.read(signals, 64):
            if number in _FORWARDED:
                launcher.signal(number)


def _reachable(fields: dict[str, Any], workspace: WorkspaceInfo) -> AbstractContextManager[Callable[[], None]]:
    """Make the kernel's sockets reachable where the front end expects them; yields a call for after the start."""
    if fields["transport"] == "ipc":
        return _links(fields, workspace)
    ports = {int(fields[f"{name}_port"]): f"{workspace.ipc_dir}/k-{number}" for name, number in CHANNELS.items()}
    return relayed(str(fields["ip"]), ports)


@contextmanager
def _links(fields: dict[str, Any], workspace: WorkspaceInfo) -> Iterator[Callable[[], None]]:
    links = []
    try:
        for name, number in CHANNELS.items():
            link = Path(f"{fields['ip']}-{fields[f'{name}_port']}")
            link.unlink(missing_ok=True)
            link.symlink_to(f"{workspace.ipc_dir}/k-{number}")
            links.append(link)
        yield lambda: None
    finally:
        for link in links:
            link.unlink(missing_ok=True)


@contextmanager
def _signals_as_descriptor() -> Iterator[int]:
    readable, writable = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    previous = {number: signal.signal(number, lambda _number, _frame: None) for number in _FORWARDED}
    signal.set_wakeup_fd(writable)
    try:
        yield readable
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in previous.items():
            signal.signal(number, handler)
        os.close(readable)
        os.close(writable)
