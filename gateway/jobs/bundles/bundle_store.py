"""The bundles on disk: a directory for each failed job, within a size in all."""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec

from gateway.core.async_files import create_file
from gateway.core.directories import remove_tree
from gateway.jobs.bundles.bundle import Bundle
from gateway.jobs.bundles.table_data import FILE_MODE, file_name
from gateway.storage.outputs.job_files import OpenOutput

log = logging.getLogger(__name__)

DESCRIPTION_FILE = "bundle.json"

#: Prefix of a directory whose files are not all written yet.
DRAFT = "."

#: A smaller bundle counts as this much, which bounds the number of directories, which are listed once a minute.
LEAST_BYTES = 1 << 16

_DECODER = msgspec.json.Decoder(Bundle)


class BundleStore:
    """Keeps bundles within a size; the oldest go first. All methods block, and may be called from any thread.

    Parameters
    ----------
    directory : Path
        Made with the first bundle. Its directories are the index: one with the id of a job holds a whole bundle,
        because it gets that name when all of its files are written.
    keep_bytes : int
        Size of all bundles.
    """

    def __init__(self, directory: Path, keep_bytes: int) -> None:
        self._directory = directory
        self._keep_bytes = keep_bytes
        self._lock = threading.Lock()
        self._sizes_bytes: OrderedDict[str, int] = OrderedDict()
        found = [path for path in directory.iterdir() if not _removed_draft(path)] if directory.is_dir() else []
        for path in sorted(found, key=lambda each: each.stat().st_mtime):
            self._sizes_bytes[path.name] = _size_bytes(path)
        self._make_room()

    def keep(self, job_id: str, fill: Callable[[Path], Bundle]) -> None:
        """Keep a bundle; one that is kept under this id already is replaced.

        Parameters
        ----------
        job_id : str
            The gateway's own id.
        fill : callable
            Writes the data of the tables into a new directory, and returns the rest.

        Raises
        ------
        OSError
            The disk cannot be written. Nothing is left then.
        ValueError
            The script has a lone surrogate, so that no kernel can run it, or the bundle is larger than the store.
            Nothing is left then.
        """
        draft, directory = self._directory / f"{DRAFT}{job_id}", self._directory / job_id
        shutil.rmtree(draft, ignore_errors=True)
        self._directory.mkdir(mode=0o700, exist_ok=True)
        draft.mkdir(mode=0o700)
        try:
            content = msgspec.json.encode(fill(draft))
            with os.fdopen(create_file(draft / DESCRIPTION_FILE, FILE_MODE), "wb") as file:
                file.write(content)
            size_bytes = _size_bytes(draft)
            if size_bytes > self._keep_bytes:
                raise ValueError(f"it has {size_bytes} bytes; at most {self._keep_bytes} are kept (KEEP_FAILED_BYTES)")
            self.drop([job_id])
            with self._lock:
                draft.rename(directory)
                self._sizes_bytes[job_id] = size_bytes
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        self._make_room()

    def has(self, job_id: str) -> bool:
        """Return whether there is a bundle of a job; does not wait for the disk."""
        return job_id in self._sizes_bytes

    def read(self, job_id: str) -> Bundle | None:
        """Return the bundle of a job.

        Parameters
        ----------
        job_id : str
            The gateway's own id.

        Returns
        -------
        Bundle or None
            None if there is none, or if another version wrote it.
        """
        if not self.has(job_id):
            return None
        try:
            return _DECODER.decode((self._directory / job_id / DESCRIPTION_FILE).read_bytes())
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("the bundle of job %s cannot be read: %s", job_id, error)
            return None

    def open_table(self, job_id: str, number: int) -> OpenOutput | None:
        """Open the data of a table; it can be read to its end also when the bundle is dropped meanwhile.

        Parameters
        ----------
        job_id : str
            The gateway's own id.
        number : int
            Place of the table in the bundle.

        Returns
        -------
        OpenOutput or None
            None if nothing of it is kept. The caller closes it.
        """
        if not self.has(job_id):
            return None
        try:
            fd = os.open(self._directory / job_id / file_name(number), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        return OpenOutput(fd, os.fstat(fd).st_size)

    def job_ids(self) -> list[str]:
        """Return the jobs with a bundle, the oldest first."""
        with self._lock:
            return list(self._sizes_bytes)

    def drop(self, job_ids: Collection[str]) -> None:
        """Remove bundles; an unknown one is not an error.

        Parameters
        ----------
        job_ids : collection of str
            The gateway's own ids.
        """
        for job_id in job_ids:
            with self._lock:
                size_bytes = self._sizes_bytes.pop(job_id, None)
            if size_bytes is not None:
                remove_tree(self._directory / job_id, "the bundle")

    def _make_room(self) -> None:
        gone = []
        with self._lock:
            excess = sum(self._sizes_bytes.values()) - self._keep_bytes
            for job_id, size_bytes in self._sizes_bytes.items():
                if excess <= 0:
                    break
                excess -= size_bytes
                gone.append(job_id)
        self.drop(gone)


def _removed_draft(path: Path) -> bool:
    """Remove a directory that an earlier process has not finished; return whether it was one."""
    if not path.name.startswith(DRAFT) and (path / DESCRIPTION_FILE).is_file():
        return False
    remove_tree(path, "the bundle")
    return True


def _size_bytes(directory: Path) -> int:
    return max(LEAST_BYTES, sum(path.stat().st_size for path in directory.iterdir()))
