"""Check that the state directory can store another job: its disk, and the directories that only a start makes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gateway.core.errors import DiskFull, GatewayError, StoreFailed

#: A job with its kernel needs some thirty; a thousand leave room for what runs already.
MIN_FREE_INODES = 1000

#: A commit of the job store that takes longer is a stalled disk; SQLite waits ten seconds for another process's lock.
STALLED_SECONDS = 15.0

#: Made at a start and open from then on, so that another one of this name is of no use.
KEPT_OPEN = ("store/jobs.db",)

#: The same, made by the launcher.
OF_THE_LAUNCHER = ("workspaces",)

#: Directories to which the gateway writes for a job. It can make them again only where STATE_DIR is its own, and that
#: is not so after a start as root.
WRITTEN = ("jobs", "outbox", "results", "uploads")


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """The free space and inodes of a disk for processes without privilege.

    Attributes
    ----------
    free_bytes : int
        Space.
    free_inodes : int or None
        Files and directories; None on file systems without a fixed number of them, such as Btrfs.
    """

    free_bytes: int
    free_inodes: int | None

    @classmethod
    def of(cls, directory: Path) -> DiskSpace:
        """Return the free space and inodes on the disk of a directory.

        Parameters
        ----------
        directory : Path
            On that disk.

        Returns
        -------
        DiskSpace

        Raises
        ------
        OSError
            The directory does not exist or cannot be reached.
        """
        found = os.statvfs(directory)
        return cls(found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None)

    def shortage(self, min_free_bytes: int, min_free_inodes: int = MIN_FREE_INODES) -> str:
        """Return the shortage of space or inodes.

        Parameters
        ----------
        min_free_bytes, min_free_inodes : int
            The floors.

        Returns
        -------
        str
            The predicate of a sentence about the disk; empty if there is enough.
        """
        if self.free_bytes < min_free_bytes:
            return f"has {_mib(self.free_bytes)} left, less than {_mib(min_free_bytes)}"
        if self.free_inodes is not None and self.free_inodes < min_free_inodes:
            return f"has {self.free_inodes} inodes left, fewer than {min_free_inodes}"
        return ""


class StateDirectory:
    """The state directory of a gateway that runs.

    Parameters
    ----------
    path : Path
        Its path.
    min_free_bytes : int
        Free space below which no job is accepted; 0 checks neither space nor inodes.
    has_launcher : bool
        Whether jobs run on this machine.
    stalled_seconds : callable
        Returns the time for which the disk has not finished a write.
    """

    def __init__(
        self,
        path: Path,
        min_free_bytes: int,
        *,
        has_launcher: bool = True,
        stalled_seconds: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._path = path
        self._kept_open = KEPT_OPEN + (OF_THE_LAUNCHER if has_launcher else ())
        self._min_free_bytes = min_free_bytes
        self._stalled_seconds = stalled_seconds

    def check(self, incoming_bytes: int = 0) -> None:
        """Check that a job can be accepted; takes microseconds.

        Parameters
        ----------
        incoming_bytes : int
            Size of files that come with it.

        Raises
        ------
        DiskFull
            Space or inodes are below their floor.
        StoreFailed
            A part of it was removed or cannot be written, or its disk does not finish a write.
        """
        if (stalled := self._stalled_seconds()) > STALLED_SECONDS:
            raise StoreFailed(
                f"the disk of STATE_DIR has not finished a write for {stalled:.0f} s; "
                "jobs are accepted again when it does"
            )
        for name in self._kept_open:
            try:
                (self._path / name).stat()
            except FileNotFoundError:
                text = f"{name} was removed from STATE_DIR while the gateway ran; restart the gateway"
                raise StoreFailed(text) from None
            except OSError as error:
                raise StoreFailed(f"{name} in STATE_DIR cannot be reached: {error.strerror}") from None
        for name in WRITTEN:
            _check_writable(self._path / name)
        if not self._min_free_bytes:
            return
        try:
            shortage = DiskSpace.of(self._path).shortage(self._min_free_bytes + incoming_bytes)
        except OSError as error:
            raise StoreFailed(f"the disk of STATE_DIR does not answer: {error.strerror}") from None
        if shortage:
            raise DiskFull(f"the disk of STATE_DIR {shortage}, so no job is accepted")

    def status(self) -> dict[str, int | str | None]:
        """Return the state of this moment, as a member of ``/v1/status``.

        Returns
        -------
        dict
            ``free_bytes`` and ``free_inodes``, None if unknown; ``problem``, why no job is accepted, or None.
        """
        problem: str | None = None
        try:
            self.check()
        except GatewayError as error:
            problem = error.message
        try:
            space = DiskSpace.of(self._path)
        except OSError:
            return {"free_bytes": None, "free_inodes": None, "problem": problem}
        return {"free_bytes": space.free_bytes, "free_inodes": space.free_inodes, "problem": problem}


def _check_writable(directory: Path) -> None:
    if os.access(directory, os.W_OK | os.X_OK):
        return
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        raise StoreFailed(f"{directory.name} in STATE_DIR cannot be written; see its owner, mode and mount") from None
    except OSError:
        raise StoreFailed(f"{directory.name} was removed from STATE_DIR; restart the gateway") from None


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.1f} MiB"
