"""Results of requests without a URL for them: kept for a while, to be fetched over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from gateway.core.async_files import BLOCK_BYTES, copy_file, create_file
from gateway.core.directories import remove_tree
from gateway.core.errors import FailureCode, JobFailed
from gateway.core.job import ResultPart
from gateway.core.settings import Settings
from gateway.storage.outputs.job_files import OpenOutput

log = logging.getLogger(__name__)

FILE_MODE = 0o600

FILE_NAMES: Mapping[ResultPart, str] = {"output": "output", "manifest": "manifest.json", "events": "events.jsonl"}

#: Name of the content in a warning of `remove_tree`.
KIND = "kept results"

#: Prefix of a directory whose files are not all written yet, or are being removed.
DRAFT = "."


@dataclass(frozen=True, slots=True)
class KeptFiles:
    """The files of one kept result. One that is open when the result expires can still be read to its end.

    Attributes
    ----------
    part_bytes : mapping of str to int
        Size of each file that there is.
    expires_at : float
        `time.monotonic` seconds.
    """

    execution_id: str
    directory: Path
    part_bytes: Mapping[ResultPart, int]
    expires_at: float

    @property
    def total_bytes(self) -> int:
        """Size of all files, which counts against ``result_keep_bytes``."""
        return sum(self.part_bytes.values())

    @contextlib.asynccontextmanager
    async def open(self, part: ResultPart) -> AsyncIterator[OpenOutput | None]:
        """Open a file during an ``async with`` block.

        Parameters
        ----------
        part : {'output', 'manifest', 'events'}
            Which file.

        Yields
        ------
        OpenOutput or None
            None if there is no such file or it is no longer kept.
        """
        try:
            fd = os.open(self.directory / FILE_NAMES[part], os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            yield None
            return
        with OpenOutput(fd, os.fstat(fd).st_size) as opened:
            yield opened


class KeptResultStore:
    """Keeps results within ``result_keep_seconds`` and ``result_keep_bytes``; the oldest go first.

    Parameters
    ----------
    settings : Settings
        Files are kept below ``state_dir/results``, which belongs to this store alone. The results that an earlier
        process kept there are kept on; unfinished ones are removed.

    Notes
    -----
    The directories are the index: one with the id of a job holds a whole result, because it gets that name when all of
    its files are written, and the time of its last change is the time from which it is kept.
    """

    def __init__(self, settings: Settings) -> None:
        self._directory = settings.state_dir / "results"
        self._keep_seconds = settings.result_keep_seconds
        self._keep_bytes = settings.result_keep_bytes
        self._kept: OrderedDict[str, KeptFiles] = OrderedDict()
        self._used_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._removals: set[asyncio.Future[None]] = set()
        self._closed = False
        # the directory itself stays: its parent may belong to root
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._load()
        self._make_room()
        self._schedule()

    async def keep(
        self, execution_id: str, output: OpenOutput | None, manifest: bytes | None, events: bytes
    ) -> KeptFiles:
        """Copy a result into the store.

        Parameters
        ----------
        execution_id : str
            Of the job; a result that is kept under it already is replaced.
        output : OpenOutput or None
            Stays open.
        manifest : bytes or None
            Content of the manifest.
        events : bytes
            Content of the events object.

        Returns
        -------
        KeptFiles

        Raises
        ------
        JobFailed
            ``result_not_kept``: the result is larger than the store, or the disk is full or cannot be written.
        """
        part_bytes: dict[ResultPart, int] = {"events": len(events)}
        if manifest is not None:
            part_bytes["manifest"] = len(manifest)
        if output is not None:
            part_bytes["output"] = output.size_bytes
        total_bytes = sum(part_bytes.values())
        if total_bytes > self._keep_bytes:
            text = f"The result has {total_bytes} bytes; at most {self._keep_bytes} are kept (RESULT_KEEP_BYTES)"
            raise JobFailed(FailureCode.RESULT_NOT_KEPT, text, retryable=False)
        self._used_bytes += total_bytes  # reserved before the copy: two results may be copied at the same time
        draft, directory = self._directory / f"{DRAFT}{execution_id}", self._directory / execution_id
        try:
            self._make_room()
            if self._removals:  # their bytes are on the disk until then
                await asyncio.wait(self._removals)
            draft.mkdir(mode=0o700, parents=True)  # the store's own directory may have been removed
            _write(draft / FILE_NAMES["events"], events)
            if manifest is not None:
                _write(draft / FILE_NAMES["manifest"], manifest)
            if output is not None:
                await _copy(draft / FILE_NAMES["output"], output)
            os.utime(draft)
            self.drop(execution_id)  # of an attempt whose end the job store did not record
            draft.rename(directory)
        except BaseException as error:
            self._used_bytes -= total_bytes
            self._remove(draft, total_bytes)
            if isinstance(error, OSError):
                text = f"The result could not be kept: {error.strerror or error}"
                raise JobFailed(FailureCode.RESULT_NOT_KEPT, text) from None
            raise
        result = KeptFiles(execution_id, directory, part_bytes, time.monotonic() + self._keep_seconds)
        self._kept[execution_id] = result
        self._schedule()
        return result

    def replace_events(self, execution_id: str, events: bytes) -> None:
        """Replace the log of a kept result.

        Parameters
        ----------
        execution_id : str
            As given to `keep`.
        events : bytes
            Content of the events object.

        Raises
        ------
        JobFailed
            ``result_not_kept``: the log could not be written; the earlier one stays.
        """
        result = self._kept.get(execution_id)
        if result is None:
            return
        new_path = result.directory / "events.new"
        try:
            _write(new_path, events)
            new_path.rename(result.directory / FILE_NAMES["events"])
        except OSError as error:
            with contextlib.suppress(OSError):
                new_path.unlink()
            text = f"The log could not be kept: {error.strerror or error}"
            raise JobFailed(FailureCode.RESULT_NOT_KEPT, text) from None
        self._kept[execution_id] = replace(result, part_bytes={**result.part_bytes, "events": len(events)})
        self._used_bytes += len(events) - result.part_bytes["events"]

    def get(self, execution_id: str) -> KeptFiles | None:
        """Return a result that is still kept.

        Parameters
        ----------
        execution_id : str
            As given to `keep`.

        Returns
        -------
        KeptFiles or None
        """
        self._expire()
        return self._kept.get(execution_id)

    def drop(self, execution_id: str) -> None:
        """Remove a result now; an unknown one is not an error.

        Parameters
        ----------
        execution_id : str
            As given to `keep`.
        """
        result = self._kept.pop(execution_id, None)
        if result is not None:
            self._used_bytes -= result.total_bytes
            self._remove(result.directory, result.total_bytes)

    def close(self) -> None:
        """Stop the timer; the results stay for the next process."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _load(self) -> None:
        found = []
        for directory in self._directory.iterdir():
            result = None if directory.name.startswith(DRAFT) else _loaded(directory, self._keep_seconds)
            if result is None:
                remove_tree(directory, KIND)
            else:
                found.append(result)
        for result in sorted(found, key=lambda each: each.expires_at):
            self._kept[result.execution_id] = result
            self._used_bytes += result.total_bytes

    def _remove(self, directory: Path, size_bytes: int) -> None:
        """Remove a directory; if it is large, in a thread, because a gigabyte takes a tenth of a second."""
        try:
            loop = asyncio.get_running_loop() if size_bytes > BLOCK_BYTES else None
        except RuntimeError:
            loop = None
        if loop is not None:
            gone = self._directory / f"{DRAFT}{uuid.uuid4().hex}"  # its name may be used again before it is removed
            with contextlib.suppress(OSError):
                directory = directory.rename(gone)
                removal = loop.run_in_executor(None, remove_tree, directory, KIND)
                self._removals.add(removal)
                removal.add_done_callback(self._removals.discard)
                return
        remove_tree(directory, KIND)

    def _make_room(self) -> None:
        self._expire()
        while self._used_bytes > self._keep_bytes and self._kept:
            self.drop(next(iter(self._kept)))

    def _expire(self) -> None:
        now = time.monotonic()
        for result in tuple(self._kept.values()):
            if result.expires_at > now:
                break  # all have the same lifetime, so the oldest expires first
            self.drop(result.execution_id)

    def _schedule(self) -> None:
        """Set a timer for the next expiry, so that an idle gateway frees its disk."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._kept and not self._closed:
            oldest = next(iter(self._kept.values()))
            delay_seconds = max(0.0, oldest.expires_at - time.monotonic()) + 0.05
            with contextlib.suppress(RuntimeError):  # no loop runs yet: the next result that is kept sets the timer
                self._timer = asyncio.get_running_loop().call_later(delay_seconds, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._expire()
        self._schedule()


def _loaded(directory: Path, keep_seconds: float) -> KeptFiles | None:
    """Return the result that an earlier process kept, or None if the directory does not hold one."""
    try:
        sizes_bytes = {path.name: path.stat().st_size for path in directory.iterdir()}
        kept_at = directory.stat().st_mtime
    except OSError:
        return None
    part_bytes = {part: sizes_bytes[name] for part, name in FILE_NAMES.items() if name in sizes_bytes}
    if "events" not in part_bytes:
        return None
    # the wall clock may have jumped while no process ran: no result is kept for longer than if it were new
    left_seconds = min(keep_seconds, keep_seconds - (time.time() - kept_at))
    return KeptFiles(directory.name, directory, part_bytes, time.monotonic() + left_seconds)


def _write(path: Path, content: bytes) -> None:
    fd = create_file(path, FILE_MODE)
    with os.fdopen(fd, "wb") as file:
        file.write(content)


async def _copy(path: Path, output: OpenOutput) -> None:
    fd = create_file(path, FILE_MODE)
    try:
        await copy_file(output.fd, fd, output.size_bytes)
    finally:
        os.close(fd)
