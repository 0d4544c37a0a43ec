"""The logs of running jobs on disk, so that a job keeps its lines when the process ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial

from gateway.jobs.store.record import JobRecord
from gateway.jobs.store.rows import update_log
from gateway.jobs.store.writer import Writer

#: Interval at which logs that have grown are stored.
LOG_SECONDS = 5.0


class RunningLogs:
    """Stores the logs of running jobs from time to time.

    Parameters
    ----------
    writer : Writer
    live : callable
        Returns the live jobs.
    """

    def __init__(self, writer: Writer, live: Callable[[], Iterable[JobRecord]]) -> None:
        self._writer = writer
        self._live = live
        self._timer: asyncio.TimerHandle | None = None

    def watch(self) -> None:
        """Store logs from now on, until no job runs."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOG_SECONDS, self._store_all)

    def store(self, record: JobRecord) -> None:
        """Store the log of one job if it has grown."""
        count = record.log.line_count
        if count != record.stored_lines:
            record.stored_lines = count
            self._writer.write(partial(update_log, record.execution_id, record.log.snapshot()), is_lazy=True)

    def close(self) -> None:
        """Store nothing any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _store_all(self) -> None:
        self._timer = None
        running = [r for r in self._live() if r.started_at is not None and r.finished_at is None]
        for record in running:
            self.store(record)
        if running:
            self.watch()
