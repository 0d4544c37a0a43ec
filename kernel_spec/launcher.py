"""The launcher: owns seats, starts kernels, ends them, and says why they ended.

Started as ``python -P -m kernel_spec.launcher <control descriptor> <options>`` by `kernel_spec.launcher_client`. It is
the only process that may be root: it has no network, no secret, one thread, the standard library, and talks in
validated messages on one inherited socket. Kernels are its children, also those that the fork server forked, because it
is a subreaper (prctl(2)); so it alone learns their true exit status.

When the socket closes, the gateway is gone: everything is ended and removed, then the launcher exits. When the
launcher itself is killed, the parent-death signal ends every kernel, and the next launcher sweeps the directories.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from kernel_spec import confinement
from kernel_spec.channel import Channel
from kernel_spec.codec import from_json
from kernel_spec.messages import GATEWAY_REQUESTS, Refused
from kernel_spec.options import LauncherOptions
from kernel_spec.removal import remove_tree
from kernel_spec.sandbox import syscalls
from kernel_spec.seats import SeatError, Seats, SeatUser, lease_users, shared_users
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
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    try:
        return _serve(options, channel)
    except (SeatError, OSError) as error:
        channel.send(Refused(0, "launcher_failed", str(error)))
        return 1


def _serve(options: LauncherOptions, channel: Channel) -> int:
    host = confinement.survey(options)
    users = _seat_users(options, own_uids=host.own_uids)
    gateway_uid = os.geteuid() if options.gateway_uid is None else options.gateway_uid
    seats = Seats(Path(options.state_dir) / "seats", users, gateway_uid)
    try:
        seats.open()
        supervisor = Supervisor(options, channel, seats, host)
        channel.send(supervisor.hello())
        supervisor.run()
    finally:
        seats.close()
        if options.temporary:
            remove_tree(options.state_dir)
    return 0


def _seat_users(options: LauncherOptions, *, own_uids: bool) -> list[SeatUser]:
    return lease_users(options.seats) if own_uids else shared_users(options.seats)


if __name__ == "__main__":
    sys.exit(main())
