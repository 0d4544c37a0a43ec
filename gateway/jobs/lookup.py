"""Find jobs: live ones, finished ones, and their kept results."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Iterator

from gateway.core.errors import Conflict, KeyReused, NotFound, StoreFailed
from gateway.core.job import ALL_JOBS, JobState, RequestId, Scope
from gateway.jobs.bundles import Bundle
from gateway.jobs.runner import JobRunner, KeptResult
from gateway.jobs.store import HistoryPage, HistoryQuery, IdempotencyKey, JobRecord, JobStore
from gateway.storage.outputs.job_files import OpenOutput

#: Refuses a request with an Idempotency-Key while the job of another request with this key is not stored yet.
SAME_MOMENT = "another request with this Idempotency-Key came at the same moment"


class JobLookup:
    """The part of a job service that starts nothing and ends nothing.

    A `Scope` says which jobs the caller may see; the others are not found.

    Parameters
    ----------
    store : JobStore
        Keeps the jobs.
    runner : JobRunner
        Keeps the results.
    """

    def __init__(self, store: JobStore, runner: JobRunner) -> None:
        self._store = store
        self._bundles = store.bundles
        self._runner = runner
        #: `IdempotencyKey.key` of the jobs that have an entry at the broker, but are not stored yet.
        self._arriving_keys: set[bytes] = set()

    async def find_by_key(self, key: IdempotencyKey) -> JobRecord | None:
        """Return the finished job that came with the same Idempotency-Key and body.

        Parameters
        ----------
        key : IdempotencyKey
            Of a request.

        Returns
        -------
        JobRecord or None
            None if the key is new: the request may be submitted.

        Raises
        ------
        KeyReused
            The key came with another body.
        Conflict
            Its job is not over, or not stored yet.
        """
        if key.key in self._arriving_keys:  # checked first: the job may be stored while the store answers None
            raise Conflict(SAME_MOMENT)
        record = await self._store.find_by_key(key.key)
        if record is None:
            return None
        if record.key is None or record.key.body != key.body:
            raise KeyReused("this Idempotency-Key came with another request before; keys are known for 24 hours")
        if record.state is not JobState.FINISHED:
            raise Conflict(f"the job with this Idempotency-Key is {record.state} now", job_id=record.execution_id)
        return record

    async def find(self, request_id: RequestId, scope: Scope = ALL_JOBS) -> JobRecord | None:
        """Return the newest job with this id that is live, or that ended within the last ten minutes; 7 is not "7"."""
        return await self._store.find(request_id, scope)

    async def get(self, job_id: str, scope: Scope = ALL_JOBS) -> JobRecord:
        """Return a job, live or of the history, by the gateway's own id.

        Raises
        ------
        NotFound
            It is not known, or not any more.
        """
        record = await self._store.get(job_id)
        if record is None or not scope.includes(record.token_name):
            raise NotFound(f"there is no job with job_id {job_id[:100]!r}, or it was forgotten")
        return record

    async def history(self, query: HistoryQuery) -> HistoryPage:
        """Return one page of the history, of live jobs and finished ones.

        Raises
        ------
        BadRequest
            The cursor is not one of this gateway's.
        """
        return await self._store.page(query)

    async def forget(self, job_id: str, scope: Scope = ALL_JOBS) -> None:
        """Remove a finished job, its log, its kept result and its bundle.

        Raises
        ------
        NotFound
            It is not known.
        Conflict
            It is not over.
        StoreFailed
            The store cannot be written.
        """
        record = await self.get(job_id, scope)
        if record.state is not JobState.FINISHED:
            raise Conflict(f"the job is {record.state} now; cancel it or wait for its end")
        try:
            await self._store.delete(job_id)
        except sqlite3.Error as error:
            raise StoreFailed(f"the job could not be removed from the job store: {error}") from None
        self._runner.drop_result(job_id)

    def current(self, scope: Scope = ALL_JOBS) -> JobRecord | None:
        """Return the job for a request that names none.

        Returns
        -------
        JobRecord or None
            The newest that runs; else the newest that waits; else the one that ended last.
        """
        live = self.running(scope) or self.queued(scope)
        return live[-1] if live else self._store.newest_finished(scope)

    def running(self, scope: Scope = ALL_JOBS) -> list[JobRecord]:
        """Return the jobs that run, the oldest first."""
        return [r for r in self._live(scope) if r.state is JobState.RUNNING]

    def queued(self, scope: Scope = ALL_JOBS) -> list[JobRecord]:
        """Return the jobs that wait, the oldest first."""
        return [r for r in self._live(scope) if r.state is JobState.QUEUED and r.is_accepted]

    def kept_result(self, record: JobRecord) -> KeptResult | None:
        """Return the result that is kept of a job that is over.

        Returns
        -------
        KeptResult or None
            None if the result went to the request's URLs, or is no longer kept.
        """
        return self._runner.kept_result(record.execution_id)

    def has_bundle(self, record: JobRecord) -> bool:
        """Return whether a job that is over has a bundle."""
        return self._bundles is not None and self._bundles.has(record.execution_id)

    async def bundle(self, record: JobRecord) -> Bundle:
        """Return the bundle of a failed job.

        Raises
        ------
        NotFound
            The job has none.
        """
        found = None
        if self._bundles is not None:
            found = await asyncio.to_thread(self._bundles.read, record.execution_id)
        if found is None:
            raise NotFound(
                f"the job {record.execution_id} has no bundle: KEEP_FAILED_JOBS keeps those of jobs that fail, within "
                "KEEP_FAILED_BYTES"
            )
        return found

    def open_bundled_table(self, record: JobRecord, number: int) -> OpenOutput | None:
        """Open the data of a table of a bundle.

        Parameters
        ----------
        record : JobRecord
            With a bundle.
        number : int
            Place of the table in the bundle.

        Returns
        -------
        OpenOutput or None
            None if nothing of it is kept. The caller closes it.
        """
        return self._bundles.open_table(record.execution_id, number) if self._bundles is not None else None

    @contextlib.contextmanager
    def _arriving(self, key: IdempotencyKey | None) -> Iterator[None]:
        """Let `find_by_key` refuse a key until its job is stored: the entry at the broker comes before."""
        if key is None:
            yield
            return
        if key.key in self._arriving_keys:
            raise Conflict(SAME_MOMENT)
        self._arriving_keys.add(key.key)
        try:
            yield
        finally:
            self._arriving_keys.discard(key.key)

    def _live(self, scope: Scope) -> list[JobRecord]:
        return [record for record in self._store.live() if scope.includes(record.token_name)]
