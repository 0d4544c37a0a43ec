"""Removing a directory with untrusted contents, by descriptors and without following links.

Only for directories in which no process runs any more: entries must not change between a test and its use. Recursive
deletion by path would follow a directory that was swapped for a link, and recursion by descriptors runs out of them in
a chain of ten thousand directories. So nothing recurses: a directory that is not empty is moved up to the top, so each
has depth one.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

_STEP_ENTRIES = 256


def remove_tree(path: str | Path) -> None:
    """Remove a directory and everything in it; does nothing if it does not exist.

    Parameters
    ----------
    path : str or Path
        The directory.

    Raises
    ------
    OSError
        An entry could not be removed, for instance a mount point.
    """
    for _ in removal_steps(path):
        pass


def removal_steps(path: str | Path) -> Iterator[int]:
    """Remove a directory in small steps, so that a loop can do other work between them.

    Parameters
    ----------
    path : str or Path
        The directory.

    Yields
    ------
    int
        The number of entries removed so far, about every 256 entries.
    """
    top = Path(path)
    try:
        parent = os.open(top.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not stat.S_ISDIR(os.stat(top.name, dir_fd=parent, follow_symlinks=False).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "not a directory", str(top))
        root = _open_directory(top.name, parent)
        try:
            yield from _empty(root)
        finally:
            os.close(root)
        os.rmdir(top.name, dir_fd=parent)
    except FileNotFoundError:
        return
    finally:
        os.close(parent)


def _empty(root: int) -> Iterator[int]:
    removed = 0
    pending: list[str] = []
    for name in _unlink_files(root):
        removed += 1
        if removed % _STEP_ENTRIES == 0:
            yield removed
        if name and not _rmdir(name, root):
            pending.append(name)
    while pending:
        name = pending.pop()
        directory = _open_directory(name, root)
        try:
            for child in _unlink_files(directory):
                removed += 1
                if removed % _STEP_ENTRIES == 0:
                    yield removed
                if not child or _rmdir(child, directory):
                    continue
                lifted = secrets.token_hex(8)
                # Moving a directory needs write permission on the directory itself, its ".." changes.
                _open_up(child, directory)
                os.rename(child, lifted, src_dir_fd=directory, dst_dir_fd=root)
                pending.append(lifted)
        finally:
            os.close(directory)
        os.rmdir(name, dir_fd=root)


def _unlink_files(directory: int) -> Iterator[str]:
    """Unlink all entries that are not directories; yield the name of each directory, and an empty one for a file."""
    with os.scandir(directory) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in found:
        if not is_directory:
            os.unlink(name, dir_fd=directory)
        yield name if is_directory else ""


def _rmdir(name: str, directory: int) -> bool:
    try:
        os.rmdir(name, dir_fd=directory)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _open_directory(name: str, parent: int) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, dir_fd=parent)
    except PermissionError:
        _open_up(name, parent)
        descriptor = os.open(name, flags, dir_fd=parent)
    status = os.fstat(descriptor)
    if os.geteuid() == 0 and status.st_uid != 0:
        # Without CAP_FOWNER root can neither change its mode nor, if it is sticky, remove its entries.
        os.fchown(descriptor, 0, -1)
    if stat.S_IMODE(status.st_mode) & 0o700 != 0o700:
        os.fchmod(descriptor, 0o700)
    return descriptor


def _open_up(name: str, parent: int) -> None:
    if os.geteuid() == 0:
        os.chown(name, 0, -1, dir_fd=parent, follow_symlinks=False)
    os.chmod(name, 0o700, dir_fd=parent)
