"""The launcher: it owns workspaces, starts kernels, terminates them, and reports why they ended.

Started as ``python -P -m kernel_spec.launcher <control descriptor> <options> [users]`` by `kernel_spec.client.process`
or by `kernel_spec.supervisor`. Launcher and supervisor are the only processes that may be root. The launcher has no
network, no secret, one thread, and the standard library with msgspec. It reads validated messages from one inherited
socket. Kernels are its children, also those that the fork server forks: as its siblings
(`kernel_spec.fork_server.clone_parent`), or through an intermediate process whose orphans Linux gives to the launcher,
a subreaper (prctl(2)). So the launcher alone gets their true exit status.

When the socket closes, the gateway is gone: the launcher kills and removes everything, then exits. It ignores the
signals that systemd and terminals send to all processes at once, because the gateway needs it to drain. When the
launcher itself is killed, the parent-death signal ends every kernel, and the next launcher removes the directories.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from kernel_spec.kernel import confinement
from kernel_spec.launcher.event_loop import IGNORED_SIGNALS
from kernel_spec.launcher.kernel_processes import end_leftovers, end_marked
from kernel_spec.launcher.server import LauncherServer
from kernel_spec.launcher.user_leases import (
    WorkspaceError,
    WorkspaceUser,
    inherited_users,
    lease_users,
    shared_users,
)
from kernel_spec.launcher.workspaces import WorkspacePool
from kernel_spec.linux.rmtree import remove_tree
from kernel_spec.protocol.channel import Channel, ChannelClosed
from kernel_spec.protocol.messages import GATEWAY_REQUESTS, Refused
from kernel_spec.protocol.options import LauncherOptions
from kernel_spec.sandbox import SandboxError
from kernel_spec.sandbox.accounting import processes
from kernel_spec.sandbox.layers import dumpable


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a launcher on the control socket whose descriptor is named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m kernel_spec.launcher", description=__doc__)
    parser.add_argument("control", type=int, help="descriptor of the control socket")
    parser.add_argument("options", help="kernel_spec.protocol.options.LauncherOptions as JSON")
    parser.add_argument("users", nargs="?", default="", help="user ids that the supervisor has leased")
    parsed = parser.parse_args(arguments)
    options = msgspec.json.decode(parsed.options, type=LauncherOptions)
    os.set_inheritable(parsed.control, False)
    channel = Channel(socket.socket(fileno=parsed.control), accepts=GATEWAY_REQUESTS)
    # The gateway's terminal sends Ctrl-C to the whole process group; only the gateway may act on it.
    if os.getsid(0) != os.getpid():
        os.setsid()
    os.umask(0o077)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    # Not SIG_IGN: that would outlive an exec, and the fork server and all kernels would ignore them too.
    for number in IGNORED_SIGNALS:
        signal.signal(number, lambda _number, _frame: None)
    try:
        processes.become_subreaper()
        # Where jobs share its user, they must not read the launcher's memory and descriptors.
        dumpable.apply()
        return _serve(options, channel, inherited_users(parsed.users))
    except (WorkspaceError, SandboxError, OSError) as error:
        print(f"launcher: {error}", file=sys.stderr, flush=True)  # noqa: T201
        # The gateway is gone already if the error came while everything was removed.
        with contextlib.suppress(ChannelClosed):
            code = error.code if isinstance(error, WorkspaceError) else "launcher_failed"
            channel.send(Refused(0, code, str(error)))
        return 1


def _serve(options: LauncherOptions, channel: Channel, leased: list[WorkspaceUser]) -> int:
    gateway_uid = os.geteuid() if options.gateway_uid is None else options.gateway_uid
    if not leased and options.own_uids and os.geteuid() == 0:
        leased = lease_users(options.workspaces)
    workspaces = WorkspacePool(
        Path(options.state_dir) / "workspaces", leased or shared_users(options.workspaces), gateway_uid
    )
    server = LauncherServer(options, channel)
    try:
        for user in leased:
            end_leftovers(user.uid)
        workspaces.open(end_marked)
        fork_server_pid = server.start_fork_server()
        host = confinement.survey(options, workspaces.root_dir, leased[0].uid if leased else None)
        if leased and not host.own_uids:
            workspaces.replace_users(shared_users(options.workspaces))
        if host.groups is not None:
            host.groups.adopt(fork_server_pid)
        server.run(workspaces, host)
        if host.groups is not None:
            host.groups.close()
    finally:
        server.stop_fork_server()
        workspaces.close()
        if options.temporary:
            remove_tree(options.state_dir)
    return 0


if __name__ == "__main__":
    sys.exit(main())
