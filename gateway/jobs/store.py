"""What is known about jobs, behind one small interface; kept in memory."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from gateway.jobs.events import EventLog
from gateway.jobs.model import ApiForm, Job, JobState, RequestId, Verdict
from gateway.jobs.stop import StopSignal

if TYPE_CHECKING:
    from gateway.storage.results import KeptResult

KEPT_RECORDS = 200
KEPT_LOG_BYTES = 32 << 20


@dataclass(slots=True, eq=False)
class JobRecord:
    """One accepted job: what was asked, what happens, how it ended.

    The identity of a record is `execution_id`; `request_id` is the caller's and comes again; `call_id` is the
    ``X-Request-Id`` of the HTTP request that brought it.
    """

    request_id: RequestId
    execution_id: str
    job_form: ApiForm
    job: Job | None
    log: EventLog
    stop: StopSignal
    trace_parent: str | None = None
    call_id: str | None = None
    created_at: float = field(default_factory=time.time)
    started_at: float | None = None
    finished_at: float | None = None
    result: KeptResult | None = None

    @property
    def state(self) -> JobState:
        """Where the job stands."""
        return self.log.state

    @property
    def verdict(self) -> Verdict | None:
        """How it ended, or None while it has not."""
        return self.log.verdict

    async def wait(self) -> Verdict:
        """Return the verdict once the job is over."""
        await self.log.finished.wait()
        if self.log.verdict is None:  # the event is set together with the verdict
            raise AssertionError("a finished job has a verdict")
        return self.log.verdict


class JobStore(Protocol):
    """Where records are kept and found."""

    def add(self, record: JobRecord) -> None:
        """Keep a new record."""

    def find(self, request_id: RequestId) -> JobRecord | None:
        """Return the newest record with this id; the JSON type counts, so 7 is not "7"."""

    def live(self) -> list[JobRecord]:
        """Return the records of jobs that are not over, oldest first."""

    def newest_finished(self) -> JobRecord | None:
        """Return the job that ended last and is still kept."""

    def expire(self) -> list[JobRecord]:
        """Forget what was kept long enough; returns what was forgotten."""


class MemoryStore:
    """A `JobStore` that forgets with the process.

    Finished records are kept for `keep_seconds`, but never more than `KEPT_RECORDS` of them nor more than
    `KEPT_LOG_BYTES` of log, so that a busy hour does not grow the gateway.
    """

    def __init__(self, keep_seconds: float) -> None:
        self._keep_seconds = keep_seconds
        self._records: OrderedDict[str, JobRecord] = OrderedDict()
        self._newest: dict[tuple[type, RequestId], JobRecord] = {}

    def add(self, record: JobRecord) -> None:
        """Keep a new record."""
        self._records[record.execution_id] = record
        self._newest[type(record.request_id), record.request_id] = record

    def find(self, request_id: RequestId) -> JobRecord | None:
        """Return the newest record with this id; the JSON type counts, so 7 is not "7"."""
        return self._newest.get((type(request_id), request_id))

    def live(self) -> list[JobRecord]:
        """Return the records of jobs that are not over, oldest first."""
        return [r for r in self._records.values() if r.state is not JobState.FINISHED]

    def newest_finished(self) -> JobRecord | None:
        """Return the job that ended last and is still kept."""
        finished = [r for r in self._records.values() if r.finished_at is not None]
        return max(finished, key=lambda r: r.finished_at or 0.0, default=None)

    def expire(self) -> list[JobRecord]:
        """Forget what was kept long enough; returns what was forgotten."""
        finished = [r for r in self._records.values() if r.finished_at is not None]
        finished.sort(key=lambda r: r.finished_at or 0.0)
        now, log_bytes = time.time(), sum(r.log.kept_bytes for r in finished)
        gone: list[JobRecord] = []
        for record in finished:
            old = (record.finished_at or 0.0) + self._keep_seconds < now
            if not old and len(finished) - len(gone) <= KEPT_RECORDS and log_bytes <= KEPT_LOG_BYTES:
                break
            log_bytes -= record.log.kept_bytes
            gone.append(record)
            self._forget(record)
        return gone

    def _forget(self, record: JobRecord) -> None:
        del self._records[record.execution_id]
        key = (type(record.request_id), record.request_id)
        if self._newest.get(key) is record:
            del self._newest[key]
