"""How much memory and CPU time all processes of a seat use, measured from outside: for hosts without a cgroup.

setrlimit bounds a process; a job is many, and some memory is in none of them. Counted here: anonymous and shared memory
of every process, files in /dev/shm that the seat's user owns, and memory files that are open but mapped nowhere.

The cheap sum counts a page for each process that maps it, and a forked kernel maps a hundred megabytes of its
template. So the cheap sum only acquits; above the limit the shares are asked for, which takes a walk through all page
tables (about 1 ms per 100 MB). Where it may not be asked, the template's part is taken off for each process.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from kernel_spec.removal import remove_tree
from kernel_spec.sandbox import procfs
from kernel_spec.sandbox.procfs import Status

_SHARED_MEMORY_DIR: Final = "/dev/shm"  # noqa: S108
_MEMORY_FILES: Final = ("/memfd:", "/dev/shm/", "/SYSV")  # noqa: S108


@dataclass(frozen=True, slots=True)
class Usage:
    """What a seat uses.

    Attributes
    ----------
    memory_bytes
        Memory of all processes together.
    exact
        Whether shared pages were counted by share; else `memory_bytes` is an upper bound or an estimate.
    processes, threads
        How many live.
    cpu_seconds
        CPU time of the living and of the children they have waited for.
    """

    memory_bytes: int
    exact: bool
    processes: int
    threads: int
    cpu_seconds: float


def measure(
    processes: Iterable[Status],
    *,
    limit_bytes: int,
    template_bytes: int = 0,
    uid: int | None = None,
    hidden_bytes: int = 0,
) -> Usage:
    """Measure what `processes` use together.

    Parameters
    ----------
    processes
        The processes of one seat, from `processes.of_seat` or a cgroup.
    limit_bytes
        Up to this a rough sum is enough.
    template_bytes
        Anonymous memory of the fork server, which every forked process shows as its own.
    uid
        The seat's own user, whose files in /dev/shm are counted; None where it shares one.
    hidden_bytes
        What `hidden_shared_bytes` has grown by since the launcher started, where the open files of a seat may not be
        inspected (this layer is then reported as degraded). Any seat is charged with it: it cannot be told whose it is.
    """
    living = [status for status in processes if status.lives]
    pids = [status.pid for status in living]
    files = hidden_bytes + _memory_files(pids, uid)
    rough = files + sum(status.anonymous_bytes + status.shared_bytes for status in living)
    memory_bytes, exact = rough, False
    if rough > limit_bytes:
        memory_bytes, exact = _by_share(living, template_bytes)
        memory_bytes += files
    return Usage(
        memory_bytes=memory_bytes,
        exact=exact,
        processes=len(living),
        threads=sum(status.threads for status in living),
        cpu_seconds=sum(map(procfs.read_cpu_seconds, pids)),
    )


def hidden_shared_bytes() -> int:
    """Return what /dev/shm takes beyond its visible files: those that were removed but are open or mapped."""
    try:
        filesystem = os.statvfs(_SHARED_MEMORY_DIR)
        visible = sum(found.st_blocks * 512 for found in _shared_files())
    except OSError:
        return 0
    return max(0, (filesystem.f_blocks - filesystem.f_bfree) * filesystem.f_frsize - visible)


def sweep_shared_files(uid: int) -> int:
    """Remove what a user has left in /dev/shm, and return how many; for a seat's own user, when nothing of it lives.

    Raises
    ------
    OSError
        Something could not be removed.
    """
    swept = 0
    with suppress(FileNotFoundError), os.scandir(_SHARED_MEMORY_DIR) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                if entry.stat(follow_symlinks=False).st_uid != uid:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    remove_tree(entry.path)
                else:
                    os.unlink(entry.path)  # noqa: PTH108
                swept += 1
    return swept


def _shared_files() -> Iterator[os.stat_result]:
    with suppress(FileNotFoundError), os.scandir(_SHARED_MEMORY_DIR) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                yield entry.stat(follow_symlinks=False)


def _by_share(living: Iterable[Status], template_bytes: int) -> tuple[int, bool]:
    total, exact = 0, True
    for status in living:
        share = procfs.read_share(status.pid)
        if share is None:
            exact = False
            share = max(0, status.anonymous_bytes - template_bytes) + status.shared_bytes
        total += share
    return total, exact


def _memory_files(pids: Collection[int], uid: int | None) -> int:
    """Return the size of files that are memory, each once: those of the user and those held open by its processes.

    A page that is also mapped is counted a second time with its process; being an upper bound is the safe side.
    """
    sizes: dict[tuple[int, int], int] = {}
    for pid in pids:
        for file in procfs.open_files(pid, prefixes=_MEMORY_FILES):
            sizes[file.device, file.inode] = file.allocated_bytes
    if uid is not None:
        for found in _shared_files():
            if found.st_uid == uid:
                sizes[found.st_dev, found.st_ino] = found.st_blocks * 512
    return sum(sizes.values())
