"""Files below allowed directories, opened without following links and without a race, and their removal.

A path is walked one component at a time, each opened relative to the one before with O_NOFOLLOW. A process that renames
entries meanwhile can therefore only make the walk fail. openat2(2) with RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS does the
same, but Python has no call for it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from gateway.core.addresses import is_loopback
from gateway.core.settings import Settings

log = logging.getLogger(__name__)

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class PathNotAllowed(OSError):
    """The path is below none of the allowed roots, or leads out of its root by a link."""


#: The place that paths are allowed in, for refusals.
ROOTS_SETTING = "a directory of WORKING_DIR_ROOTS"


def root_of(path: Path, roots: Sequence[Path], where: str = ROOTS_SETTING) -> tuple[Path, tuple[str, ...]]:
    """Return the allowed root that `path` is below, and the components from there, by the text alone.

    Parameters
    ----------
    path : Path
        As the request has it.
    roots : sequence of Path
        Allowed directories.
    where : str
        The roots in words, for the refusal.

    Returns
    -------
    tuple of Path and tuple of str

    Raises
    ------
    PathNotAllowed
        The path is relative, contains ``..`` or a NUL, or is below no root.
    """
    pure = PurePosixPath(path)
    if not pure.is_absolute() or ".." in pure.parts or "\0" in str(path):
        raise PathNotAllowed(errno.EACCES, "must be an absolute path without '..'")
    for root in roots:
        if pure.is_relative_to(root):
            return root, pure.relative_to(root).parts
    raise PathNotAllowed(errno.EACCES, f"is not below {where}")


@contextlib.contextmanager
def directory_below(path: Path, roots: Sequence[Path]) -> Iterator[int]:
    """Open a directory below one of `roots` and yield a descriptor for use as ``dir_fd``.

    Parameters
    ----------
    path : Path
        As the request has it.
    roots : sequence of Path
        Allowed directories.

    Yields
    ------
    int

    Raises
    ------
    PathNotAllowed
        See `root_of`; or a component is a symbolic link.
    OSError
        The directory does not exist or may not be entered.
    """
    root, parts = root_of(path, roots)
    with _walk(root, parts) as fd:
        yield fd


@contextlib.contextmanager
def output_directory(path: Path, settings: Settings) -> Iterator[int]:
    """Open the directory that a request names for its output and yield a descriptor for use as ``dir_fd``.

    Without WORKING_DIR_ROOTS, a gateway that listens on loopback only and is no service allows directories below the
    system's temporary directory, and makes those that are missing. That directory is shared, so each component must
    belong to the gateway's user.

    Parameters
    ----------
    path : Path
        As the request has it.
    settings : Settings
        ``working_dir_roots``, ``host``, ``state_dir``.

    Yields
    ------
    int

    Raises
    ------
    PathNotAllowed
        See `root_of`; or a component is a symbolic link, belongs to another user, or is in the state directory.
    OSError
        The directory does not exist, cannot be made or may not be entered.
    """
    if settings.working_dir_roots or not is_loopback(settings.host) or _is_service():
        with directory_below(path, settings.working_dir_roots) as fd:
            yield fd
        return
    root = Path(tempfile.gettempdir())
    _, parts = root_of(path, (root,), f"{root}; WORKING_DIR_ROOTS allows other directories")
    if not parts:
        raise PathNotAllowed(errno.EACCES, f"is {root} itself; name a directory in it")
    # no component below the root is a link, so the text decides
    if root.resolve().joinpath(*parts).is_relative_to(settings.state_dir.resolve()):
        raise PathNotAllowed(errno.EACCES, "is in the gateway's STATE_DIR")
    with _walk(root, parts, is_private=True) as fd:
        yield fd


def _is_service() -> bool:
    """Return whether a container engine or systemd has started the gateway.

    Engines and the image set ``container``, as systemd's container interface requires. JOURNAL_STREAM names the device
    and inode of a service's log (systemd.exec(5)); a terminal inherits the variable, but has another stderr.
    """
    if "container" in os.environ:
        return True
    log = os.fstat(2)
    return os.environ.get("JOURNAL_STREAM") == f"{log.st_dev}:{log.st_ino}"


@contextlib.contextmanager
def _walk(root: Path, parts: Sequence[str], *, is_private: bool = False) -> Iterator[int]:
    """Open `root`, then each component in the one before; make those of a private directory that are missing."""
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts:
            if is_private:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o700, dir_fd=fd)
            try:
                below = os.open(part, _DIRECTORY, dir_fd=fd)
            except OSError as error:
                raise _link_error(error, part, fd) from None
            os.close(fd)
            fd = below
            if is_private:
                _check_owner(fd, part)
        yield fd
    finally:
        os.close(fd)


def _check_owner(directory: int, name: str) -> None:
    owner, user = os.fstat(directory).st_uid, os.geteuid()
    if owner != user:
        text = f"the directory {name!r} belongs to user {owner}, but the gateway runs as user {user}"
        raise PathNotAllowed(errno.EACCES, f"{text}; name a new directory, or set WORKING_DIR_ROOTS")


def open_below(path: Path, roots: Sequence[Path]) -> tuple[int, int]:
    """Open a regular file below one of `roots` for reading.

    Parameters
    ----------
    path : Path
        As the request has it.
    roots : sequence of Path
        Allowed directories.

    Returns
    -------
    tuple of int and int
        Descriptor and size in bytes.

    Raises
    ------
    PathNotAllowed, OSError
        See `directory_below`; or it is not a regular file.
    """
    _, parts = root_of(path, roots)
    if not parts:
        raise PathNotAllowed(errno.EACCES, "is a directory")
    with directory_below(path.parent, roots) as directory:
        try:
            fd = os.open(
                path.name,
                os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC,
                dir_fd=directory,
            )
        except OSError as error:
            raise _link_error(error, path.name, directory) from None
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "is not a regular file")
    return fd, info.st_size


def _link_error(error: OSError, name: str, directory: int) -> OSError:
    """Return the error, or one that names the link where Linux returns ELOOP or ENOTDIR."""
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        with contextlib.suppress(OSError):
            if stat.S_ISLNK(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                return PathNotAllowed(errno.EACCES, f"leads through the symbolic link {name!r}")
    return error


def remove(path: Path) -> None:
    """Remove a file, a link, or a directory with all that it contains; leave what cannot be removed.

    Parameters
    ----------
    path : Path
        Belongs to the caller alone.
    """
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def remove_tree(directory: Path, what: str) -> None:
    """Remove a directory if it is there; a failure is only logged, with the name of its content."""
    try:
        shutil.rmtree(directory)
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning("%s in %s could not be removed: %s", what, directory, error)


def make_state_dir(state_dir: Path) -> None:
    """Create the state directory and those above it if they are missing; if root does, all users can enter them.

    Raises
    ------
    OSError
        It cannot be created.
    """
    umask = os.umask(0)
    os.umask(0o022 if os.geteuid() == 0 else umask)  # the gateway and kernels of root are other users
    try:
        state_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    finally:
        os.umask(umask)
