"""Memory and processor time of all processes of a workspace, measured from outside: for hosts without a cgroup.

setrlimit limits one process; a job may have many, and memory that is in none of them. The sum has anonymous and shared
memory of every process, files in /dev/shm that the workspace's user owns, and open memory files that are not mapped.

The cheap sum counts a page for each process that maps it, and a forked kernel maps a hundred megabytes of its
template. So the cheap sum only proves that a job is below its limit; above it the proportional shares are read, for
which Linux walks all page tables (about 1 ms per 100 MB). Where these may not be read, the template's part is
subtracted for each process.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from kernel_spec.linux import procfs
from kernel_spec.linux.procfs import ProcessStatus
from kernel_spec.linux.rmtree import remove_tree

_SHARED_MEMORY_DIR: Final = "/dev/shm"  # noqa: S108
_MEMORY_FILES: Final = ("/memfd:", "/dev/shm/", "/SYSV")  # noqa: S108
#: Reading /dev/shm takes one part of eleven of this process's time at most.
_PAUSE: Final = 10


@dataclass(frozen=True, slots=True)
class MemoryUsage:
    """Memory and processor time of a workspace.

    Attributes
    ----------
    memory_bytes : int
        Memory of all processes together.
    exact : bool
        Whether shared pages were counted by share; else `memory_bytes` is an upper bound or an estimate.
    processes, threads : int
        Number of living ones.
    cpu_seconds : float
        CPU time of the living and of the children they have waited for.
    """

    memory_bytes: int
    exact: bool
    processes: int
    threads: int
    cpu_seconds: float


def measure(
    processes: Iterable[ProcessStatus],
    *,
    limit_bytes: int,
    template_bytes: int = 0,
    uid: int | None = None,
    unlinked_shm_bytes: int = 0,
) -> MemoryUsage:
    """Return what `processes` use together.

    Parameters
    ----------
    processes : iterable of ProcessStatus
        The processes of one workspace, from `processes.of_workspace` or a cgroup.
    limit_bytes : int
        Up to this a rough sum is enough.
    template_bytes : int
        Anonymous memory of the fork server, which every forked process shows as its own.
    uid : int or None
        The workspace's own user, whose files in /dev/shm are counted; None where it shares one.
    unlinked_shm_bytes : int
        Growth of `hidden_shared_bytes` since the launcher started, where the open files of a workspace may not be
        inspected (this layer is then reported as degraded). Every workspace is charged with it, because its owner is
        unknown.
    """
    living = [status for status in processes if status.is_alive]
    pids = [status.pid for status in living]
    files = unlinked_shm_bytes + _memory_files(pids, uid)
    rough = files + sum(status.anonymous_bytes + status.shared_bytes for status in living)
    memory_bytes, exact = rough, False
    if rough > limit_bytes:
        memory_bytes, exact = _by_share(living, template_bytes)
        memory_bytes += files
    return MemoryUsage(
        memory_bytes=memory_bytes,
        exact=exact,
        processes=len(living),
        threads=sum(status.threads for status in living),
        cpu_seconds=sum(map(procfs.read_cpu_seconds, pids)),
    )


def hidden_shared_bytes() -> int:
    """Return the space in /dev/shm of files that were removed but are still open or mapped; see `SharedFiles`."""
    return _SHARED_MEMORY.current().hidden_bytes


def count_shared_files(uid: int) -> int:
    """Return the number of files of a user in /dev/shm; an empty one takes memory that counts nowhere."""
    return _SHARED_MEMORY.current().files[uid]


def sweep_shared_files(uid: int) -> int:
    """Remove the files of a user in /dev/shm and return their number; call it when no process of the user lives.

    Raises
    ------
    OSError
        A file could not be removed.
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


@dataclass(frozen=True, slots=True)
class SharedFiles:
    """The contents of /dev/shm.

    Attributes
    ----------
    files : Counter
        Number of names by the user that owns them.
    sizes : dict
        Space of each file by device and inode, by the same user.
    hidden_bytes : int
        Space of files that were removed but are still open or mapped.
    """

    files: Counter[int]
    sizes: dict[int, dict[tuple[int, int], int]]
    hidden_bytes: int

    @classmethod
    def read(cls) -> SharedFiles:
        """Read them anew."""
        files: Counter[int] = Counter()
        sizes: dict[int, dict[tuple[int, int], int]] = {}
        try:
            filesystem = os.statvfs(_SHARED_MEMORY_DIR)
            with os.scandir(_SHARED_MEMORY_DIR) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):
                        found = entry.stat(follow_symlinks=False)
                        files[found.st_uid] += 1
                        sizes.setdefault(found.st_uid, {})[found.st_dev, found.st_ino] = found.st_blocks * 512
        except OSError:
            return cls(files, sizes, 0)
        visible = sum(size for of_user in sizes.values() for size in of_user.values())
        return cls(files, sizes, max(0, (filesystem.f_blocks - filesystem.f_bfree) * filesystem.f_frsize - visible))


class _SharedMemory:
    """Reads /dev/shm once for all workspaces: it takes as long as all jobs together have files there."""

    def __init__(self) -> None:
        self._found: SharedFiles | None = None
        self._valid_until = 0.0

    def current(self) -> SharedFiles:
        """Return the contents, at most ten times as old as the CPU time that it took to read them."""
        if self._found is None or time.monotonic() >= self._valid_until:
            began = time.thread_time()
            self._found = SharedFiles.read()
            self._valid_until = time.monotonic() + _PAUSE * (time.thread_time() - began)
        return self._found


_SHARED_MEMORY: Final = _SharedMemory()


def _by_share(living: Iterable[ProcessStatus], template_bytes: int) -> tuple[int, bool]:
    total, exact = 0, True
    for status in living:
        share = procfs.read_share(status.pid)
        if share is None:
            exact = False
            share = max(0, status.anonymous_bytes - template_bytes) + status.shared_bytes
        total += share
    return total, exact


def _memory_files(pids: Collection[int], uid: int | None) -> int:
    """Return the size of files in memory, each once: those of the user and those that its processes have open.

    A page that is also mapped is counted a second time with its process; the sum is an upper bound.
    """
    sizes: dict[tuple[int, int], int] = {}
    for pid in pids:
        for file in procfs.open_files(pid, prefixes=_MEMORY_FILES):
            sizes[file.device, file.inode] = file.allocated_bytes
    if uid is not None:
        sizes |= _SHARED_MEMORY.current().sizes.get(uid, {})
    return sum(sizes.values())
