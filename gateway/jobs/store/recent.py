"""Finished jobs in memory, for requests just after the end."""

from __future__ import annotations

from collections import OrderedDict

from gateway.core.job import Scope
from gateway.jobs.store.record import JobRecord

#: Logs of finished jobs that are in memory as well, because most logs are read just after the end.
RECENT_LOG_BYTES = 8 << 20

#: Finished jobs in memory, whose logs may be empty.
RECENT_RECORDS = 100


class RecentJobs:
    """Keeps the jobs that ended last, within bounds, and those whose end is not on the disk yet."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[str, JobRecord] = OrderedDict()
        #: the job of each token name that ended last; the one that ended last of all is at the end
        self._newest: dict[str | None, JobRecord] = {}
        self._uncommitted: set[str] = set()

    def add(self, record: JobRecord) -> None:
        """Keep a job that has just ended; the oldest ones go."""
        self.set_newest(record)
        self._jobs[record.execution_id] = record
        self._trim()

    def set_newest(self, record: JobRecord) -> None:
        """Record a job as the last ended one of its token name."""
        self._newest.pop(record.token_name, None)
        self._newest[record.token_name] = record

    def hold(self, record: JobRecord) -> None:
        """Keep a job beyond the bounds until its end is on the disk, so that it can be found at any time."""
        self._uncommitted.add(record.execution_id)

    def release(self, record: JobRecord) -> None:
        """Drop a job as soon as the bounds require it."""
        self._uncommitted.discard(record.execution_id)
        self._trim()

    def get(self, job_id: str) -> JobRecord | None:
        """Return the job with this id of the gateway's if it is still in memory."""
        return self._jobs.get(job_id)

    def newest(self, scope: Scope) -> JobRecord | None:
        """Return the job that ended last, of those that the caller may see."""
        if scope.sees_all:
            return next(reversed(self._newest.values()), None)
        return self._newest.get(scope.token_name)

    def remove(self, job_id: str) -> JobRecord | None:
        """Forget a job, and return it if it was in memory."""
        for name, newest in tuple(self._newest.items()):
            if newest.execution_id == job_id:
                del self._newest[name]
        return self._jobs.pop(job_id, None)

    def _trim(self) -> None:
        log_bytes = sum(record.log.kept_bytes for record in self._jobs.values())
        for job_id, record in tuple(self._jobs.items()):
            if log_bytes <= RECENT_LOG_BYTES and len(self._jobs) <= RECENT_RECORDS:
                return
            if job_id not in self._uncommitted:
                log_bytes -= record.log.kept_bytes
                del self._jobs[job_id]
