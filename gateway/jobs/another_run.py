"""Another run of a job that its machine lost while this process runs: whether, when, and why not."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime

from msgspec.structs import replace

from gateway.core.errors import FailureCode, JobFailed
from gateway.core.events import StateChanged
from gateway.core.job import JobState, Verdict
from gateway.core.settings import Settings
from gateway.jobs.recovery import reason_against
from gateway.jobs.runner import JobRun
from gateway.jobs.store import JobRecord, JobStore, StoredJob

#: How long a job without a waiting caller is run again because it got no kernel. Kernels that do not start under heavy
#: load, or while memory or disk are full, start minutes later. A broken sandbox stays so, and its jobs fill the queue.
START_RETRY_SECONDS = 300.0

#: The pause before the first of these runs, and the longest pause.
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 10.0


class AnotherRun:
    """Decides after each lost run of one job, by the rules for jobs that an earlier process left.

    A run whose code may have begun counts as an attempt. One that got no kernel repeats nothing, so it does not; it is
    bounded by time.

    Parameters
    ----------
    record : JobRecord
        The job.
    settings : Settings
    store : JobStore
        Keeps it.
    """

    def __init__(self, record: JobRecord, settings: Settings, store: JobStore) -> None:
        self._record = record
        self._settings = settings
        self._store = store
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._gives_up_at: float | None = None

    async def follows(self, run: JobRun, *, draining: bool) -> bool:
        """Return whether the job runs again, and only when it is time to.

        Parameters
        ----------
        run : JobRun
            Its `execute` has returned; it gets another verdict if a rule forbids another run.
        draining : bool
            Whether the gateway stops; the job is then left to the next process.

        Returns
        -------
        bool
            True if another run is to be opened, as the first in the queue.
        """
        lost = run.lost_verdict
        if lost is None or self._record.is_awaited or self._record.stop.cause is not None:
            return False
        if draining:
            self._record.stop.request(FailureCode.SHUTTING_DOWN)
            return False
        # no kernel was acquired before the stage `execute`, so none of the job's code ran
        has_begun = self._record.log.stage == "execute"
        stored = StoredJob(self._record, has_begun, had_network=self._settings.allow_network)
        reason = reason_against(stored, self._settings.max_attempts, datetime.now(UTC))
        now = time.monotonic()
        if reason is None and not has_begun and self._gives_up_at is not None and now >= self._gives_up_at:
            reason = f"no kernel has started for {START_RETRY_SECONDS:g} s"
        if reason is not None:
            run.fail(replace(lost, message=f"{lost.message}; the job does not run again: {reason}"))
            return False
        if has_begun:
            attempt = f"(attempt {self._record.attempts + 1} of {self._settings.max_attempts})"
            self._tell(f"{lost.message}: this job runs again {attempt}")
            self._record.requeue()
        else:
            if self._gives_up_at is None:
                self._gives_up_at = now + START_RETRY_SECONDS
                self._tell(f"{lost.message}: this job waits for another kernel")
            self._store.give_back(self._record)
        self._record.log.emit(StateChanged(JobState.QUEUED))
        return has_begun or await self._pause(run)

    def _tell(self, text: str) -> None:
        self._record.log.line("stderr", text)

    async def _pause(self, run: JobRun) -> bool:
        """Wait without a slot, so that a start that fails at once is not tried in a tight loop."""
        pause_seconds, self._pause_seconds = self._pause_seconds, min(2 * self._pause_seconds, LONGEST_PAUSE_SECONDS)
        try:
            await self._record.stop.guard(asyncio.sleep(pause_seconds))
        except JobFailed as stopped:
            run.fail(Verdict.of(stopped))
            return False
        return True
