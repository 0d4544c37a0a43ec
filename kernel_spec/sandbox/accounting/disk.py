"""Disk space of a workspace, counted without following a link and without blocking.

RLIMIT_FSIZE limits one file; this is the sum. Blocks are counted, not lengths, so a sparse file counts with its space.
Files that were removed but are still open take space too: they are found through the processes that have them open.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from kernel_spec.linux import procfs

_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


#: Each level of a walk has a descriptor.
MOST_LEVELS: Final = 100


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """Space and entries of a workspace; `complete` is False if there are too many entries or levels to count."""

    used_bytes: int
    entries: int
    complete: bool


class _Count:
    def __init__(self, most_entries: int) -> None:
        self.used_bytes = 0
        self.entries = 0
        self.complete = True
        self._most_entries = most_entries
        self._seen: set[tuple[int, int]] = set()

    def add(self, key: tuple[int, int], used_bytes: int) -> None:
        if key not in self._seen:
            self._seen.add(key)
            self.used_bytes += used_bytes

    def add_entries(self, directory_fd: int) -> Iterator[str]:
        """Count the entries of one directory and yield the names of its subdirectories."""
        with suppress(FileNotFoundError), os.scandir(directory_fd) as entries:  # it was removed meanwhile
            for entry in entries:
                self.entries += 1
                if self.entries > self._most_entries:
                    self.complete = False
                    break
                try:
                    found = entry.stat(follow_symlinks=False)
                except PermissionError:
                    raise
                except OSError:
                    continue  # removed meanwhile
                self.add((found.st_dev, found.st_ino), found.st_blocks * 512)
                if stat.S_ISDIR(found.st_mode):
                    yield entry.name


def measure(*directories: str, pids: Collection[int] = (), most_entries: int = 100_000) -> DiskUsage:
    """Return the space of directories of a workspace and of the removed but open files that `pids` had in them.

    Parameters
    ----------
    *directories : str
        Any directories; a file with names in several of them counts once.
    pids : collection of int
        Living processes of the workspace.
    most_entries : int
        Stop counting at this number: a job with more entries is over any quota by its inodes.

    Raises
    ------
    FileNotFoundError
        There is no such directory.
    PermissionError
        The mode of a directory does not let this process measure its contents.
    """
    count = _Count(most_entries)
    devices = set()
    for directory in directories:
        fd = os.open(directory, _OPEN_DIRECTORY)
        devices.add(os.fstat(fd).st_dev)
        _walk(fd, count)
    prefixes = tuple(f"{directory}/" for directory in directories)
    for pid in pids:
        for file in procfs.open_files(pid, prefixes=prefixes):
            if file.links == 0 and file.device in devices:
                count.add((file.device, file.inode), file.allocated_bytes)
    return DiskUsage(count.used_bytes, count.entries, count.complete)


def _walk(fd: int, count: _Count) -> None:
    """Count a tree and close its descriptor.

    Each directory on the way down stays open: the job may move directories during the walk, so ".." may lead elsewhere.
    """
    levels: list[tuple[int, list[str]]] = [(fd, [])]
    try:
        levels[0][1].extend(count.add_entries(fd))
        while levels and count.complete:
            directory_fd, pending = levels[-1]
            if not pending:
                levels.pop()
                os.close(directory_fd)
            elif len(levels) == MOST_LEVELS:
                count.complete = False
            elif (below := _open_below(directory_fd, pending.pop())) is not None:
                levels.append((below, []))
                levels[-1][1].extend(count.add_entries(below))
    finally:
        for directory_fd, _ in levels:
            os.close(directory_fd)


def _open_below(parent_fd: int, name: str) -> int | None:
    try:
        return os.open(name, _OPEN_DIRECTORY, dir_fd=parent_fd)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None  # it was removed, or replaced by a file or a link
        raise
