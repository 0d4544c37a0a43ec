"""Read a file that holds a secret, if no other user can."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from gateway.core.errors import ConfigurationError

#: The largest file that is read.
MAX_FILE_BYTES = 1 << 20


def read_private(path: Path, uid: int) -> bytes:
    """Return the content of a file that holds a secret.

    The rule is PostgreSQL's for its private key. The file belongs to the gateway's user, and no other user may read it;
    or it belongs to root, and a group may read it, as with the secrets that Kubernetes mounts.

    Parameters
    ----------
    path : Path
        The file; a link is followed.
    uid : int
        The user that the gateway runs as once it has dropped root.

    Returns
    -------
    bytes
        At most `MAX_FILE_BYTES`.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        It is not a regular file, or other users may read or write it.
    """
    # without O_NONBLOCK, opening a FIFO waits for a writer
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise ValueError("it is not a regular file")
        if facts.st_uid not in (0, uid):
            raise ValueError(f"it belongs to uid {facts.st_uid}, but the gateway runs as uid {uid}: chown {uid} {path}")
        others = facts.st_mode & (0o037 if facts.st_uid == 0 and uid != 0 else 0o077)
        if others:
            raise ValueError(
                f"other users may read or write it (mode {stat.S_IMODE(facts.st_mode):04o}): chmod 600 {path}"
            )
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"it is larger than {MAX_FILE_BYTES} bytes")
    return content


def check_private(path: Path, uid: int, name: str) -> None:
    """Refuse a file that is read later, if `read_private` does not return its content now.

    Parameters
    ----------
    path : Path
        The file.
    uid : int
        As in `read_private`.
    name : str
        Of the file, for the message.

    Raises
    ------
    ConfigurationError
    """
    try:
        read_private(path, uid)
    except OSError as error:
        raise ConfigurationError(f"{name}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigurationError(f"{name}: {error}") from None
