"""What faces the network has no privilege: giving root away for good, once the launcher has it.

Started as root, the gateway becomes the user ``gateway`` where there is one, else a user id that nobody has, with the
seats' groups as its supplementary groups: that is all it needs to hand inputs to a kernel and to read what it wrote.
Started as anybody else, it stays who it is.
"""

from __future__ import annotations

import ctypes
import logging
import os
import pwd
import sys
from dataclasses import dataclass
from pathlib import Path

from gateway.errors import ConfigurationError

log = logging.getLogger(__name__)

GATEWAY_USER = "gateway"
FALLBACK_UID = 57_999
"""Just below the seats' ids, in the range that Debian's policy leaves to local use and no tool hands out by itself."""

PR_SET_DUMPABLE = 4
OWN_DIRECTORIES = ("run", "jobs", "results", "uploads", "s3")


@dataclass(frozen=True, slots=True)
class GatewayUser:
    """Who the gateway runs as, and why it could not be somebody else."""

    uid: int
    gid: int
    problem: str = ""


def gateway_user() -> GatewayUser:
    """Return who the gateway will be; as root that is somebody else, if that user can read what Python needs."""
    if os.geteuid() != 0:
        return GatewayUser(os.geteuid(), os.getegid(), "not started as root: every process has the same user")
    try:
        entry = pwd.getpwnam(GATEWAY_USER)
        uid, gid = entry.pw_uid, entry.pw_gid
    except KeyError:
        uid = gid = FALLBACK_UID
    missing = _unreadable_for(uid, gid)
    if missing:
        return GatewayUser(
            0, 0, f"the gateway keeps root: other users cannot read {missing}; install Python and the project elsewhere"
        )
    return GatewayUser(uid, gid)


def prepare_state_dir(state_dir: Path, user: GatewayUser) -> None:
    """Make the state directory and, in it, the directories that the gateway itself writes to.

    The directory itself stays with whoever started us: the launcher, which may be root, works in it, and the gateway
    must not be able to swap what root is about to remove.

    Raises
    ------
    ConfigurationError
        When it cannot be made or belongs to somebody else.
    """
    try:
        state_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        for name in OWN_DIRECTORIES:
            directory = state_dir / name
            directory.mkdir(mode=0o700, exist_ok=True)
            if os.geteuid() == 0:
                # a mode can be changed without CAP_FOWNER by the owner alone, and after the last start that is the user
                os.chown(directory, 0, -1, follow_symlinks=False)
            if name == "run":
                directory.chmod(0o755)
            if os.geteuid() == 0:
                os.chown(directory, user.uid, user.gid, follow_symlinks=False)
    except OSError as error:
        raise ConfigurationError(
            f"the state directory {state_dir} cannot be used: {error.strerror or error}. "
            "Set STATE_DIR (--state-dir) to one that can"
        ) from error


def drop(user: GatewayUser, seat_gids: tuple[int, ...]) -> None:
    """Become `user` for good, and hide this process's memory from everyone of the same user (prctl(2),
    PR_SET_DUMPABLE).

    Raises
    ------
    ConfigurationError
        When root could be had back.
    """
    if os.geteuid() == 0 and user.uid != 0:
        os.setgroups(sorted({user.gid, *seat_gids}))
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
        try:
            os.setresuid(0, 0, 0)
        except PermissionError:
            pass
        else:
            raise ConfigurationError(
                "root could not be given away; run the gateway in an ordinary container or as a plain user"
            )
    elif user.problem:
        log.warning("%s", user.problem)
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def _unreadable_for(uid: int, gid: int) -> str:
    """Return the first path that Python needs and that the user could not read; asked of a child that becomes that
    user.
    """
    needed = [sys.executable, *[path for path in sys.path if path and Path(path).exists()], str(Path(__file__).parent)]
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            refused = next((path for path in needed if not os.access(path, os.R_OK)), "")
            os.write(write, os.fsencode(refused))
        finally:
            os._exit(0)
    os.close(write)
    try:
        return os.fsdecode(os.read(read, 4096))
    finally:
        os.close(read)
        os.waitpid(child, 0)
