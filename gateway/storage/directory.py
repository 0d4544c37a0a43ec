"""The caller's directories: files read and written below allowed roots, with no link followed and no race to
win.

A path is walked one component at a time, each opened relative to the one before with O_NOFOLLOW, so whoever
may rename things in between can only make the walk fail (openat2(2) with RESOLVE_BENEATH |
RESOLVE_NO_SYMLINKS does the same; Python has no call for it).
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from gateway.errors import FailureCode, JobFailed
from gateway.storage.artifacts import OpenOutput
from gateway.storage.files import copy_file, create_file

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class NotAllowed(OSError):
    """The path lies below none of the allowed roots, or leads out of it by a link."""


def root_of(path: Path, roots: Sequence[Path]) -> tuple[Path, tuple[str, ...]]:
    """Return the allowed root that `path` lies below and the components from there; looks at the text only.

    Raises
    ------
    NotAllowed
        The path is relative, holds ``..`` or a NUL, or lies below no root.
    """
    pure = PurePosixPath(path)
    if not pure.is_absolute() or ".." in pure.parts or "\0" in str(path):
        raise NotAllowed(errno.EACCES, "must be an absolute path without '..'")
    for root in roots:
        if pure.is_relative_to(root):
            return root, pure.relative_to(root).parts
    raise NotAllowed(errno.EACCES, "is not below a directory of WORKING_DIR_ROOTS")


@contextlib.contextmanager
def directory_below(path: Path, roots: Sequence[Path]) -> Iterator[int]:
    """Open a directory below one of `roots`; yields a descriptor for use as ``dir_fd``.

    Raises
    ------
    NotAllowed
        See `root_of`; or a component is a symbolic link.
    OSError
        The directory is not there or may not be entered.
    """
    root, parts = root_of(path, roots)
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts:
            try:
                below = os.open(part, _DIRECTORY, dir_fd=fd)
            except OSError as error:
                raise _told(error, part, fd) from None
            os.close(fd)
            fd = below
        yield fd
    finally:
        os.close(fd)


def open_below(path: Path, roots: Sequence[Path]) -> tuple[int, int]:
    """Open a regular file below one of `roots` for reading; returns its descriptor and its size in bytes.

    Raises
    ------
    NotAllowed, OSError
        See `directory_below`; or it is not a regular file.
    """
    _, parts = root_of(path, roots)
    if not parts:
        raise NotAllowed(errno.EACCES, "is a directory")
    with directory_below(path.parent, roots) as directory:
        try:
            fd = os.open(
                path.name,
                os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC,
                dir_fd=directory,
            )
        except OSError as error:
            raise _told(error, path.name, directory) from None
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "is not a regular file")
    return fd, info.st_size


async def deliver_files(directory: Path, roots: Sequence[Path], files: Mapping[str, OpenOutput | bytes]) -> None:
    """Put files into a directory of the caller's; each appears whole or not at all, replacing one of the same
    name.

    A link that stands under one of the names is replaced, not followed.

    Raises
    ------
    JobFailed
        ``output_upload_failed``, naming the directory and the reason.
    """
    try:
        with directory_below(directory, roots) as fd:
            for name, content in files.items():
                await _place(fd, name, content)
    except OSError as error:
        text = f"The result could not be written to {directory}: {error.strerror or error}"
        raise JobFailed(FailureCode.OUTPUT_UPLOAD_FAILED, text) from None


async def _place(directory: int, name: str, content: OpenOutput | bytes) -> None:
    temporary = f".{name}.{secrets.token_hex(6)}"
    fd = create_file(Path(temporary), dir_fd=directory)
    try:
        if isinstance(content, bytes):
            with os.fdopen(os.dup(fd), "wb") as file:
                file.write(content)
        else:
            await copy_file(content.fd, fd, content.size_bytes)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
        raise
    finally:
        os.close(fd)


def _told(error: OSError, name: str, directory: int) -> OSError:
    """Return the error in words: for a link, the kernel says ELOOP or ENOTDIR."""
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        with contextlib.suppress(OSError):
            if stat.S_ISLNK(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                return NotAllowed(errno.EACCES, f"leads through the symbolic link {name!r}")
    return error
