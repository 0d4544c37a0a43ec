"""Disk space of a workspace, counted without following a link and without blocking.

RLIMIT_FSIZE limits one file; this is the sum. Blocks are counted, not lengths, so a sparse file counts with its space.
Files that were removed but are still open take space too: they are found through the processes that have them open.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from kernel_spec.linux import procfs

_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """Space and entries of a workspace; `complete` is False if a part of it could not be read."""

    used_bytes: int
    entries: int
    complete: bool


@dataclass(slots=True)
class _Level:
    """A directory on the way down: its device and inode, and its subdirectories that are still to be entered."""

    key: tuple[int, int]
    pending: list[str]


class _Count:
    def __init__(self, most_entries: int) -> None:
        self.used_bytes = 0
        self.entries = 0
        self.complete = True
        self.most_entries = most_entries
        self._seen: set[tuple[int, int]] = set()

    def add(self, key: tuple[int, int], used_bytes: int) -> None:
        if key not in self._seen:
            self._seen.add(key)
            self.used_bytes += used_bytes

    def level(self, directory_fd: int) -> _Level:
        """Count the entries of one directory."""
        own = os.fstat(directory_fd)
        level = _Level((own.st_dev, own.st_ino), [])
        with os.scandir(directory_fd) as entries:
            for entry in entries:
                self.entries += 1
                if self.entries > self.most_entries:
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
                    level.pending.append(entry.name)
        return level


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
    """Count a tree of any depth with one descriptor, and close it.

    The way back up is "..", and it must lead to the directory that the walk came from: the job may move directories
    during the walk.
    """
    try:
        levels = [count.level(fd)]
        while levels and count.entries <= count.most_entries:
            if levels[-1].pending:
                below = _open_below(fd, levels[-1].pending.pop(), count)
                if below is not None:
                    os.close(fd)
                    fd = below
                    levels.append(count.level(fd))
                continue
            levels.pop()
            if levels:
                above = os.open("..", _OPEN_DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = above
                found = os.fstat(fd)
                if (found.st_dev, found.st_ino) != levels[-1].key:
                    count.complete = False
                    return
    except PermissionError:
        raise
    except OSError:
        count.complete = False
    finally:
        os.close(fd)


def _open_below(parent_fd: int, name: str, count: _Count) -> int | None:
    try:
        return os.open(name, _OPEN_DIRECTORY, dir_fd=parent_fd)
    except FileNotFoundError:
        return None
    except PermissionError:
        raise
    except OSError:
        count.complete = False  # it was replaced by a link
        return None
