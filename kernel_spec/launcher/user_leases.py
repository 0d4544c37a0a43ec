"""Users of workspaces: a user id for each, leased for as long as the launcher lives.

A lease is a lock on a file that root owns. Without leases two gateways on one machine would kill each other's kernels,
because the launcher kills by user id.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path

FIRST_WORKSPACE_UID = 58_000
LAST_WORKSPACE_UID = 58_999
#: An account in that range that is made for a workspace, so that tools that list processes have a name for it.
WORKSPACE_ACCOUNT = "pyexec"

#: The second is used where /run cannot be written, as in a container with a read-only root.
_LEASE_DIRS = (Path("/run/transform-gateway"), Path("/tmp/transform-gateway-leases"))  # noqa: S108


class WorkspaceError(RuntimeError):
    """Workspaces cannot be made; the text says why and which setting to change.

    Attributes
    ----------
    code : str
        For the client of the launcher.
    """

    code = "launcher_failed"


class WrongOwnerError(WorkspaceError):
    """The directory belongs to another user, which a later start would find again."""

    code = "wrong_owner"


@dataclass(frozen=True, slots=True)
class WorkspaceUser:
    """The user of one workspace.

    Attributes
    ----------
    uid, gid : int
        The user and its group.
    lease : int or None
        Descriptor that holds the lease; None without root.
    """

    uid: int
    gid: int
    lease: int | None = None

    def end_lease(self) -> None:
        """Remove the file of the lease and close it; does nothing without a lease."""
        if self.lease is not None:
            # While the lock is held: a process that opens the name after this gets a file of its own.
            Path(f"/proc/self/fd/{self.lease}").readlink().unlink(missing_ok=True)
            os.close(self.lease)


def lease_users(count: int, host: str | None = None) -> list[WorkspaceUser]:
    """Lease user ids that no account and no other launcher uses; needs root.

    Containers on one machine share its user ids and cannot see each other's leases, and Linux counts the processes of
    a user in all of them together. So each host name begins at another place of the range.

    Parameters
    ----------
    count : int
        Number of user ids.
    host : str or None
        Host name; None for that of this machine or container.

    Returns
    -------
    list of WorkspaceUser

    Raises
    ------
    WorkspaceError
        The range is exhausted or the directory of leases is not safe.
    """
    directory = _lease_directory()
    leased: list[WorkspaceUser] = []
    begin = zlib.crc32((os.uname().nodename if host is None else host).encode())
    first, last = FIRST_WORKSPACE_UID, LAST_WORKSPACE_UID
    for number in range(last - first + 1):
        if len(leased) == count:
            break
        uid = first + (begin + number) % (last - first + 1)
        if _has_account(uid):
            continue
        lease = _try_lease(directory / str(uid))
        if lease is not None:
            leased.append(WorkspaceUser(uid=uid, gid=uid, lease=lease))
    if len(leased) < count:
        for user in leased:
            user.end_lease()
        raise WorkspaceError(f"only {len(leased)} of {count} user ids are free between {first} and {last}")
    return leased


def inherited_users(text: str) -> list[WorkspaceUser]:
    """Return user ids that the supervisor has leased for all launchers that it starts.

    Their leases are descriptors that this process inherits and keeps open: they hold as long as the supervisor or a
    launcher lives, and the supervisor ends them.

    Parameters
    ----------
    text : str
        ``uid:descriptor``, separated by commas.

    Returns
    -------
    list of WorkspaceUser
    """
    users = []
    for pair in filter(None, text.split(",")):
        uid, _, descriptor = pair.partition(":")
        os.set_inheritable(int(descriptor), False)
        users.append(WorkspaceUser(int(uid), int(uid)))
    return users


def shared_users(count: int) -> list[WorkspaceUser]:
    """Return the user of this process, once for each of `count` workspaces."""
    return [WorkspaceUser(uid=os.geteuid(), gid=os.getegid()) for _ in range(count)]


def _lease_directory() -> Path:
    problem = "no directory was tried"
    for directory in _LEASE_DIRS:
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            problem = str(error)
            continue
        status = directory.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != 0 or status.st_mode & 0o022:
            raise WorkspaceError(f"{directory} must be a directory that only root can write")
        return directory
    raise WorkspaceError(f"cannot make the directory for the leases of user ids: {problem}")


def _try_lease(path: Path) -> int | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Between opening and locking the former holder may have removed the name.
        is_current = path.stat().st_ino == os.fstat(descriptor).st_ino
    except (BlockingIOError, FileNotFoundError):
        is_current = False
    if not is_current:
        os.close(descriptor)
        return None
    return descriptor


def _has_account(uid: int) -> bool:
    try:
        return pwd.getpwuid(uid).pw_name != WORKSPACE_ACCOUNT
    except KeyError:
        return False
