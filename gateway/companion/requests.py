"""Process the kernel's requests one after the other in a thread, so that the main thread can receive a cancel."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import shutil
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.client.errors import GatewayRefused, GatewayUnreachable
from gateway.companion.protocol import Cancel, ForgetFiles, ListFiles, LoadTable, Request, RunTransform, TakeFrame, Wire
from gateway.companion.runs import Gateways
from gateway.companion.table_sources import SourceError, copy_frame, fetch_source
from gateway.companion.tables import LoadedTable
from gateway.core.errors import JobFailed

#: Largest number of files for completion.
MOST_NAMES = 200


class RequestCancelled(Exception):
    """The user of the notebook has cancelled the request."""


@dataclass(slots=True)
class _Task:
    """A request that waits or runs, and may be cancelled."""

    request: Request
    descriptor: int | None
    cancelled: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True)
class _Fetching:
    """The running fetch of a request, and the event loop in which it can be cancelled."""

    request_id: int
    loop: asyncio.AbstractEventLoop
    task: asyncio.Task[Any]


class RequestWorker:
    """Processes requests; owns the files in the kernel's inputs and the ephemeral gateway until `close`.

    Parameters
    ----------
    wire : Wire
        For the responses.
    inputs_dir : Path
        Directory in the kernel's workspace, which this process writes and the kernel reads.
    """

    def __init__(self, wire: Wire, inputs_dir: Path) -> None:
        self._wire = wire
        self._inputs_dir = inputs_dir
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._unfinished: dict[int, _Task] = {}
        self._fetching: _Fetching | None = None
        self._gateways = Gateways()
        self._number = 0
        self._tables: dict[int, LoadedTable] = {}
        self._thread = threading.Thread(target=self._work, name="requests", daemon=True)
        self._thread.start()

    def begin(self, request: Request, descriptor: int | None) -> None:
        """Process a request after the earlier ones; the descriptor belongs to the worker from now on."""
        task = _Task(request, descriptor)
        with self._lock:
            self._unfinished[request.id] = task
        self._tasks.put(task)

    def cancel(self, request_id: int) -> None:
        """Cancel a request, whether it runs or waits; nothing happens if it is finished."""
        with self._lock:
            task = self._unfinished.get(request_id)
            if task is None:
                return
            task.cancelled.set()
            fetching = self._fetching
        if fetching is not None and fetching.request_id == request_id:
            fetching.loop.call_soon_threadsafe(fetching.task.cancel)
        self._gateways.cancel(task.cancelled)

    def close(self) -> None:
        """Cancel all requests, end the gateway and remove the files."""
        with self._lock:
            unfinished = list(self._unfinished)
        for request_id in unfinished:
            self.cancel(request_id)
        self._tasks.put(None)
        self._gateways.close()
        # the workspace is removed with the kernel, but it stays when the kernel is restarted
        for number in list(self._tables):
            self._forget(number)

    # ------------------------------------------------------------------ in the thread
    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            request = task.request
            try:
                self._wire.send(request.id, "done", result=self._do(task))
            except (SourceError, GatewayUnreachable, JobFailed) as error:
                self._wire.send(request.id, "error", message=str(error))
            except GatewayRefused as error:
                advice = "; set AUTH_TOKEN where you start Jupyter" if error.code == "unauthorized" else ""
                text = f"the gateway refused the job: {error.code}: {error}{advice}"
                self._wire.send(request.id, "error", message=text)
            except (RequestCancelled, asyncio.CancelledError):
                self._wire.send(request.id, "error", message="cancelled", cancelled=True)
            except Exception as error:
                self._wire.send(request.id, "error", message=f"{type(error).__name__}: {error}")
            finally:
                with self._lock:
                    self._unfinished.pop(request.id, None)
                if task.descriptor is not None:
                    os.close(task.descriptor)

    def _do(self, task: _Task) -> Any:
        if task.cancelled.is_set():
            raise RequestCancelled
        match task.request:
            case LoadTable() as request:
                return self._load(request, task.cancelled)
            case TakeFrame() as request:
                return self._take(request, task.descriptor)
            case RunTransform() as request:
                return self._run(request, task.cancelled)
            case ForgetFiles(numbers=numbers):
                for number in numbers:
                    self._forget(number)
                return None
            case ListFiles(prefix=prefix):
                return {"names": _names(prefix)}
            case Cancel():
                return None

    def _load(self, request: LoadTable, cancelled: threading.Event) -> dict[str, Any]:
        with self._new_directory() as (number, directory):
            table = asyncio.run(self._fetched(request, directory, cancelled))
        self._tables[number] = table
        return {"number": number, **table.to_json()}

    async def _fetched(self, request: LoadTable, directory: Path, cancelled: threading.Event) -> LoadedTable:
        def report(done_bytes: int) -> None:
            self._wire.send(request.id, "progress", stage="fetch", bytes=done_bytes)

        task = asyncio.ensure_future(fetch_source(request, directory, report))
        with self._lock:
            self._fetching = _Fetching(request.id, asyncio.get_running_loop(), task)
            if cancelled.is_set():
                task.cancel()
        try:
            return await task
        finally:
            with self._lock:
                self._fetching = None

    def _take(self, request: TakeFrame, descriptor: int | None) -> dict[str, Any]:
        if descriptor is None or not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise SourceError("a data frame must be sent as a file")
        with self._new_directory() as (number, directory):
            table = copy_frame(descriptor, request.manifest, directory)
        self._tables[number] = table
        return {"number": number, **table.to_json()}

    def _run(self, request: RunTransform, cancelled: threading.Event) -> dict[str, Any]:
        try:
            tables = {name: self._tables[number] for name, number in request.tables.items()}
        except KeyError as error:
            raise SourceError(f"table {error} is no longer loaded") from None
        with self._new_directory() as (number, directory):
            path = directory / f"output.{request.output_format}"
            result = self._gateways.run(
                request, tables, path, lambda event, **fields: self._wire.send(request.id, event, **fields), cancelled
            )
        if result["output_path"] is None:
            shutil.rmtree(directory, ignore_errors=True)
            return result
        self._tables[number] = LoadedTable(path, None, request.output_format)
        return {**result, "number": number}

    @contextlib.contextmanager
    def _new_directory(self) -> Iterator[tuple[int, Path]]:
        """Yield a number and its directory, which an exception removes: a full disk must not stay full."""
        self._number += 1
        directory = self._inputs_dir / f"notebook-{os.getpid()}-{self._number}"
        try:
            directory.mkdir()
            # setgid: the directory inherits the group through which the kernel's user may read it
            directory.chmod(0o2750)
        except OSError as error:
            raise SourceError(f"the kernel's input directory cannot be written: {error.strerror}") from None
        try:
            yield self._number, directory
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise

    def _forget(self, number: int) -> None:
        table = self._tables.pop(number, None)
        if table is not None:
            shutil.rmtree(table.data_path.parent, ignore_errors=True)


def _names(prefix: str) -> list[str]:
    """Return the paths that begin with `prefix`; directories end with a slash."""
    shown, _, start = prefix.rpartition("/")
    shown = f"{shown}/" if "/" in prefix else ""
    found: list[str] = []
    with contextlib.suppress(OSError, RuntimeError), os.scandir(Path(shown or ".").expanduser()) as entries:
        for entry in entries:
            if entry.name.startswith(start) and (start or not entry.name.startswith(".")):
                found.append(f"{shown}{entry.name}{'/' if entry.is_dir() else ''}")
            if len(found) == MOST_NAMES:
                break
    return sorted(found)
