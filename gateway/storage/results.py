"""Results that nobody gave a URL for: kept for a while, to be fetched over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from gateway.errors import FailureCode, JobFailed
from gateway.settings import Settings
from gateway.storage.artifacts import OpenOutput
from gateway.storage.files import copy_file, create_file

log = logging.getLogger(__name__)

FILE_MODE = 0o600


@dataclass(frozen=True, slots=True)
class KeptResult:
    """One kept result. A file that is open when the result expires stays readable to its end.

    Attributes
    ----------
    output_path, manifest_path : Path or None
        None when the job gave none.
    events_path : Path
    output_bytes : int
    total_bytes : int
        All files together, as counted against ``result_keep_bytes``.
    expires_at : float
        `time.monotonic` seconds.
    """

    execution_id: str
    directory: Path
    output_path: Path | None
    manifest_path: Path | None
    events_path: Path
    output_bytes: int
    total_bytes: int
    expires_at: float


class ResultStore:
    """Keeps results within ``result_keep_seconds`` and ``result_keep_bytes``; the oldest go first.

    Parameters
    ----------
    settings : Settings
        Files are kept below ``state_dir/results``, which belongs to this store alone: what an earlier process
        left there is removed.
    """

    def __init__(self, settings: Settings) -> None:
        self._directory = settings.state_dir / "results"
        self._keep_seconds = settings.result_keep_seconds
        self._keep_bytes = settings.result_keep_bytes
        self._kept: OrderedDict[str, KeptResult] = OrderedDict()
        self._used_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        # only what is in it: the directory's parent may belong to root
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._clear()

    async def keep(
        self, execution_id: str, output: OpenOutput | None, manifest: bytes | None, events: bytes
    ) -> KeptResult:
        """Copy a result into the store.

        Raises
        ------
        JobFailed
            ``output_upload_failed``: it is larger than the store, or the disk is full.
        """
        output_bytes = output.size_bytes if output is not None else 0
        total_bytes = output_bytes + len(manifest or b"") + len(events)
        if total_bytes > self._keep_bytes:
            text = f"The result has {total_bytes} bytes; at most {self._keep_bytes} are kept (RESULT_KEEP_BYTES)"
            raise JobFailed(FailureCode.OUTPUT_UPLOAD_FAILED, text)
        self._used_bytes += total_bytes  # counted before the copy: two results may be kept at the same time
        directory = self._directory / execution_id
        try:
            self._make_room()
            directory.mkdir(mode=0o700)
            events_path = _write(directory / "events.jsonl", events)
            manifest_path = None if manifest is None else _write(directory / "manifest.json", manifest)
            output_path = None if output is None else await _copy(directory / "output", output)
        except BaseException as error:
            self._used_bytes -= total_bytes
            _remove(directory)
            if isinstance(error, OSError):
                text = f"The result could not be kept: {error.strerror or error}"
                raise JobFailed(FailureCode.OUTPUT_UPLOAD_FAILED, text) from None
            raise
        result = KeptResult(
            execution_id,
            directory,
            output_path,
            manifest_path,
            events_path,
            output_bytes,
            total_bytes,
            time.monotonic() + self._keep_seconds,
        )
        self._kept[execution_id] = result
        self._schedule()
        return result

    def get(self, execution_id: str) -> KeptResult | None:
        """Return a result that is still kept."""
        self._expire()
        return self._kept.get(execution_id)

    def drop(self, execution_id: str) -> None:
        """Remove a result now; unknown ones are no error."""
        result = self._kept.pop(execution_id, None)
        if result is not None:
            self._used_bytes -= result.total_bytes
            _remove(result.directory)

    def close(self) -> None:
        """Remove every result."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for execution_id in tuple(self._kept):
            self.drop(execution_id)
        self._clear()

    def _clear(self) -> None:
        for leftover in self._directory.iterdir():
            _remove(leftover)

    def _make_room(self) -> None:
        self._expire()
        while self._used_bytes > self._keep_bytes and self._kept:
            self.drop(next(iter(self._kept)))

    def _expire(self) -> None:
        now = time.monotonic()
        for result in tuple(self._kept.values()):
            if result.expires_at > now:
                break  # all are kept equally long, so the order of keeping is the order of expiry
            self.drop(result.execution_id)

    def _schedule(self) -> None:
        """Expire by a timer too: an idle gateway must give the disk back."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._kept and not self._closed:
            oldest = next(iter(self._kept.values()))
            delay = max(0.0, oldest.expires_at - time.monotonic()) + 0.05
            self._timer = asyncio.get_running_loop().call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._expire()
        self._schedule()


def _write(path: Path, content: bytes) -> Path:
    fd = create_file(path, FILE_MODE)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
    return path


async def _copy(path: Path, output: OpenOutput) -> Path:
    fd = create_file(path, FILE_MODE)
    try:
        await copy_file(output.fd, fd, output.size_bytes)
    finally:
        os.close(fd)
    return path


def _remove(directory: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        try:
            shutil.rmtree(directory)
        except FileNotFoundError:
            raise
        except OSError as error:
            log.warning("kept results in %s could not be removed: %s", directory, error)
