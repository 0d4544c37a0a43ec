"""Drop root for good, once the launcher has started, so that the process that serves the network has no privilege.

Started as root, the gateway becomes the user ``gateway`` if there is one, else an unused user id. The workspaces'
groups are its supplementary groups, which is enough to pass inputs to a kernel and to read its output. Started as
another user, the gateway stays that user.
"""

from __future__ import annotations

import ctypes
import logging
import os
import pwd
import stat
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gateway.core.directories import make_state_dir
from gateway.core.errors import ConfigurationError, NotReady
from gateway.storage.state_directory import DiskSpace
from kernel_spec.launcher.user_leases import FIRST_WORKSPACE_UID, LAST_WORKSPACE_UID

log = logging.getLogger(__name__)

GATEWAY_USER = "gateway"

#: Just below the workspaces' ids, in the range that Debian's policy leaves to local use and no tool assigns.
FALLBACK_UID = 57_999

#: Space for the start itself: the job store, and the trials of the sandbox. Without it the trials would fail, and the
#: probe would report that this host has no sandbox.
START_BYTES, START_INODES = 8 << 20, 200

_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

PR_SET_DUMPABLE = 4
OWN_DIRECTORIES = ("run", "jobs", "results", "uploads", "outbox", "parcels", "s3", "store")


@dataclass(frozen=True, slots=True)
class GatewayUser:
    """The user that the gateway becomes, and the reason why it cannot be another one.

    Attributes
    ----------
    uid : int
        User id.
    gid : int
        Group id.
    problem : str
        Empty when root can be dropped.
    """

    uid: int
    gid: int
    problem: str = ""


def gateway_user() -> GatewayUser:
    """Return the user that the gateway becomes: root stays root only if no other user can read Python's files."""
    if os.geteuid() != 0:
        return GatewayUser(os.geteuid(), os.getegid(), "not started as root, so all processes have the same user")
    try:
        entry = pwd.getpwnam(GATEWAY_USER)
        uid, gid = entry.pw_uid, entry.pw_gid
    except KeyError:
        uid = gid = FALLBACK_UID
    missing = _first_refused(uid, gid, os.R_OK, _python_paths())
    if missing:
        return GatewayUser(
            0, 0, f"the gateway keeps root: other users cannot read {missing}; install Python and the project elsewhere"
        )
    return GatewayUser(uid, gid)


def prepare_state_dir(state_dir: Path, user: GatewayUser) -> None:
    """Create the state directory and, in it, the directories that the gateway writes to.

    The directory itself keeps its owner: the launcher, which may be root, works in it, and the gateway must not be
    able to replace files that root is about to remove.

    Raises
    ------
    ConfigurationError
        The directory cannot be created, belongs to another user, or cannot be entered by `user`.
    NotReady
        Its disk is full.
    """
    try:
        make_state_dir(state_dir)
        shortage = DiskSpace.of(state_dir).shortage(START_BYTES, START_INODES)
        if shortage:
            raise NotReady(
                f"the disk of the state directory {state_dir} {shortage}, which a start needs: free some, or set "
                "STATE_DIR (--state-dir) to another disk"
            )
        for name in OWN_DIRECTORIES:
            directory = state_dir / name
            directory.mkdir(mode=0o700, exist_ok=True)
            if os.geteuid() == 0:
                # without CAP_FOWNER only the owner can change a mode, and since the last start that is `user`
                os.chown(directory, 0, -1, follow_symlinks=False)
            if name == "run":
                directory.chmod(0o755)
            if os.geteuid() == 0:
                os.chown(directory, user.uid, user.gid, follow_symlinks=False)
        if os.geteuid() == 0 and user.uid != 0:
            _take_over_outputs(state_dir / "outbox", user)
    except OSError as error:
        raise ConfigurationError(
            f"the state directory {state_dir} cannot be used: {error.strerror or error}. "
            "Set STATE_DIR (--state-dir) to another directory"
        ) from error
    if os.geteuid() == 0 and user.uid != 0:
        refused = _first_refused(
            user.uid, user.gid, os.X_OK, [str(path) for path in (*state_dir.parents[::-1], state_dir)]
        )
        if refused:
            raise ConfigurationError(
                f"the gateway drops root, and uid {user.uid} cannot enter {refused}, so the state directory cannot be "
                f"used: chmod 755 {refused}, or set STATE_DIR (--state-dir) to another directory"
            )


def _take_over_outputs(outbox: Path, user: GatewayUser) -> None:
    """Give the gateway the outputs that jobs of an earlier process left in its outbox; an error leaves one as it is.

    They belong to users of workspaces, in whose groups the gateway may not be this time. The gateway's user owns the
    directory, so nothing in it is trusted: links are not followed, and only a file that has no other name and belongs
    to the user of a workspace changes its owner.
    """
    with suppress(OSError), os.scandir(outbox) as entries:
        for entry in entries:
            with suppress(OSError):
                directory = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    _take_over(os.open("output", _FILE, dir_fd=directory), user)
                finally:
                    os.close(directory)


def _take_over(descriptor: int, user: GatewayUser) -> None:
    try:
        info = os.fstat(descriptor)
        is_of_a_job = FIRST_WORKSPACE_UID <= info.st_uid <= LAST_WORKSPACE_UID
        if stat.S_ISREG(info.st_mode) and info.st_nlink == 1 and is_of_a_job:
            os.fchown(descriptor, user.uid, user.gid)
            os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)


def check_readable(path: Path, user: GatewayUser, setting: str) -> None:
    """Refuse a file that is read again later, if the user that the gateway becomes cannot read it.

    Raises
    ------
    ConfigurationError
        The file exists, and `user` cannot read it.
    """
    if os.geteuid() != 0 or user.uid == 0 or not path.exists():
        return
    refused = _first_refused(user.uid, user.gid, os.R_OK, [str(path)])
    if refused:
        raise ConfigurationError(
            f"the gateway drops root, and uid {user.uid} cannot read {path} ({setting}): chown {user.uid} {path}, and "
            "let that user enter its directory"
        )


def drop(user: GatewayUser, workspace_gids: tuple[int, ...]) -> None:
    """Become `user` for good, and hide this process's memory from others of that user (PR_SET_DUMPABLE, prctl(2)).

    Raises
    ------
    ConfigurationError
        The process could become root again.
    """
    if os.geteuid() == 0 and user.uid != 0:
        os.setgroups(sorted({user.gid, *workspace_gids}))
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
        try:
            os.setresuid(0, 0, 0)
        except PermissionError:
            pass
        else:
            raise ConfigurationError(
                "root could not be dropped; run the gateway in an ordinary container or as another user"
            )
    elif user.problem:
        log.warning("%s", user.problem)
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def _python_paths() -> list[str]:
    return [
        sys.executable,
        *[path for path in sys.path if path and Path(path).exists()],
        str(Path(__file__).parents[1]),
    ]


def _first_refused(uid: int, gid: int, mode: int, paths: list[str]) -> str:
    """Return the first path to which the user has no access; a child that becomes the user finds it."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            refused = next((path for path in paths if not os.access(path, mode)), "")
            os.write(write, os.fsencode(refused))
        finally:
            os._exit(0)
    os.close(write)
    try:
        return os.fsdecode(os.read(read, 4096))
    finally:
        os.close(read)
        os.waitpid(child, 0)
