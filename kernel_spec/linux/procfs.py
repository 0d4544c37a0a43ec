"""Reading /proc/<pid>: files that any user may read, and files that only the same user or root may read."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

_ENDED: Final = frozenset("ZX")
#: The task has left user space for good and is being freed: include/linux/sched.h, in field 9 of proc_pid_stat(5).
_PF_EXITING: Final = 0x4
_KIB: Final = 1024
_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """Some fields of ``/proc/<pid>/status``.

    The owner of the directory is not the user: it is root for every process that is not dumpable.
    """

    pid: int
    parent_pid: int
    uid: int
    state: str
    threads: int
    anonymous_bytes: int
    shared_bytes: int

    @property
    def is_alive(self) -> bool:
        """Whether the process is not a zombie."""
        return self.state not in _ENDED


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file that a process has open: its identity, its size on disk, and its name when it was opened."""

    device: int
    inode: int
    allocated_bytes: int
    links: int
    name: str


def read_status(pid: int) -> ProcessStatus | None:
    """Return the status of a process, or None without such a process."""
    raw = _read(f"/proc/{pid}/status")
    return None if raw is None else _status(pid, raw)


def _status(pid: int, raw: bytes) -> ProcessStatus:
    fields = dict(line.split(":", 1) for line in raw.decode(errors="replace").splitlines() if ":" in line)
    return ProcessStatus(
        pid=pid,
        parent_pid=int(fields["PPid"]),
        uid=int(fields["Uid"].split()[0]),
        state=fields["State"].split()[0],
        threads=int(fields["Threads"]),
        # A process that is ending has no memory, and its file lacks these lines.
        anonymous_bytes=_kilobytes(fields.get("RssAnon")),
        shared_bytes=_kilobytes(fields.get("RssShmem")),
    )


def is_exiting(thread_id: int) -> bool:
    """Return whether a thread has begun to exit, or is gone: no instruction of its program runs any more."""
    fields = _stat_fields(thread_id)
    return fields is None or bool(int(fields[6]) & _PF_EXITING)


def statuses_of_user(uid: int) -> Iterator[ProcessStatus]:
    """Yield the status of every process of a user; parsing those of others would be most of the work."""
    wanted = b"\nUid:\t%d\t" % uid
    for pid in all_pids():
        raw = _read(f"/proc/{pid}/status")
        if raw is not None and wanted in raw:
            yield _status(pid, raw)


def all_pids() -> Iterator[int]:
    """Yield the pids in /proc, in no particular order."""
    for name in os.listdir("/proc"):  # noqa: PTH208 - in the path of every kill
        if name.isdigit():
            yield int(name)


def all_statuses() -> Iterator[ProcessStatus]:
    """Yield the status of every process in /proc."""
    for pid in all_pids():
        status = read_status(pid)
        if status is not None:
            yield status


def read_limit(pid: int, title: str) -> int | None:
    """Return a hard limit of a process.

    Parameters
    ----------
    pid : int
        The process.
    title : str
        The first column of ``/proc/<pid>/limits``.

    Returns
    -------
    int or None
        None if it is unlimited or unknown.
    """
    raw = _read(f"/proc/{pid}/limits") or b""
    for line in raw.decode(errors="replace").splitlines():
        if line.startswith(title):
            hard = line[len(title) :].split()[1]
            return int(hard) if hard.isdigit() else None
    return None


def read_cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and of its reaped children; 0 without such a process."""
    fields = _stat_fields(pid)
    # utime, stime, cutime and cstime are fields 14 to 17.
    return 0.0 if fields is None else sum(map(int, fields[11:15])) / _TICKS_PER_SECOND


def read_own_cpu(pid: int) -> tuple[int, float]:
    """Return when a process started, in clock ticks since boot, and its CPU time without that of any child; 0 without
    such a process.
    """
    fields = _stat_fields(pid)
    return (0, 0.0) if fields is None else (int(fields[19]), sum(map(int, fields[11:13])) / _TICKS_PER_SECOND)


def read_start_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; with the pid it identifies a process until a reboot.

    Returns
    -------
    int or None
        None without such a process, or if it is a zombie and all of its threads have ended: while one of them has not,
        the files and sockets of the process are open.
    """
    fields = _stat_fields(pid)
    if fields is None or (fields[0].decode() in _ENDED and int(fields[17]) <= 1):
        return None
    return int(fields[19])


def read_share(pid: int) -> int | None:
    """Return the proportional memory of a process: each page divided by the number of processes that share it.

    Only anonymous and shared memory counts, not the page cache of mapped files.

    Parameters
    ----------
    pid : int
        The process.

    Returns
    -------
    int or None
        Bytes; None if the process is gone or may not be inspected, which needs root, or the same user and a dumpable
        process.
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
    """Yield regular files that a process has open.

    Parameters
    ----------
    pid : int
        The process; nothing is yielded if it may not be inspected.
    prefixes : tuple of str
        Beginnings of the files' names.

    Yields
    ------
    OpenFile
    """
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


def _stat_fields(pid: int) -> list[bytes] | None:
    """Return the fields of /proc/<pid>/stat from the third on; the second, a name in parentheses, may hold anything."""
    raw = _read(f"/proc/{pid}/stat")
    return None if raw is None else raw.rpartition(b")")[2].split()


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
