"""Carrying out what the kernel asks for: one request after the other in a thread, so that a cancel gets through."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import shutil
import stat
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.client_http import GatewayRefused, GatewayUnreachable
from gateway.companion.runs import Gateways
from gateway.companion.sources import SourceError, copy_frame, fetch_source
from gateway.companion.tables import Table
from gateway.companion.wire import Cancel, ForgetFiles, ListFiles, LoadTable, Request, RunTransform, TakeFrame, Wire
from gateway.errors import JobFailed

MOST_NAMES = 200
"""Of files offered for completion."""


class Cancelled(Exception):
    """The person at the notebook has thought better of it."""


@dataclass(slots=True)
class _Task:
    """A request that is not over; a cancel may come while it still waits for its turn."""

    request: Request
    descriptor: int | None
    cancelled: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True)
class _Fetching:
    """What `request_id` awaits, and the loop whose thread may cancel it."""

    request_id: int
    loop: asyncio.AbstractEventLoop
    task: asyncio.Task[Any]


class Workshop:
    """Owns the files it brought into the inputs and the gateway it started; `close` removes and ends them.

    Parameters
    ----------
    wire : Wire
        Where answers go.
    inputs_dir : Path
        Of the kernel's seat: this process writes there, the kernel reads.
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
        self._tables: dict[int, Table] = {}
        self._thread = threading.Thread(target=self._work, name="requests", daemon=True)
        self._thread.start()

    def begin(self, request: Request, descriptor: int | None) -> None:
        """Carry out a request when those before it are done; the descriptor is ours from now on."""
        task = _Task(request, descriptor)
        with self._lock:
            self._unfinished[request.id] = task
        self._tasks.put(task)

    def cancel(self, request_id: int) -> None:
        """End what this request is doing, or see that it never begins; one that is over is no error."""
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
        """Cancel what is going on, end the gateway and remove the files."""
        with self._lock:
            unfinished = list(self._unfinished)
        for request_id in unfinished:
            self.cancel(request_id)
        self._tasks.put(None)
        self._gateways.close()
        # the seat is removed with the kernel; it stays when the kernel is only started again
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
                self._wire.send(request.id, "error", message=f"the gateway refused the job: {error.code}: {error}")
            except (Cancelled, asyncio.CancelledError):
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
            raise Cancelled
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
        number, directory = self._new_directory()
        try:
            table = asyncio.run(self._fetched(request, directory, cancelled))
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        self._tables[number] = table
        return {"number": number, **table.to_json()}

    async def _fetched(self, request: LoadTable, directory: Path, cancelled: threading.Event) -> Table:
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
            raise SourceError("a frame must come as a file")
        number, directory = self._new_directory()
        table = copy_frame(descriptor, request.manifest, directory)
        self._tables[number] = table
        return {"number": number, **table.to_json()}

    def _run(self, request: RunTransform, cancelled: threading.Event) -> dict[str, Any]:
        try:
            tables = {name: self._tables[number] for name, number in request.tables.items()}
        except KeyError as error:
            raise SourceError(f"table {error} is not loaded any more") from None
        number, directory = self._new_directory()
        path = directory / f"output.{request.output_format}"
        result = self._gateways.run(
            request, tables, path, lambda event, **fields: self._wire.send(request.id, event, **fields), cancelled
        )
        if result["output_path"] is None:
            shutil.rmtree(directory, ignore_errors=True)
            return result
        self._tables[number] = Table(path, None, request.output_format)
        return {**result, "number": number}

    def _new_directory(self) -> tuple[int, Path]:
        self._number += 1
        directory = self._inputs_dir / f"notebook-{os.getpid()}-{self._number}"
        try:
            directory.mkdir()
            # the directory passes its group on, which is how the kernel's user may enter
            directory.chmod(0o2750)
        except OSError as error:
            raise SourceError(f"the kernel's directory cannot be written: {error.strerror}") from None
        return self._number, directory

    def _forget(self, number: int) -> None:
        table = self._tables.pop(number, None)
        if table is not None:
            shutil.rmtree(table.data_path.parent, ignore_errors=True)


def _names(prefix: str) -> list[str]:
    """Return paths that begin with `prefix`, directories with a slash."""
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
