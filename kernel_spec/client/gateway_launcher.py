"""The launcher of a gateway on this machine, for front ends of the same user, and the choice between it and a new one.

A gateway's launcher has a fork server, so a kernel starts in a tenth of the time. It serves only the user who
started it. The front end trusts the directory of that gateway (its companion writes there with the user's rights), so
this directory must belong to the user as well, and must not be writable for others. It also trusts the gateway's
process, which could ask the companion for the user's files. So a gateway that has dropped root is used only if
TRANSFORM_GATEWAY names it.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
import struct
import sys
from pathlib import Path
from typing import Any

from kernel_spec.client.front_end import FrontEndLauncher, StandaloneLauncher
from kernel_spec.client.process import LauncherError
from kernel_spec.protocol.channel import Channel
from kernel_spec.protocol.messages import GATEWAY_ANSWERS, Take
from kernel_spec.protocol.values import WorkspaceInfo

#: In the state directory; the gateway listens on it.
GATEWAY_SOCKET = "run/kernels.sock"
#: pid, uid and gid of the peer of a socket (unix(7), `struct ucred`).
PEER_CREDENTIALS = struct.Struct("3i")
#: How long to wait for a gateway, which normally answers within milliseconds.
TAKE_SECONDS = 5.0


class GatewayLauncher(FrontEndLauncher):
    """The launcher of a running gateway of the same user.

    Parameters
    ----------
    state_dir : Path
        State directory of the gateway.
    is_trusted : bool
        Whether to use a gateway that runs as another user, because it has dropped root.
    allow_network, allow_loopback : bool
        Permissions that the kernel needs; the gateway refuses those that its jobs do not have.

    Raises
    ------
    LauncherError
        There is no gateway, or it is not this user's.
    """

    forks = True

    def __init__(
        self, state_dir: Path, *, is_trusted: bool = True, allow_network: bool = False, allow_loopback: bool = False
    ) -> None:
        self._state_dir = state_dir.absolute()
        self._allow_network, self._allow_loopback = allow_network, allow_loopback
        endpoint = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            _check_owner(self._state_dir)
            endpoint.settimeout(TAKE_SECONDS)
            endpoint.connect(str(self._state_dir / GATEWAY_SOCKET))
            if not is_trusted:
                _check_peer(endpoint)
        except OSError as error:
            endpoint.close()
            text = f"no gateway offers kernels in {self._state_dir}: {error.strerror or error}"
            raise LauncherError("no_gateway", text) from None
        except BaseException:
            endpoint.close()
            raise
        super().__init__(Channel(endpoint, accepts=GATEWAY_ANSWERS))

    def reserve(self, kernel_id: str) -> WorkspaceInfo:
        self._kernel_id = kernel_id
        request = Take(self._next_id(), os.path.realpath(sys.prefix), self._allow_network, self._allow_loopback)
        workspace: WorkspaceInfo = self._ask(request, TAKE_SECONDS)[0].workspace
        root_dir = str(self._state_dir.resolve() / "workspaces")
        # Do not write to a path that the answer names: this process may be root, and the gateway may have dropped it.
        expected = WorkspaceInfo.below(root_dir, workspace.name, workspace.uid, workspace.gid)
        if workspace != expected or not workspace.name.isalnum():
            text = f"the gateway named a workspace elsewhere: {workspace.workspace_dir}"
            raise LauncherError("launcher_failed", text)
        return workspace


def _check_owner(state_dir: Path) -> None:
    """Refuse the directory of another user, and one in which another user could put a socket."""
    status = state_dir.stat()
    if status.st_uid != os.geteuid():
        text = f"the gateway in {state_dir} belongs to user {status.st_uid} and offers kernels only to that user"
        raise LauncherError("not_served", text)
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise LauncherError("not_served", f"{state_dir} is writable for other users")


def _check_peer(endpoint: socket.socket) -> None:
    """Refuse the process of another user."""
    _, uid, _ = PEER_CREDENTIALS.unpack(
        endpoint.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER_CREDENTIALS.size)
    )
    if uid != os.geteuid():
        text = f"the gateway has dropped root and runs as user {uid}; set TRANSFORM_GATEWAY to trust it with your files"
        raise LauncherError("not_served", text)


def open_launcher(
    kernel_id: str,
    gateway: str | None,
    log: logging.Logger | logging.LoggerAdapter[Any],
    read_only_paths: tuple[str, ...] = (),
    *,
    allow_network: bool = False,
    allow_loopback: bool = False,
    debugger: bool = False,
) -> tuple[FrontEndLauncher, WorkspaceInfo]:
    """Return the launcher of a gateway if there is one, else a new one, and its reserved workspace.

    Parameters
    ----------
    kernel_id : str
        Id of the kernel.
    gateway : str or None
        State directory of the gateway; empty for no gateway. None: STATE_DIR of the environment, or its default, in
        which a gateway may run.
    log : logging.Logger
        Gets one line if the kernel does not come from a gateway: a warning if a gateway was named or refused, else a
        debug message.
    read_only_paths : tuple of str
        Absolute paths that the kernel may read besides its own directory; a gateway's kernels cannot.
    allow_network, allow_loopback : bool
        See `LauncherOptions`.
    debugger : bool
        Whether the kernel will serve the debugger protocol; a gateway's kernels cannot.

    Returns
    -------
    launcher : FrontEndLauncher
    workspace : WorkspaceInfo

    Raises
    ------
    LauncherError
        There is no launcher.
    """
    level = logging.DEBUG if gateway is None else logging.WARNING
    state_dir = Path(os.environ.get("STATE_DIR") or ".state") if gateway is None else Path(gateway)
    try:
        if gateway == "":
            pass
        elif read_only_paths or debugger:
            what = "serves the debugger" if debugger else f"may read {':'.join(read_only_paths)}"
            log.log(level, "this kernel has a launcher of its own, because it %s", what)
        else:
            launcher = GatewayLauncher(
                state_dir,
                is_trusted=gateway is not None,
                allow_network=allow_network,
                allow_loopback=allow_loopback,
            )
            return _reserved(launcher, kernel_id)
    except LauncherError as error:
        if error.code != "no_gateway":
            level = logging.WARNING
        log.log(level, "this kernel has a launcher of its own: %s", error)
    own = StandaloneLauncher(read_only_paths, allow_network=allow_network, allow_loopback=allow_loopback)
    return _reserved(own, kernel_id)


def _reserved(launcher: FrontEndLauncher, kernel_id: str) -> tuple[FrontEndLauncher, WorkspaceInfo]:
    try:
        return launcher, launcher.reserve(kernel_id)
    except BaseException:
        launcher.close()
        raise
