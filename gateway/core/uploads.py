"""The files that came with a request, as a handle that the HTTP side passes to the runner."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class UploadPermit(Protocol):
    """Says when the results of a job may be uploaded."""

    def prepare(self) -> None:
        """Take note that the job has ended, so that uploads may follow; returns at once."""

    async def __call__(self) -> None:
        """Return when the last block of a result may be sent.

        Raises
        ------
        JobFailed
            It must not be sent.
        """


@dataclass(frozen=True, slots=True)
class Uploads:
    """A directory of files on the gateway's disk; the owner of the handle removes it.

    Attributes
    ----------
    directory : Path
        Holds nothing but files of the request. Their names are the gateway's own.
    """

    directory: Path

    def path(self, name: str) -> Path:
        """Return the path of one file.

        Parameters
        ----------
        name : str
            Of an `UploadSource`.

        Returns
        -------
        Path
            A file directly in the directory.

        Raises
        ------
        ValueError
            The name is not the name of a file.
        """
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise ValueError(f"{name!r} is not the name of an upload")
        return self.directory / name

    def sync(self) -> None:
        """Write the files to the disk, so that they survive a crash of the machine; blocks.

        Raises
        ------
        OSError
            They could not be written.
        """
        for path in (*self.directory.iterdir(), self.directory, self.directory.parent):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def remove(self) -> None:
        """Remove the directory with its files; blocks."""
        shutil.rmtree(self.directory, ignore_errors=True)
