"""Seats: a user id and a directory that exactly one kernel occupies at a time.

============ ============== ====================================================================
path         owner, mode    use
============ ============== ====================================================================
``./``       root:S 0750    the gateway reaches it through its supplementary group S
``ipc/``     S:S 2770       connection file and sockets; the kernel's umask is 007
``inputs/``  G:S 2750       the gateway moves inputs here, the kernel reads
``work/``    S:S 0700       working directory, HOME and TMPDIR of the kernel
``out/``     S:S 2770       output, manifest, result
============ ============== ====================================================================

S is the seat's uid and gid, G the gateway's uid. Without root both are the user who started the launcher.

A user id is leased by a lock on a file that root owns, for as long as the launcher lives: two gateways on one machine
would else kill each other's kernels, because killing goes by user id. Whatever still runs under a freshly leased id,
or lies in a locked ``seats/`` directory, was left by a launcher that died, and is ours to sweep.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import secrets
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kernel_spec.messages import SeatInfo
from kernel_spec.removal import remove_tree

# sun_path is 108 bytes with its terminating NUL (unix(7)); measured to hold for libzmq's ipc too.
LONGEST_SOCKET_PATH_BYTES = 107
FIRST_SEAT_UID = 58_000
LAST_SEAT_UID = 58_999
SEAT_ACCOUNT = "pyexec"
"""An account in that range which is made for a seat, so that tools which show processes have a name for it."""

# The second where /run cannot be written, as in a container with a read-only root.
_LEASE_DIRS = (Path("/run/transform-gateway"), Path("/tmp/transform-gateway-leases"))  # noqa: S108
_SUBDIRECTORIES = {"ipc": 0o2770, "inputs": 0o2750, "work": 0o700, "out": 0o2770}
_OWNED_BY_GATEWAY = "inputs"


class SeatError(RuntimeError):
    """Seats cannot be made; the text says why and which setting to change."""


@dataclass(frozen=True, slots=True)
class SeatUser:
    """The user of one seat, with the descriptor that holds its lease (None without root)."""

    uid: int
    gid: int
    lease: int | None = None


@dataclass(slots=True)
class Seats:
    """All seats of one launcher.

    Parameters
    ----------
    root_dir
        ``<STATE_DIR>/seats``; made when absent, locked as long as this lives.
    users
        One for each seat, from `lease_users`, or the same for all.
    gateway_uid
        Owner of the ``inputs/`` directories.
    """

    root_dir: Path
    users: list[SeatUser]
    gateway_uid: int
    _free: list[SeatUser] = field(default_factory=list)
    _lock: int = -1

    def open(self, end_processes: Callable[[str], None] = lambda _: None) -> list[str]:
        """Lock the directory, sweep what a dead launcher left, and return the names of the seats swept.

        Parameters
        ----------
        end_processes
            Called with the directory of each seat that was left, before it is removed.

        Raises
        ------
        SeatError
            The path is too long for sockets, is in use by another launcher, or is not safe.
        """
        check_socket_path(self.root_dir)
        self.root_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
        self._lock = os.open(self.root_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        owner = os.fstat(self._lock).st_uid
        if owner != os.geteuid():
            raise SeatError(f"{self.root_dir} belongs to user {owner}; set STATE_DIR to a directory of your own")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SeatError(f"{self.root_dir} is in use by another gateway; give each its own STATE_DIR") from None
        os.fchmod(self._lock, 0o711)
        self._free = list(self.users)
        return self._sweep(end_processes)

    def _sweep(self, end_processes: Callable[[str], None]) -> list[str]:
        leftovers = [entry.name for entry in os.scandir(self.root_dir) if _is_seat_name(entry.name)]
        for name in leftovers:
            end_processes(str(self.root_dir / name))
            remove_tree(self.root_dir / name)
        return leftovers

    @property
    def free(self) -> int:
        """How many seats nobody sits in."""
        return len(self._free)

    def take(self) -> tuple[SeatUser, SeatInfo]:
        """Make the directory of a free seat and return both.

        Raises
        ------
        SeatError
            All seats are taken.
        """
        if not self._free:
            raise SeatError(f"all {len(self.users)} seats are taken")
        # The one that has been free longest: a user id is not reused sooner than it must be.
        user = self._free.pop(0)
        try:
            return user, self._make(user)
        except BaseException:
            self._free.append(user)
            raise

    def give_back(self, user: SeatUser) -> None:
        """Make the seat free again; its directory is removed and nothing of its user lives."""
        self._free.append(user)

    def replace_users(self, users: list[SeatUser]) -> None:
        """Give up the leases and use these users instead; no seat may be taken yet."""
        self._end_leases()
        self.users = users
        self._free = list(users)

    def close(self) -> None:
        """Give up the lock and the leases."""
        self._end_leases()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _end_leases(self) -> None:
        for user in self.users:
            if user.lease is not None:
                # While the lock is held: whoever opens the name after this gets a file of its own.
                Path(f"/proc/self/fd/{user.lease}").readlink().unlink(missing_ok=True)
                os.close(user.lease)

    def _make(self, user: SeatUser) -> SeatInfo:
        name = secrets.token_hex(4)
        seat_dir = self.root_dir / name
        # The umask must not take bits away, and the mode must be right before anybody can get in.
        os.mkdir(name, 0o700, dir_fd=self._lock)
        with _as_group(user.gid):
            for child, mode in _SUBDIRECTORIES.items():
                path = seat_dir / child
                path.mkdir(mode=0o700)
                path.chmod(mode)
                _own(path, self.gateway_uid if child == _OWNED_BY_GATEWAY else user.uid, user.gid)
                if stat.S_IMODE(path.stat().st_mode) != mode:
                    # the kernel could then read nothing that the gateway makes
                    text = f"{path} does not keep its mode {mode:o}; STATE_DIR is on a file system that drops it"
                    raise SeatError(text)
        _own(seat_dir, os.geteuid(), user.gid)
        seat_dir.chmod(0o750)
        return SeatInfo(
            name=name,
            uid=user.uid,
            gid=user.gid,
            seat_dir=str(seat_dir),
            ipc_dir=str(seat_dir / "ipc"),
            inputs_dir=str(seat_dir / "inputs"),
            work_dir=str(seat_dir / "work"),
            out_dir=str(seat_dir / "out"),
        )


def check_socket_path(root_dir: Path) -> None:
    """Check that the sockets of a seat below `root_dir` get a path that a socket can have.

    Raises
    ------
    SeatError
        The path is relative or too long; the text names STATE_DIR.
    """
    if not root_dir.is_absolute():
        raise SeatError(f"STATE_DIR must be an absolute path, not {root_dir}")
    longest = os.fsencode(root_dir / "00000000" / "ipc" / "k-1")
    if len(longest) > LONGEST_SOCKET_PATH_BYTES:
        excess = len(longest) - LONGEST_SOCKET_PATH_BYTES
        raise SeatError(
            f"STATE_DIR is {excess} bytes too long: sockets below {root_dir} would have paths of {len(longest)}"
            f" bytes, and {LONGEST_SOCKET_PATH_BYTES} is the most that a Unix socket can have"
        )


def lease_users(
    count: int, first: int = FIRST_SEAT_UID, last: int = LAST_SEAT_UID, host: str | None = None
) -> list[SeatUser]:
    """Lease `count` user ids that no account and no other launcher uses; needs root.

    Containers on one machine share its user ids and cannot see each other's leases, and the kernel counts the processes
    of a user in all of them together. So each host name begins elsewhere in the range.

    Raises
    ------
    SeatError
        The range is exhausted or the directory of leases is not safe.
    """
    directory = _lease_directory()
    leased: list[SeatUser] = []
    begin = zlib.crc32((os.uname().nodename if host is None else host).encode())
    for number in range(last - first + 1):
        if len(leased) == count:
            break
        uid = first + (begin + number) % (last - first + 1)
        if _has_account(uid):
            continue
        lease = _try_lease(directory / str(uid))
        if lease is not None:
            leased.append(SeatUser(uid=uid, gid=uid, lease=lease))
    if len(leased) < count:
        for user in leased:
            os.close(user.lease if user.lease is not None else -1)
        raise SeatError(f"only {len(leased)} of {count} user ids are free between {first} and {last}")
    return leased


def shared_users(count: int) -> list[SeatUser]:
    """Return `count` seats that all keep the user of this process."""
    return [SeatUser(uid=os.geteuid(), gid=os.getegid()) for _ in range(count)]


def _lease_directory() -> Path:
    problem = "there is no place for it"
    for directory in _LEASE_DIRS:
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            problem = str(error)
            continue
        status = directory.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != 0 or status.st_mode & 0o022:
            raise SeatError(f"{directory} must be a directory that only root can write")
        return directory
    raise SeatError(f"cannot make the directory for the leases of user ids: {problem}")


def _try_lease(path: Path) -> int | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Between opening and locking the former holder may have removed the name.
        current = path.stat().st_ino == os.fstat(descriptor).st_ino
    except (BlockingIOError, FileNotFoundError):
        current = False
    if not current:
        os.close(descriptor)
        return None
    return descriptor


def _has_account(uid: int) -> bool:
    try:
        return pwd.getpwuid(uid).pw_name != SEAT_ACCOUNT
    except KeyError:
        return False


@contextmanager
def _as_group(gid: int) -> Iterator[None]:
    """Make files of this group; root needs no capability then to change modes of what is its own and of its own group.

    chmod(2) drops the set-group-id bit of another group's file without CAP_FSETID, and refuses what is somebody else's
    without CAP_FOWNER; an ordinary container can do without both.
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


def _is_seat_name(name: str) -> bool:
    # The sandbox's probe makes a seat of its own here.
    return name.startswith("probe-") or (len(name) == 8 and not set(name) - set("0123456789abcdef"))
