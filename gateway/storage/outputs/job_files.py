"""Files that a job wrote, opened without trusting the job."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from gateway.core.async_files import read_blocks
from gateway.core.errors import FailureCode, JobFailed

READ_BYTES = 1 << 19

#: Largest manifest of an output: as large as that of an input may be. The loop reads it and writes it to the outbox,
#: and a job decides how large it is.
MANIFEST_CAP_BYTES = 16 << 20


@dataclass(slots=True)
class OpenOutput:
    """A checked, open regular file, which no longer depends on its path.

    Attributes
    ----------
    fd : int
        Read-only, close on exec; closed by `close` or at the end of the ``with`` block.
    size_bytes : int
        Size when it was opened; exactly this much is read.
    """

    fd: int
    size_bytes: int

    def chunks(self) -> Iterator[bytes]:
        """Yield the content from its beginning; call it again for another attempt."""
        offset = 0
        while offset < self.size_bytes:
            block = os.pread(self.fd, min(READ_BYTES, self.size_bytes - offset), offset)
            if not block:
                raise OSError(f"the output ended after {offset} of {self.size_bytes} bytes")
            offset += len(block)
            yield block

    def blocks(self) -> AsyncGenerator[bytes]:
        """Yield the content from its beginning, read in a thread."""
        return read_blocks(self.fd, self.size_bytes, READ_BYTES)

    def read(self, max_bytes: int) -> bytes:
        """Return the content.

        Parameters
        ----------
        max_bytes : int
            Largest size allowed.

        Returns
        -------
        bytes

        Raises
        ------
        ValueError
            The content is larger than `max_bytes`.
        """
        if self.size_bytes > max_bytes:
            raise ValueError(f"{self.size_bytes} bytes are more than the {max_bytes} allowed")
        return b"".join(self.chunks())

    def close(self) -> None:
        """Close the file; closing again is harmless."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_output(path: Path, *, owner_uid: int | None, max_bytes: int) -> OpenOutput:
    """Open a file that a job declares as its result.

    Parameters
    ----------
    path : Path
        In a directory that the job could write to.
    owner_uid : int or None
        Required owner of the file; None where gateway and job run as the same user.
    max_bytes : int
        Largest size allowed.

    Returns
    -------
    OpenOutput

    Raises
    ------
    JobFailed
        ``output_missing`` when it is not a regular file of this owner with a single name; ``file_size_limit`` when it
        is too large.

    Notes
    -----
    O_NOFOLLOW refuses a link to a file that only the gateway may read. O_NONBLOCK keeps a FIFO from blocking the
    gateway. Owner and link count refuse a hard link to another user's file, which fs.protected_hardlinks=0 would allow.
    All checks use the open descriptor, so nothing can be exchanged between check and use.
    """
    name = path.name
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        raise JobFailed(FailureCode.OUTPUT_MISSING, _open_text(name, error)) from None
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise _missing(f"The job's output {name} is not a regular file")
        if owner_uid is not None and info.st_uid != owner_uid:
            raise _missing(f"The job's output {name} belongs to another user")
        if info.st_nlink != 1:
            raise _missing(f"The job's output {name} has {info.st_nlink} names in the file system; one is expected")
        if info.st_size > max_bytes:
            text = f"The job's output {name} has {info.st_size} bytes; the limit is {max_bytes}"
            raise JobFailed(FailureCode.FILE_SIZE_LIMIT, text)
    except BaseException:
        os.close(fd)
        raise
    return OpenOutput(fd, info.st_size)


def _missing(text: str) -> JobFailed:
    return JobFailed(FailureCode.OUTPUT_MISSING, text)


def _open_text(name: str, error: OSError) -> str:
    if error.errno in (errno.ELOOP, errno.EMLINK):
        return f"The job's output {name} is a symbolic link"
    if error.errno == errno.ENOENT:
        return f"The job ended without writing its output {name}"
    return f"The job's output {name} cannot be opened: {error.strerror}"
