"""The supervisor of the launcher: it restarts the launcher, which the gateway cannot do after it has dropped root.

Started as ``python -P -m kernel_spec.supervisor <descriptor> <options>`` by `kernel_spec.client.process`, with the
privileges of the launcher. It makes a socket pair, starts a launcher with one end and sends the other to the gateway.
That is all it can do: command, options and environment are those of its own start, and **it reads nothing**, neither
from the gateway nor from a file. It ends when the gateway ends, which closes its socket.

It leases the user ids of the workspaces, so that each launcher has the same ones: the gateway is a member of their
groups, and cannot join others after it has dropped root.

The pause before a start doubles from `FIRST_PAUSE_SECONDS` to `LONGEST_PAUSE_SECONDS`, and is short again after a
launcher that ran for a minute. If the supervisor is killed, its launcher goes on; when that launcher ends, so does the
gateway.
"""

from __future__ import annotations

import array
import json
import os
import select
import signal
import socket
import sys
import time

from kernel_spec.launcher.user_leases import WorkspaceError, WorkspaceUser, lease_users
from kernel_spec.linux import syscalls

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 30.0
STABLE_SECONDS = 60.0

#: Time for the launcher to kill and remove everything when the gateway is gone; it gives up by itself a second earlier.
END_SECONDS = 11.0

#: As for the launcher: a stop of the whole service ends with the gateway's drain.
IGNORED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main(arguments: list[str]) -> int:
    """Supervise until the gateway is gone; `arguments` are the descriptor of the socket and the launcher's options."""
    gateway = socket.socket(fileno=int(arguments[0]))
    gateway.set_inheritable(False)
    # where jobs share its user, they must not read its memory and descriptors
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    # not SIG_IGN, which the launcher would inherit
    for number in IGNORED_SIGNALS:
        signal.signal(number, lambda _number, _frame: None)
    users = _lease(arguments[1])
    try:
        _supervise(gateway, arguments[1], users)
    finally:
        for user in users:
            user.end_lease()
    return 0


def _lease(options: str) -> list[WorkspaceUser]:
    """Lease the users of the workspaces; none if the launcher has to try that itself and report the error."""
    wanted = json.loads(options)
    try:
        users = lease_users(wanted["workspaces"]) if wanted["own_uids"] and os.geteuid() == 0 else []
    except (WorkspaceError, OSError):
        return []
    for user in users:
        if user.lease is not None:
            os.set_inheritable(user.lease, True)
    return users


def _supervise(gateway: socket.socket, options: str, users: list[WorkspaceUser]) -> None:
    pause_seconds = FIRST_PAUSE_SECONDS
    while True:
        began = time.monotonic()
        try:
            _wait(_start(gateway, options, users), gateway)
        except OSError as error:  # no memory or no process left
            print(f"supervisor: a launcher could not be started: {error}", file=sys.stderr, flush=True)  # noqa: T201
        if time.monotonic() - began > STABLE_SECONDS:
            pause_seconds = FIRST_PAUSE_SECONDS
        if _is_gone(gateway, pause_seconds):
            return
        pause_seconds = min(2 * pause_seconds, LONGEST_PAUSE_SECONDS)


def _start(gateway: socket.socket, options: str, users: list[WorkspaceUser]) -> int:
    """Start a launcher, send the gateway the other end of its control socket, and return the launcher's pid."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.set_inheritable(True)
        leased = ",".join(f"{user.uid}:{user.lease}" for user in users)
        command = [sys.executable, "-P", "-m", "kernel_spec.launcher", str(theirs.fileno()), options, leased]
        pid = os.posix_spawn(sys.executable, command, os.environ)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [ours.fileno()]))]
        try:
            gateway.sendmsg([b"\0"], rights, socket.MSG_NOSIGNAL)
        except OSError:
            # the gateway is gone; the launcher reads end of file and ends
            return pid
    return pid


def _wait(launcher: int, gateway: socket.socket) -> None:
    """Return when the launcher has ended; kill it if it outlives the gateway by too much."""
    pidfd = os.pidfd_open(launcher)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.register(gateway, 0)
        ready = {descriptor for descriptor, _ in poll.poll()}
        if pidfd not in ready:
            poll.unregister(gateway)
            if not poll.poll(END_SECONDS * 1000):
                os.kill(launcher, signal.SIGKILL)
    finally:
        os.close(pidfd)
    os.waitpid(launcher, 0)


def _is_gone(gateway: socket.socket, seconds: float) -> bool:
    """Return whether the gateway has closed its end, or closes it within `seconds`."""
    poll = select.poll()
    # no event is asked for: POLLHUP and POLLERR are reported all the same, and messages of the gateway are not read
    poll.register(gateway, 0)
    return bool(poll.poll(seconds * 1000))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
