"""The job store: live jobs in memory and on disk, finished ones on disk."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from gateway.core.errors import ShuttingDown
from gateway.core.job import ALL_JOBS, JobState, RequestId, Scope, Verdict
from gateway.core.settings import Settings
from gateway.jobs.bundles import BundleStore
from gateway.jobs.store.database import FILE_NAME, connect, open_database, open_in_memory, problems_named
from gateway.jobs.store.history import HistoryPage, HistoryQuery, read_page
from gateway.jobs.store.reader import Reader
from gateway.jobs.store.recent import RecentJobs
from gateway.jobs.store.record import JobRecord
from gateway.jobs.store.request_ids import FOUND_BY_REQUEST_ID_SECONDS, RequestIds
from gateway.jobs.store.retention import prune, unknown_jobs
from gateway.jobs.store.rows import (
    delete_job,
    delete_unfinished,
    encoded_request,
    ended_since,
    finished_job,
    insert_job,
    is_paused,
    job_id_of_key,
    known_keys,
    mark_cancelled,
    update_end,
    update_paused,
    update_state,
)
from gateway.jobs.store.running_logs import RunningLogs
from gateway.jobs.store.unfinished import StoredJob, read_unfinished
from gateway.jobs.store.writer import Writer


class JobStore:
    """Keeps jobs and finds them.

    A job is accepted when the commit of `accept` is on the disk. Its request is stored only if no caller waits for it,
    because only such a job can run again, and is erased at its end.

    Parameters
    ----------
    settings : Settings
        How long, and how much of, history and logs are kept.
    directory : Path or None
        A directory of the store's own; None keeps everything in memory, for tests.
    on_commit : callable
        Called, in a thread of the store's, with the seconds of each commit.

    Attributes
    ----------
    bundles : BundleStore or None
        Bundles of failed jobs; each is removed with its job.

    Raises
    ------
    ConfigurationError
        The file cannot be used; see `open_database`.
    """

    def __init__(
        self,
        settings: Settings,
        directory: Path | None = None,
        on_commit: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self._settings = settings
        lock = threading.Lock()
        if directory is None:
            self._connection = open_in_memory()
            self._reader = Reader(self._connection, lock)
        else:
            self._connection = open_database(directory / FILE_NAME)
            reading = connect(str(directory / FILE_NAME))
            reading.execute("PRAGMA query_only = ON")
            self._reader = Reader(reading, threading.Lock())
        self.bundles = BundleStore(directory / "bundles", settings.keep_failed_bytes) if directory is not None else None
        self._path = directory / FILE_NAME if directory is not None else Path(":memory:")
        self._live: dict[str, JobRecord] = {}
        self._recent = RecentJobs()
        self._request_ids = RequestIds()
        with problems_named(self._path):
            prune(settings, self._connection)
            self._drop_forgotten_bundles()
            self._load_recent()
        self._writer = Writer(self._connection, lock, partial(prune, settings), on_commit, self._drop_forgotten_bundles)
        self._logs = RunningLogs(self._writer, self.live)

    # -- live jobs

    def accept(self, record: JobRecord) -> asyncio.Future[None]:
        """Store a new job; it is live at once, and accepted when the future is done.

        Returns
        -------
        Future
            Fails with `sqlite3.IntegrityError` if another job has the same Idempotency-Key, and with another
            `sqlite3.Error` if the disk cannot be written; call `discard` then.
        """
        self._live[record.execution_id] = record
        self._request_ids.begin(record)
        return self._writer.write(partial(insert_job, record, encoded_request(record)))

    def discard(self, record: JobRecord, *, is_stored: bool = False) -> None:
        """Forget a job that could not be accepted; one that may be on the disk would run at the next start."""
        self._live.pop(record.execution_id, None)
        self._request_ids.forget(record)
        if is_stored:
            self._writer.write(partial(delete_unfinished, record.execution_id), is_kept=True, erases=True)

    def resume(self, record: JobRecord) -> None:
        """Make a job that `unfinished` returned live again."""
        self._live[record.execution_id] = record
        self._request_ids.begin(record)

    def begin(self, record: JobRecord, *, has_network: bool) -> None:
        """Record that a job has its slot; counts the attempt.

        A job with access to the network may have effects that a second run would repeat.
        """
        record.attempts += 1
        change = update_state(record, JobState.RUNNING, has_network)
        self._writer.write(change, is_lazy=record.is_awaited, is_kept=True)
        self._logs.watch()

    def give_back(self, record: JobRecord) -> None:
        """Record that a job waits again because it got no kernel in its slot; the attempt is not counted."""
        record.attempts -= 1
        record.requeue()
        self._writer.write(update_state(record, JobState.QUEUED, has_network=False), is_kept=True)

    def suspend(self, record: JobRecord) -> asyncio.Future[None]:
        """Leave a job that no caller waits for to the next process; the attempt that was cut off is not counted.

        The job is found until this process ends: a caller that follows it must not read that it was forgotten.

        Returns
        -------
        Future
            Done when it is on the disk.
        """
        record.is_suspended = True
        if record.started_at is not None:
            record.attempts -= 1
            record.started_at = None
        self._logs.store(record)
        return self._writer.write(update_state(record, JobState.QUEUED, has_network=False), is_kept=True)

    def mark_cancelled(self, record: JobRecord) -> asyncio.Future[None]:
        """Record that a job was cancelled, so that the next process does not run it if this one dies before its end.

        Returns
        -------
        Future
            Done when it is on the disk. A failure was logged, and the change is tried again.
        """
        return self._writer.write(partial(mark_cancelled, record.execution_id), is_kept=True)

    def finish(self, record: JobRecord, verdict: Verdict) -> asyncio.Future[None]:
        """Store the end of a job and erase its request.

        The job stays live until its `Finished` event; emit that next, or when the future is done.

        Parameters
        ----------
        record : JobRecord
            With ``finished_at``.
        verdict : Verdict
            How it ended.

        Returns
        -------
        Future
            Done when it is on the disk. A failure was logged, and the change is tried again.
        """
        # The caller of an awaited job has its answer on the connection and reads no history: the commit may wait for
        # the next job's, so that jobs back to back pay one fsync each.
        is_lazy = record.is_awaited and record.key is None
        self._recent.hold(record)
        return self._writer.write(
            partial(update_end, record, verdict, record.log.snapshot()),
            is_lazy=is_lazy,
            is_kept=True,
            erases=not record.is_awaited,
            on_commit=partial(self._recent.release, record),
        )

    def forget_live(self, record: JobRecord) -> None:
        """Remove a job whose end was announced from the live jobs."""
        self._live.pop(record.execution_id, None)
        self._request_ids.end(record, time.monotonic())
        self._recent.add(record)

    def live(self) -> list[JobRecord]:
        """Return the jobs that this process will end, the oldest first."""
        return [record for record in self._live.values() if not record.is_suspended]

    def find_live(self, request_id: RequestId, scope: Scope = ALL_JOBS) -> JobRecord | None:
        """Return the job with this id that is not over; 7 is not "7"."""
        job_id = self._request_ids.find(request_id, scope)
        return self._live.get(job_id) if job_id is not None else None

    def newest_finished(self, scope: Scope = ALL_JOBS) -> JobRecord | None:
        """Return the job that ended last."""
        return self._recent.newest(scope)

    def unfinished(self) -> list[StoredJob]:
        """Return the jobs that an earlier process left, the oldest first; called once, before any job is accepted."""
        with problems_named(self._path):
            return self._reader.ask(partial(read_unfinished, settings=self._settings))

    # -- finished jobs

    async def find(self, request_id: RequestId, scope: Scope = ALL_JOBS) -> JobRecord | None:
        """Return the newest job with this id, if it is live or ended within the last ten minutes; 7 is not "7"."""
        job_id = self._request_ids.find(request_id, scope)
        return await self.get(job_id) if job_id is not None else None

    async def get(self, job_id: str) -> JobRecord | None:
        """Return the job with this id of the gateway's, however old."""
        known = self._live.get(job_id) or self._recent.get(job_id)
        if known is not None:
            return known
        return await self._reader.ask_after(self._writer, lambda connection: finished_job(connection, job_id))

    async def find_by_key(self, key: bytes) -> JobRecord | None:
        """Return the job that came with an Idempotency-Key.

        Parameters
        ----------
        key : bytes
            `IdempotencyKey.key`.

        Returns
        -------
        JobRecord or None
            None if the key is new, or older than a day.

        Raises
        ------
        ShuttingDown
            The next process of this gateway runs the job.
        """
        found = next((r for r in self._live.values() if r.key is not None and r.key.key == key), None)
        if found is None:
            job_id = await self._reader.ask_after(self._writer, lambda connection: job_id_of_key(connection, key))
            if job_id is None:
                return None
            found = await self.get(job_id)
        if found is None or found.is_suspended:  # None: not yet discarded; another job might run beside it
            raise ShuttingDown("the job with this Idempotency-Key is left to the next process of this gateway")
        return found

    async def known_keys(self) -> list[bytes]:
        """Return the Idempotency-Keys that `find_by_key` finds, each as an `IdempotencyKey.key`."""
        return await self._reader.ask_after(self._writer, known_keys)

    async def page(self, query: HistoryQuery) -> HistoryPage:
        """Return one page of the history, of jobs of all states."""
        return await self._reader.ask_after(self._writer, lambda connection: read_page(connection, query))

    async def delete(self, job_id: str) -> bool:
        """Remove a finished job with its log and its bundle; return whether there was such a job."""
        record = self._recent.remove(job_id)
        if record is not None:
            self._request_ids.forget(record)
        is_deleted = bool(await self._writer.write(partial(delete_job, job_id), erases=True))
        if self.bundles is not None:
            await asyncio.to_thread(self.bundles.drop, [job_id])
        return is_deleted

    def is_paused(self) -> bool:
        """Return whether the intake of jobs was paused, also by an earlier process; blocks."""
        return self._reader.ask(is_paused)

    def stalled_seconds(self) -> float:
        """Return the time for which the disk has not finished a write; 0 if none is going on."""
        return self._writer.stalled_seconds

    def set_paused(self, paused: bool) -> asyncio.Future[None]:
        """Store whether the intake of jobs is paused.

        Returns
        -------
        Future
            Done when it is on the disk; fails with `sqlite3.Error`.
        """
        return self._writer.write(partial(update_paused, paused))

    def close(self) -> None:
        """Commit everything and close the file; blocks. It may be called twice."""
        self._logs.close()
        self._writer.close()
        self._reader.close()

    # -- inside

    def _drop_forgotten_bundles(self) -> None:
        """Remove the bundles of jobs that are not known any more; outside of a transaction, because it takes time."""
        if self.bundles is not None:
            job_ids = self.bundles.job_ids()
            self.bundles.drop(self._reader.ask(lambda connection: unknown_jobs(connection, job_ids)))

    def _load_recent(self) -> None:
        """Load the ids of jobs that ended recently, so that they are found as before the restart."""
        now = time.time()
        newest: dict[str | None, str] = {}
        for job_id, request_id, token_name, finished_at in self._reader.ask(
            lambda connection: ended_since(connection, now - FOUND_BY_REQUEST_ID_SECONDS)
        ):
            ended = time.monotonic() - max(0.0, now - finished_at)
            self._request_ids.restore(request_id, token_name, job_id, ended)
            newest.pop(token_name, None)
            newest[token_name] = job_id
        for job_id in newest.values():
            record = self._reader.ask(partial(finished_job, job_id=job_id))
            if record is not None:
                self._recent.set_newest(record)
