"""Which process is the gateway: a file in the state directory that names it so that no other can be taken for
it.

===========  =======================================================================================
``pid``      process id of the gateway
``started``  start time of that process in clock ticks since boot (proc(5), field 22 of ``stat``)
``boot``     the kernel's boot id; ticks of different boots do not compare
``url``      where it listens
===========  =======================================================================================

A pid alone may have passed to a stranger; the first three together name one process for ever.

The state directory may belong to the user that the gateway gives its root up for. What that user could put
there must not make root signal a process of its choice or write through a link: links are not followed, and a
file that somebody else owns is not believed.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path


class DaemonError(Exception):
    """The gateway could not be started or stopped; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Running:
    """One process, named so that it cannot be taken for another."""

    pid: int
    started: int
    boot: str
    url: str

    @classmethod
    def of(cls, pid: int, url: str) -> Running:
        """Name a process that lives or was just started by us."""
        return cls(pid, _start_ticks(pid) or 0, _boot_id(), url)

    @property
    def alive(self) -> bool:
        """Whether exactly this process still runs (a zombie does not)."""
        return _start_ticks(self.pid) == self.started and _boot_id() == self.boot


def _start_ticks(pid: int) -> int | None:
    try:
        # the command's name may hold spaces and brackets: fields are counted from the last bracket
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def run_file_path(state_dir: Path) -> Path:
    """Return the file that names the running process."""
    return state_dir / "gateway.run"


def open_own(path: Path, flags: int) -> int:
    """Open a file of ours and return the descriptor; it is made with mode 0600, and a link is refused.

    Raises
    ------
    DaemonError
        Somebody else owns the file.
    OSError
        As of open(2); a link is ELOOP.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    owner = os.fstat(descriptor).st_uid
    if owner != os.getuid():
        os.close(descriptor)
        raise DaemonError(f"{path} belongs to uid {owner}: only that user can use this gateway")
    return descriptor


def find_running(state_dir: Path) -> Running | None:
    """Return the gateway that was started over `state_dir` and still runs, if any.

    Raises
    ------
    DaemonError
        The run file is damaged or somebody else's.
    """
    path = run_file_path(state_dir)
    try:
        with os.fdopen(open_own(path, os.O_RDONLY)) as file:
            running = Running(**json.loads(file.read()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise DaemonError(f"{path} is damaged ({error}); remove it if no gateway runs") from None
    return running if running.alive else None


def write_run_file(state_dir: Path, running: Running) -> None:
    """Name `running` as the gateway of `state_dir`; readers see the old file or the new one, never half."""
    path = run_file_path(state_dir)
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(open_own(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "w") as file:
        json.dump(asdict(running), file)
    fresh.replace(path)


@contextmanager
def locked(state_dir: Path) -> Iterator[None]:
    """Let one start or stop work over `state_dir` at a time; the lock goes with the process that holds it."""
    state_dir.mkdir(parents=True, exist_ok=True)
    with os.fdopen(open_own(state_dir / "gateway.lock", os.O_WRONLY | os.O_CREAT), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
