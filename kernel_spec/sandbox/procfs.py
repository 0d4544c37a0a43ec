"""Reading /proc/<pid>: what any user may see of any process, and what only its equals or root may."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

_ENDED: Final = frozenset("ZX")
# The task has left user space for good and is taken apart; include/linux/sched.h, shown by proc_pid_stat(5), field 9.
_PF_EXITING: Final = 0x4
_KIB: Final = 1024


@dataclass(frozen=True, slots=True)
class Status:
    """Some fields of ``/proc/<pid>/status``.

    The owner of the directory does not tell the user: it is root for every process that is not dumpable.
    """

    pid: int
    parent_pid: int
    uid: int
    state: str
    threads: int
    anonymous_bytes: int
    shared_bytes: int

    @property
    def lives(self) -> bool:
        """Whether the process can still do something: not a zombie."""
        return self.state not in _ENDED


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file that a process holds open: its identity, its size on the medium, and its name when it was opened."""

    device: int
    inode: int
    allocated_bytes: int
    links: int
    name: str


def read_status(pid: int) -> Status | None:
    """Return the status of a process, or None when there is no such process (any more)."""
    raw = _read(f"/proc/{pid}/status")
    return None if raw is None else _status(pid, raw)


def _status(pid: int, raw: bytes) -> Status:
    fields = dict(line.split(":", 1) for line in raw.decode(errors="replace").splitlines() if ":" in line)
    return Status(
        pid=pid,
        parent_pid=int(fields["PPid"]),
        uid=int(fields["Uid"].split()[0]),
        state=fields["State"].split()[0],
        threads=int(fields["Threads"]),
        # A process that is ending has no memory and lacks these lines.
        anonymous_bytes=_kilobytes(fields.get("RssAnon")),
        shared_bytes=_kilobytes(fields.get("RssShmem")),
    )


def is_exiting(thread_id: int) -> bool:
    """Return whether a thread has begun to exit, or is gone: no instruction of its program runs any more."""
    raw = _read(f"/proc/{thread_id}/stat")
    return raw is None or bool(int(raw.rpartition(b")")[2].split()[6]) & _PF_EXITING)


def statuses_of_user(uid: int) -> Iterator[Status]:
    """Yield the status of every process of a user; the others are not taken apart, which is most of the work."""
    wanted = b"\nUid:\t%d\t" % uid
    for pid in all_pids():
        raw = _read(f"/proc/{pid}/status")
        if raw is not None and wanted in raw:
            yield _status(pid, raw)


def all_pids() -> Iterator[int]:
    """Yield the pids that /proc shows, in no order that means anything."""
    for name in os.listdir("/proc"):  # noqa: PTH208 - in the path of every kill
        if name.isdigit():
            yield int(name)


def all_statuses() -> Iterator[Status]:
    """Yield the status of every process that /proc shows."""
    for pid in all_pids():
        status = read_status(pid)
        if status is not None:
            yield status


def read_limit(pid: int, title: str) -> int | None:
    """Return the hard limit that ``/proc/<pid>/limits`` lists under `title`; None when unlimited or unknown."""
    raw = _read(f"/proc/{pid}/limits") or b""
    for line in raw.decode(errors="replace").splitlines():
        if line.startswith(title):
            hard = line[len(title) :].split()[1]
            return int(hard) if hard.isdigit() else None
    return None


def read_cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and of its children that it has waited for; 0 when it is gone."""
    raw = _read(f"/proc/{pid}/stat")
    if raw is None:
        return 0.0
    # The name in parentheses may hold anything; utime, stime, cutime and cstime are fields 14 to 17.
    fields = raw.rpartition(b")")[2].split()
    return sum(int(ticks) for ticks in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def read_share(pid: int) -> int | None:
    """Return the memory of a process in bytes, pages that it shares divided by those who share them.

    Anonymous and shared memory only, not the page cache of mapped files. None when the process is gone or
    may not be inspected: it takes root, or the same user and a dumpable process.
    """
    raw = _read(f"/proc/{pid}/smaps_rollup")
    if not raw:
        return None
    total = 0
    for line in raw.splitlines():
        if line.startswith((b"Pss_Anon:", b"Pss_Shmem:")):
            total += int(line.split()[1]) * _KIB
    return total


def open_files(pid: int, *, prefixes: tuple[str, ...]) -> Iterator[OpenFile]:
    """Yield the regular files that a process holds open and whose names begin so; nothing where we may not look."""
    directory = f"/proc/{pid}/fd"
    names: list[str] = []
    with suppress(OSError):
        names = os.listdir(directory)  # noqa: PTH208
    for name in names:
        with suppress(OSError):
            place = os.readlink(f"{directory}/{name}")  # noqa: PTH115
            if place.startswith(prefixes):
                found = os.stat(f"{directory}/{name}")  # noqa: PTH116
                if stat.S_ISREG(found.st_mode):
                    allocated = found.st_blocks * 512
                    yield OpenFile(found.st_dev, found.st_ino, allocated, found.st_nlink, place)


def _kilobytes(field: str | None) -> int:
    return int(field.split()[0]) * _KIB if field else 0


def _read(path: str) -> bytes | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(fd, 1 << 16)
    except OSError:
        return None  # ESRCH: ended between open and read
    finally:
        os.close(fd)
