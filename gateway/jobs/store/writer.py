"""One thread that writes: changes that arrive during a commit share the next one, and its fsync."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from gateway.core.tasks import retrieve_exception

log = logging.getLogger(__name__)

#: How long a change that nothing waits for may wait for another one, to share its fsync.
LAZY_SECONDS = 0.02

#: How long after its commit an erasure takes effect in the files: a checkpoint takes several fsyncs, and so several
#: jobs share one.
ERASE_SECONDS = 1.0

#: Pause before a change that must not be lost is tried again, for instance on a full disk.
RETRY_SECONDS = 1.0

#: How long `Writer.close` waits for the thread, and then for its last call.
CLOSE_SECONDS = 10.0

#: How often jobs, logs and bundles beyond their bounds are removed.
MAINTAIN_SECONDS = 60.0

Change = Callable[[sqlite3.Connection], Any]


@dataclass(slots=True, eq=False)
class _Work:
    change: Change
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    is_lazy: bool = False
    is_kept: bool = False
    erases: bool = False
    on_commit: Callable[[], None] | None = None
    came: float = field(default_factory=time.monotonic)


_Result = tuple[_Work, Any, BaseException | None]


class Writer:
    """Runs changes in transactions, in the order in which they come.

    Parameters
    ----------
    connection : sqlite3.Connection
        Used under `lock` only.
    lock : threading.Lock
        Guards the connection.
    maintain : callable
        Run in a transaction once a minute.
    on_commit : callable
        Called in the thread with the seconds of each commit.
    after_maintenance : callable
        Called in the thread after each `maintain`, outside of a transaction.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        lock: threading.Lock,
        maintain: Change,
        on_commit: Callable[[float], None],
        after_maintenance: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._lock = lock
        self._maintain = maintain
        self._on_commit = on_commit
        self._after_maintenance = after_maintenance
        self._disk_since: float | None = None
        self._queue: SimpleQueue[_Work | None] = SimpleQueue()
        self._open = 0
        self._thread = threading.Thread(target=self._run, name="job-store", daemon=True)
        self._thread.start()

    @property
    def is_idle(self) -> bool:
        """Whether every change is committed."""
        return self._open == 0

    @property
    def stalled_seconds(self) -> float:
        """Time for which the disk has not finished a commit or a checkpoint; 0 if none is going on."""
        since = self._disk_since
        return 0.0 if since is None else time.monotonic() - since

    def write(
        self,
        change: Change,
        *,
        is_lazy: bool = False,
        is_kept: bool = False,
        erases: bool = False,
        on_commit: Callable[[], None] | None = None,
    ) -> asyncio.Future[Any]:
        """Run a change and commit it.

        Parameters
        ----------
        change : callable
            Gets the connection, inside a transaction; in the thread.
        is_lazy : bool
            Whether it may wait `LAZY_SECONDS` for another change.
        is_kept : bool
            Whether it is tried again until it is committed; the future fails at the first attempt all the same.
        erases : bool
            Whether it deletes data that must be erased from the files as well.
        on_commit : callable, optional
            Called in the loop when it is committed, also after failed attempts.

        Returns
        -------
        Future
            The return value of `change`, after the commit; it need not be awaited.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        future.add_done_callback(retrieve_exception)  # it was logged, and need not be awaited
        self._open += 1
        self._queue.put(_Work(change, loop, future, is_lazy, is_kept, erases, on_commit))
        return future

    def close(self) -> None:
        """Commit everything, end the thread and close the connection; blocks. It may be called twice."""
        self._queue.put(None)
        self._thread.join(CLOSE_SECONDS)
        with self._lock:  # while another process locks the file, the thread may still wait in SQLite
            self._connection.close()

    def _run(self) -> None:
        pending: list[_Work] = []
        retry_at, erase_at, maintain_at = 0.0, float("inf"), time.monotonic() + MAINTAIN_SECONDS
        closing = False
        while not closing:
            commit_at = max(retry_at, pending[0].came + LAZY_SECONDS) if pending else float("inf")
            for work in self._take(min(commit_at, erase_at, maintain_at)):
                closing = closing or work is None
                if work is not None:
                    pending.append(work)
            now = time.monotonic()
            urgent = any(not work.is_lazy for work in pending)
            if pending and (closing or (urgent and now >= retry_at) or now >= commit_at):
                if any(work.erases for work in pending):
                    erase_at = min(erase_at, now + ERASE_SECONDS)
                with self._on_disk():
                    pending = self._commit(pending)
                retry_at = time.monotonic() + RETRY_SECONDS if pending else 0.0
            if now >= maintain_at:
                maintain_at = now + MAINTAIN_SECONDS
                with self._on_disk():
                    self._commit([], self._maintain)
                try:
                    self._after_maintenance()
                except Exception:  # of any kind: without its thread, the store would accept nothing and say nothing
                    log.exception("the maintenance of the job store failed")
            if now >= erase_at or closing:
                with self._on_disk():
                    erase_at = float("inf") if self._checkpoint() else now + ERASE_SECONDS

    @contextlib.contextmanager
    def _on_disk(self) -> Iterator[None]:
        self._disk_since = time.monotonic()
        try:
            yield
        finally:
            self._disk_since = None

    def _take(self, until: float) -> list[_Work | None]:
        """Return the changes that came, at least one unless `until` (`time.monotonic` seconds) is reached before."""
        found: list[_Work | None] = []
        seconds = min(until - time.monotonic(), MAINTAIN_SECONDS)
        with contextlib.suppress(Empty):
            found.append(self._queue.get(timeout=max(0.0, seconds)))
            while True:
                found.append(self._queue.get_nowait())
        return found

    def _commit(self, works: list[_Work], more: Change | None = None) -> list[_Work]:
        """Commit; return the changes that must be tried again."""
        began = time.perf_counter()
        results: list[_Result] = []
        try:
            with self._lock:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    results = [(work, *self._apply(work)) for work in works]
                    if more is not None:
                        more(self._connection)
                    self._connection.execute("COMMIT")
                except BaseException:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                    raise
        except Exception as error:  # of any kind: without its thread, the store would accept nothing and say nothing
            log.error("the job store could not be written: %s", error)
            self._settle([(work, None, error) for work in works], is_committed=False)
            return [work for work in works if work.is_kept]
        self._on_commit(time.perf_counter() - began)
        self._settle(results, is_committed=True)
        return []

    def _apply(self, work: _Work) -> tuple[Any, BaseException | None]:
        try:
            return work.change(self._connection), None
        except sqlite3.IntegrityError as error:  # of this statement alone: the others are committed
            return None, error
        except sqlite3.Error:
            raise
        except Exception as error:  # a fault of ours must not end the thread, and with it every later change
            log.exception("a change of the job store failed")
            return None, error

    def _checkpoint(self) -> bool:
        """Bring everything from the WAL into the database, and empty the WAL; return whether that was done."""
        try:
            with self._lock:
                busy = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            return not busy
        except sqlite3.Error as error:
            log.error("the job store could not be checkpointed: %s", error)
            return False

    def _settle(self, results: list[_Result], *, is_committed: bool) -> None:
        """Pass the results to their loops, with one call for each."""
        by_loop: dict[asyncio.AbstractEventLoop, list[_Result]] = {}
        for result in results:
            by_loop.setdefault(result[0].loop, []).append(result)
        for loop, own in by_loop.items():
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nothing waits any more
                loop.call_soon_threadsafe(self._resolve, own, is_committed)

    def _resolve(self, results: list[_Result], is_committed: bool) -> None:
        for work, value, error in results:
            if is_committed or not work.is_kept:  # else it is tried again
                self._open -= 1
            if error is None and work.on_commit is not None:
                work.on_commit()
            if work.future.done():
                continue
            if error is not None:
                work.future.set_exception(error)
            else:
                work.future.set_result(value)
