"""The pid file ``gateway.run`` in the state directory: the gateway's process, and its address.

===========  =======================================================================================
``pid``      process id of the gateway
``started``  start time of that process in clock ticks since boot (proc(5), field 22 of ``stat``)
``boot``     the boot id of Linux; ticks of different boots do not compare
``url``      where it listens
``cert``     path of its TLS certificate; empty without TLS
``token``    a random token for the held kernels and consoles only
``inode``    inode of the file itself: a copy of the state directory is not that of the gateway that runs
===========  =======================================================================================

Linux reuses a pid; the first three together name one process forever. The file is empty while no gateway runs.

The token makes the right to read this file enough to list, release and attach to held kernels, so no AUTH_TOKEN is
needed in the shell of a person who debugs. On this machine it grants nothing new: the connection files of held kernels
are readable for the same users. In a cluster it also lists and releases the kernels of other hosts.

The state directory may belong to the user that the gateway becomes when it drops root. A file which that user puts
there must not make root signal a process of its choice or write through a link: links are not followed, and a file of
another user is not trusted.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from gateway.core.addresses import local_url
from gateway.core.directories import make_state_dir
from gateway.core.errors import ConfigurationError
from gateway.core.settings import Settings
from kernel_spec.linux import procfs

#: Files of older versions that this one replaces.
OLD_FILES = ("gateway.lock", "run/gateway.json", "run/token")

#: The directory that the launcher of an older version locks as long as it runs.
OLD_LOCKED_DIRECTORY = "seats"

#: Longest wait for a gateway that has begun to end: its memory is freed in tenths of a second, but a thread that waits
#: for a disk without an answer never ends.
ENDING_SECONDS = 10.0


class DaemonError(Exception):
    """The gateway could not be found, started or stopped; the text says why and how to fix it."""


@dataclass(frozen=True, slots=True)
class Running:
    """One gateway process, identified so that no other process can be taken for it."""

    pid: int
    started: int
    boot: str
    url: str
    token: str = field(default="", repr=False)
    cert: str = ""
    inode: int = 0

    @classmethod
    def of(cls, pid: int, url: str, token: str = "", cert: str = "", inode: int = 0) -> Running:
        """Identify a process that runs now."""
        return cls(pid, procfs.read_start_ticks(pid) or 0, _boot_id(), url, token, cert, inode)

    @property
    def alive(self) -> bool:
        """Whether exactly this process still runs (a zombie does not, once all of its threads have ended)."""
        return procfs.read_start_ticks(self.pid) == self.started and _boot_id() == self.boot

    def outlives_its_end(self) -> bool:
        """Return whether it runs, after a wait for its end if that has begun.

        A process that is killed loses its threads one by one, and the last one closes its sockets: up to 0.8 s
        later on a busy machine (measured). A gateway that starts in this time would find its port in use.
        """
        deadline = time.monotonic() + ENDING_SECONDS
        while self.alive:
            if not procfs.is_exiting(self.pid) or time.monotonic() > deadline:
                return True
            time.sleep(0.005)
        return False


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def pid_file_path(state_dir: Path) -> Path:
    """Return the path of the pid file."""
    return state_dir / "gateway.run"


def open_own(path: Path, flags: int) -> int:
    """Open a file of this user and return the descriptor; a new file gets mode 0600, and a link is refused.

    Raises
    ------
    DaemonError
        The file belongs to another user.
    OSError
        As of open(2); a link is ELOOP.
    """
    descriptor = _open(path, flags)
    owner = os.fstat(descriptor).st_uid
    if owner != os.getuid():
        os.close(descriptor)
        raise DaemonError(f"{path} belongs to uid {owner}: only that user can use this gateway")
    return descriptor


def _open(path: Path, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def find_running(state_dir: Path, *, of_any_user: bool = False) -> Running | None:
    """Return the gateway that runs with `state_dir`, if any; one that has begun to end is waited for, up to 10 s.

    Parameters
    ----------
    state_dir : Path
        Of the gateway; need not exist.
    of_any_user : bool
        Whether to accept a file of another user. Root needs that to look at a user's gateway; signals and tokens of
        its own must not go where such a file points.

    Raises
    ------
    DaemonError
        The file is damaged or belongs to another user.
    OSError
        The file cannot be read.
    """
    path = pid_file_path(state_dir)
    try:
        descriptor = _open(path, os.O_RDONLY) if of_any_user else open_own(path, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    with os.fdopen(descriptor, errors="replace") as file:
        text, inode = file.read(), os.fstat(descriptor).st_ino
    if not text:
        return None
    try:
        running = Running(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise DaemonError(f"{path} is damaged ({error}); remove it if no gateway runs") from None
    if running.inode not in (0, inode):
        return None
    return running if running.outlives_its_end() else None


def url_by_environment() -> str:
    """Return the URL of a gateway with the settings of this environment, whether or not it runs."""
    defaults = Settings()
    scheme = "https" if os.environ.get("TLS_CERT_FILE") else "http"
    return local_url(os.environ.get("HOST") or defaults.host, os.environ.get("PORT") or defaults.port, scheme)


class PidFile:
    """The pid file as the gateway itself holds it: claimed by entering, written once, and emptied at the end.

    It is opened before root is dropped and emptied through the descriptor, because the gateway's user cannot write
    to it by name.

    Raises
    ------
    ConfigurationError
        Another gateway runs with this state directory, or the file cannot be written.
    """

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._descriptor = -1
        self._written = False

    def __enter__(self) -> Self:
        path = pid_file_path(self._state_dir)
        try:
            _refuse_old_gateway(self._state_dir)
            with suppress(DaemonError):  # damaged: it is overwritten
                if (other := find_running(self._state_dir, of_any_user=True)) is not None:
                    raise ConfigurationError(
                        f"a gateway already uses {self._state_dir}: {other.url} (pid {other.pid}); "
                        "give each gateway its own STATE_DIR (--state-dir)"
                    )
            for name in OLD_FILES:
                (self._state_dir / name).unlink(missing_ok=True)
            try:
                self._descriptor = open_own(path, os.O_RDWR | os.O_CREAT)
            except DaemonError:  # of another user, whose gateway has ended
                path.unlink()
                self._descriptor = open_own(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        except OSError as error:
            raise ConfigurationError(
                f"{path} cannot be written: {error.strerror or error}; set STATE_DIR (--state-dir) to a directory "
                "of your own"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._written:
            os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)

    def write(self, url: str, cert: str = "") -> Running:
        """Name this process, listening on `url`, as the gateway of the state directory, with a new token."""
        inode = os.fstat(self._descriptor).st_ino
        running = Running.of(os.getpid(), url, secrets.token_urlsafe(32), cert, inode)
        os.ftruncate(self._descriptor, 0)
        self._written = True
        # one short write into an empty file: a reader sees nothing or all of it
        os.pwrite(self._descriptor, json.dumps(asdict(running)).encode(), 0)
        return running


def _refuse_old_gateway(state_dir: Path) -> None:
    try:
        directory = os.open(state_dir / OLD_LOCKED_DIRECTORY, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigurationError(f"a gateway of an older version uses {state_dir}; stop it first") from None
    finally:
        os.close(directory)


@contextmanager
def locked(state_dir: Path) -> Iterator[None]:
    """Let one start or stop work on `state_dir` at a time; the lock ends with the process that holds it.

    Raises
    ------
    DaemonError
        The directory cannot be used, or the pid file belongs to another user.
    """
    try:
        make_state_dir(state_dir)
        descriptor = open_own(pid_file_path(state_dir), os.O_RDWR | os.O_CREAT)
    except OSError as error:
        text = f"the state directory {state_dir} cannot be used: {error.strerror}; set STATE_DIR to another one"
        raise DaemonError(text) from None
    with os.fdopen(descriptor, "r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
