"""The launcher: owns seats, starts kernels, ends them, and says why they ended.

Started as ``python -P -m kernel_spec.launcher <control descriptor> <options>`` by `kernel_spec.launcher_client`. It is
the only process that may be root: it has no network, no secret, one thread, the standard library, and talks in
validated messages on one inherited socket. Kernels are its children, also those that the fork server forked: as its
siblings (`kernel_spec.siblings`) or by a process in between, whose orphans come to it, a subreaper (prctl(2)). So it
alone learns their true exit status.

When the socket closes, the gateway is gone: everything is ended and removed, then the launcher exits. When the
launcher itself is killed, the parent-death signal ends every kernel, and the next launcher sweeps the directories.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from kernel_spec import confinement
from kernel_spec.channel import Channel, ChannelClosed
from kernel_spec.codec import from_json
from kernel_spec.containment import end_leftovers, end_marked
from kernel_spec.messages import GATEWAY_REQUESTS, Refused
from kernel_spec.options import LauncherOptions
from kernel_spec.removal import remove_tree
from kernel_spec.sandbox import SandboxError, dumpable, processes
from kernel_spec.seats import SeatError, Seats, lease_users, shared_users
from kernel_spec.supervisor import Supervisor


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a launcher on the control socket whose descriptor is named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m kernel_spec.launcher", description=__doc__)
    parser.add_argument("control", type=int, help="descriptor of the control socket")
    parser.add_argument("options", help="kernel_spec.options.LauncherOptions as JSON")
    parsed = parser.parse_args(arguments)
    options = from_json(LauncherOptions, json.loads(parsed.options))
    os.set_inheritable(parsed.control, False)
    channel = Channel(socket.socket(fileno=parsed.control), accepts=GATEWAY_REQUESTS)
    # The gateway's terminal sends Ctrl-C to the whole group; only the gateway decides what that means.
    if os.getsid(0) != os.getpid():
        os.setsid()
    os.umask(0o077)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        processes.become_subreaper()
        # Where jobs share its user, the launcher's memory and descriptors are not theirs to look at.
        dumpable.apply()
        return _serve(options, channel)
    except (SeatError, SandboxError, OSError) as error:
        print(f"launcher: {error}", file=sys.stderr, flush=True)  # noqa: T201
        # Nobody listens to one that failed to tidy up after its gateway.
        with contextlib.suppress(ChannelClosed):
            channel.send(Refused(0, "launcher_failed", str(error)))
        return 1


def _serve(options: LauncherOptions, channel: Channel) -> int:
    gateway_uid = os.geteuid() if options.gateway_uid is None else options.gateway_uid
    leased = lease_users(options.seats) if options.own_uids and os.geteuid() == 0 else []
    seats = Seats(Path(options.state_dir) / "seats", leased or shared_users(options.seats), gateway_uid)
    supervisor = Supervisor(options, channel)
    try:
        for user in leased:
            end_leftovers(user.uid)
        seats.open(end_marked)
        fork_server_pid = supervisor.warm_up()
        host = confinement.survey(options, seats.root_dir, leased[0].uid if leased else None)
        if leased and not host.own_uids:
            seats.replace_users(shared_users(options.seats))
        if host.groups is not None:
            host.groups.adopt(fork_server_pid)
        supervisor.run(seats, host)
        if host.groups is not None:
            host.groups.close()
    finally:
        supervisor.stop_fork_server()
        seats.close()
        if options.temporary:
            remove_tree(options.state_dir)
    return 0


if __name__ == "__main__":
    sys.exit(main())
