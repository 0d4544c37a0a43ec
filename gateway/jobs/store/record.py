"""The record of one job, while it is live and afterwards."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from gateway.core.cancellation import StopSignal
from gateway.core.errors import Conflict, FailureCode, NotFound, ShuttingDown
from gateway.core.events import EventLog
from gateway.core.job import ApiForm, Job, JobState, RequestId, Verdict
from gateway.core.uploads import Uploads
from gateway.jobs.store.history import HistoryEntry


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A caller's ``Idempotency-Key``, and the body that came with it, as hashes.

    Attributes
    ----------
    key : bytes
        SHA-256 of the key.
    body : bytes
        SHA-256 of the request.
    """

    key: bytes
    body: bytes


@dataclass(slots=True, eq=False)
class JobRecord:
    """One accepted job: the request, its events, its end.

    Attributes
    ----------
    request_id : int or str
        The id that the caller chose; it may use it again.
    execution_id : str
        The gateway's own id, which identifies the record; the routes of the history call it ``job_id``.
    job_form : {'v1', 'first'}
        API in which the request came.
    job : Job or None
        The request, until the job is over.
    log : EventLog
        Its events, and with them state and verdict.
    stop : StopSignal
        Ends it before its time.
    is_awaited : bool
        Whether a caller waits for its end on a connection. Such a job never runs again after a restart.
    token_name : str or None
        Name of the caller's token.
    label : str or None
        The caller's description of it.
    tables : tuple of str
        Names of its tables.
    attempts : int
        Number of times that it has begun to run.
    key : IdempotencyKey or None
    uploads : Uploads or None
        Files that came with the request.
    trace_parent : str or None
        The caller's W3C ``traceparent``.
    call_id : str or None
        ``X-Request-Id`` of the HTTP request that brought the job.
    created_at, started_at, finished_at : float or None
        Seconds since the epoch; when it was accepted, got a slot, and was over.
    queue_seconds : float
        How long it has waited for its slot.
    is_accepted : bool
        Whether it is on the disk.
    is_suspended : bool
        Whether the drain has left it to the next process.
    stored_lines : int
        How many lines of its log are on the disk while it runs.
    """

    request_id: RequestId
    execution_id: str
    job_form: ApiForm
    job: Job | None
    log: EventLog
    stop: StopSignal = field(default_factory=StopSignal)
    is_awaited: bool = True
    token_name: str | None = None
    label: str | None = None
    tables: tuple[str, ...] = ()
    attempts: int = 0
    key: IdempotencyKey | None = None
    uploads: Uploads | None = None
    trace_parent: str | None = None
    call_id: str | None = None
    created_at: float = field(default_factory=time.time)
    started_at: float | None = None
    finished_at: float | None = None
    queue_seconds: float = 0.0
    is_accepted: bool = False
    is_suspended: bool = False
    stored_lines: int = 0
    _queued_since: float = field(default_factory=time.monotonic)
    _booted_at: float = field(init=False)

    def __post_init__(self) -> None:
        # an earlier process may have accepted the job, before the clock was set back
        self._booted_at = max(time.time(), self.created_at) - time.clock_gettime(time.CLOCK_BOOTTIME)

    @property
    def state(self) -> JobState:
        return self.log.state

    @property
    def verdict(self) -> Verdict | None:
        return self.log.verdict

    def start(self) -> None:
        """Record that the job has a slot now."""
        self.started_at = self._now()
        self.queue_seconds = time.monotonic() - self._queued_since

    def end(self) -> None:
        """Record that the job is over now."""
        self.finished_at = self._now()

    def requeue(self) -> None:
        """Record that the job waits for a slot again."""
        self.started_at = None
        self._queued_since = time.monotonic()

    def cancel(self, hold_seconds: float = 0.0) -> None:
        """Ask the job to end, in whichever stage it is.

        Parameters
        ----------
        hold_seconds : float
            How long to hold its kernel afterwards; 0 for no hold.

        Raises
        ------
        NotFound
            It is over; nothing changes then.
        Conflict
            A hold was requested, and its code does not run now; nothing changes then.
        ShuttingDown
            The drain has left it to the next process.
        """
        if self.is_suspended:
            raise ShuttingDown("the gateway is shutting down and runs the job at its next start; cancel it then")
        if self.state is JobState.FINISHED:
            raise NotFound(f"the job with job_id {self.execution_id!r} has finished")
        if hold_seconds and self.log.stage != "execute":
            raise Conflict("the code of the job does not run now, so there is no kernel to hold")
        if not self.stop.request(FailureCode.CANCELLED, hold_seconds):
            raise NotFound(f"the job with request_id {self.request_id!r} has finished; only its log is being delivered")

    def entry(self) -> HistoryEntry:
        """Return the job as the history shows it.

        Returns
        -------
        HistoryEntry
            Its state of this moment.
        """
        return HistoryEntry(
            job_id=self.execution_id,
            request_id=self.request_id,
            token_name=self.token_name,
            label=self.label,
            tables=self.tables,
            state=self.state,
            attempts=self.attempts,
            created_at=self.created_at,
            started_at=self.started_at,
            finished_at=self.finished_at,
            verdict=self.verdict,
        )

    async def wait(self) -> Verdict:
        """Return when the job is over.

        Returns
        -------
        Verdict
            How it ended.
        """
        await self.log.finished.wait()
        if self.log.verdict is None:  # the event is set together with the verdict
            raise AssertionError("a finished job has a verdict")
        return self.log.verdict

    def _now(self) -> float:
        """Return the time by a clock that nobody sets: the wall clock may jump by hours while the job lives."""
        return self._booted_at + time.clock_gettime(time.CLOCK_BOOTTIME)
