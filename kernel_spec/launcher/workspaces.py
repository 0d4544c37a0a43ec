"""Workspaces: a user id and a directory that exactly one kernel occupies at a time.

============ ============== ====================================================================
path         owner, mode    use
============ ============== ====================================================================
``./``       root:S 0750    the gateway reaches it through its supplementary group S
``ipc/``     S:S 2770       connection file and sockets; the kernel's umask is 007
``inputs/``  G:S 2750       the gateway moves inputs here, the kernel reads them; L:S for a notebook's companion
``work/``    S:S 0700       working directory, HOME and TMPDIR of the kernel
``out/``     S:S 2770       output, manifest, result
============ ============== ====================================================================

S is the workspace's uid and gid, G the gateway's uid, L the launcher's. Without root all are the same user.

The launcher holds a lock on ``<STATE_DIR>/workspaces`` and a lease of each user id. So all processes of a newly leased
id, and all directories in there at the start, were left by a launcher that died: this one kills and removes them.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from kernel_spec.launcher.user_leases import WorkspaceError, WorkspaceUser, WrongOwnerError
from kernel_spec.linux.rmtree import remove_tree
from kernel_spec.protocol.values import Style, WorkspaceInfo

#: sun_path is 108 bytes with its terminating NUL (unix(7)); measured to hold for libzmq's ipc too.
LONGEST_SOCKET_PATH_BYTES = 107

#: How long to wait for another launcher to end. If its gateway was killed while it started, it notices that, and ends
#: its kernels, only once it serves.
LOCK_SECONDS = 20.0

#: Name of the directory in the previous version.
_FORMER_NAME = "seats"
_SUBDIRECTORIES = {"ipc": 0o2770, "inputs": 0o2750, "work": 0o700, "out": 0o2770}


@dataclass(slots=True)
class WorkspacePool:
    """All workspaces of one launcher.

    Parameters
    ----------
    root_dir : Path
        ``<STATE_DIR>/workspaces``; made if it is absent, and locked until `close`.
    users : list of WorkspaceUser
        One for each workspace, from `lease_users`, or the same for all.
    gateway_uid : int
        Owner of the ``inputs/`` directories.
    """

    root_dir: Path
    users: list[WorkspaceUser]
    gateway_uid: int
    _free: list[WorkspaceUser] = field(default_factory=list)
    _lock: int = -1

    def open(self, end_processes: Callable[[str], None] = lambda _: None) -> list[str]:
        """Lock the directory and remove the workspaces that a dead launcher left.

        Parameters
        ----------
        end_processes : callable
            Called with the directory of each such workspace before its removal.

        Returns
        -------
        list of str
            Names of the removed workspaces.

        Raises
        ------
        WorkspaceError
            The path is too long for sockets, another launcher uses it, or it is not safe.
        """
        check_socket_path(self.root_dir)
        self.root_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
        self._lock = _open_locked(self.root_dir, LOCK_SECONDS)
        os.fchmod(self._lock, 0o711)
        self._free = list(self.users)
        return _sweep(self.root_dir, end_processes) + _sweep_former(self.root_dir.parent / _FORMER_NAME, end_processes)

    @property
    def free(self) -> int:
        """Number of free workspaces."""
        return len(self._free)

    def take(self, style: Style = "job") -> tuple[WorkspaceUser, WorkspaceInfo]:
        """Make the directory of a free workspace.

        Parameters
        ----------
        style : Style
            Style of the kernel, which decides about the owner of ``inputs/``.

        Returns
        -------
        user : WorkspaceUser
        workspace : WorkspaceInfo

        Raises
        ------
        WorkspaceError
            All workspaces are taken.
        """
        if not self._free:
            raise WorkspaceError(f"all {len(self.users)} workspaces are taken")
        # The one that has been free longest: a user id is not reused sooner than necessary.
        user = self._free.pop(0)
        try:
            return user, self._make(user, self.gateway_uid if style == "job" else os.geteuid())
        except BaseException:
            self._free.append(user)
            raise

    def release(self, user: WorkspaceUser) -> None:
        """Make the workspace free again; its directory is removed and its user has no process."""
        self._free.append(user)

    def replace_users(self, users: list[WorkspaceUser]) -> None:
        """End the leases and use these users instead; no workspace may be taken yet."""
        self._end_leases()
        self.users = users
        self._free = list(users)

    def close(self) -> None:
        """Release the lock and the leases."""
        self._end_leases()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _end_leases(self) -> None:
        for user in self.users:
            user.end_lease()

    def _make(self, user: WorkspaceUser, inputs_uid: int) -> WorkspaceInfo:
        name = secrets.token_hex(4)
        workspace_dir = self.root_dir / name
        # The umask must not take bits away, and the mode must be right before the directory can be entered.
        os.mkdir(name, 0o700, dir_fd=self._lock)
        with _as_group(user.gid):
            for child, mode in _SUBDIRECTORIES.items():
                path = workspace_dir / child
                path.mkdir(mode=0o700)
                path.chmod(mode)
                _own(path, inputs_uid if child == "inputs" else user.uid, user.gid)
                if stat.S_IMODE(path.stat().st_mode) != mode:
                    # The kernel could then not read the gateway's files.
                    text = f"{path} does not keep its mode {mode:o}; STATE_DIR is on a file system that drops it"
                    raise WorkspaceError(text)
        _own(workspace_dir, os.geteuid(), user.gid)
        workspace_dir.chmod(0o750)
        return WorkspaceInfo.below(str(self.root_dir), name, user.uid, user.gid)


def check_socket_path(root_dir: Path) -> None:
    """Check that the paths of the sockets of a workspace below `root_dir` are not too long.

    Parameters
    ----------
    root_dir : Path
        ``<STATE_DIR>/workspaces``.

    Raises
    ------
    WorkspaceError
        The path is relative or too long; the text names STATE_DIR.
    """
    if not root_dir.is_absolute():
        raise WorkspaceError(f"STATE_DIR must be an absolute path, not {root_dir}")
    longest = os.fsencode(root_dir / "00000000" / "ipc" / "k-1")
    if len(longest) > LONGEST_SOCKET_PATH_BYTES:
        excess = len(longest) - LONGEST_SOCKET_PATH_BYTES
        raise WorkspaceError(
            f"STATE_DIR is {excess} bytes too long: sockets below {root_dir} would have paths of {len(longest)}"
            f" bytes, and the path of a Unix socket has at most {LONGEST_SOCKET_PATH_BYTES}"
        )


def _open_locked(directory: Path, wait_seconds: float = 0.0) -> int:
    """Return a descriptor of the directory that holds a lock on it."""
    deadline = time.monotonic() + wait_seconds
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        owner = os.fstat(descriptor).st_uid
        if owner != os.geteuid():
            raise WrongOwnerError(f"{directory} belongs to user {owner}; set STATE_DIR to a directory of your own")
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return descriptor
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    text = f"{directory} is in use by another gateway; give each its own STATE_DIR"
                    raise WorkspaceError(text) from None
            time.sleep(0.02)
    except BaseException:
        os.close(descriptor)
        raise


def _sweep(directory: Path, end_processes: Callable[[str], None]) -> list[str]:
    leftovers = [entry.name for entry in os.scandir(directory) if _is_workspace_name(entry.name)]
    swept = []
    for name in leftovers:
        end_processes(str(directory / name))
        try:
            remove_tree(directory / name)
        except OSError as error:
            # Its name is not used again, so it is in nobody's way.
            print(f"launcher: {directory / name} could not be removed: {error}", file=sys.stderr, flush=True)  # noqa: T201
        else:
            swept.append(name)
    return swept


def _sweep_former(directory: Path, end_processes: Callable[[str], None]) -> list[str]:
    """Sweep the directory of a version that had another name for it, and remove it; foreign files stay."""
    try:
        status = directory.lstat()
    except FileNotFoundError:
        return []
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        return []
    lock = _open_locked(directory)
    try:
        swept = _sweep(directory, end_processes)
        with suppress(OSError):
            directory.rmdir()
        return swept
    finally:
        os.close(lock)


@contextmanager
def _as_group(gid: int) -> Iterator[None]:
    """Make files of this group, so that root needs no capability to change their modes.

    chmod(2) drops the set-group-id bit of another group's file without CAP_FSETID, and refuses another user's file
    without CAP_FOWNER; so an ordinary container can do without both.
    """
    if os.geteuid() != 0:
        yield
        return
    before = os.getegid()
    os.setegid(gid)
    try:
        yield
    finally:
        os.setegid(before)


def _own(path: Path, uid: int, gid: int) -> None:
    if os.geteuid() == 0:
        os.chown(path, uid, gid, follow_symlinks=False)


def _is_workspace_name(name: str) -> bool:
    # The probe of the sandbox makes a workspace of its own here, and the rehearsal of a fork server a directory.
    return name.startswith(("probe-", "try-")) or (len(name) == 8 and not set(name) - set("0123456789abcdef"))
