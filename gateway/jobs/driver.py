"""The steps of one job from its acceptance to its answer: queue, runs, delivery, end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from msgspec import structs

from gateway.core.errors import FailureCode, JobFailed
from gateway.core.events import Finished, StateChanged
from gateway.core.job import JobState, Verdict
from gateway.core.settings import Settings
from gateway.jobs.another_run import AnotherRun
from gateway.jobs.failed_jobs import keep_bundle, may_run_again
from gateway.jobs.queue import JobQueue
from gateway.jobs.runner import JobRun, JobRunner, RequestIdClaims
from gateway.jobs.status import JobCounters
from gateway.jobs.store import JobRecord, JobStore

log = logging.getLogger(__name__)


class JobDriver:
    """Brings jobs to their answers; each has exactly one, whatever fails.

    Parameters
    ----------
    settings : Settings
    runner : JobRunner
        Where jobs run.
    store : JobStore
        Keeps the jobs.
    counters : JobCounters
        Count attempts and ends.
    claims : RequestIdClaims or None
        Releases the request id of each job at its end.
    on_finished : callable or None
        Called with each record when its verdict is known.
    is_draining : callable
        Returns whether this process stops: jobs that no caller waits for are then left to the next process.
    disk_takes_jobs : callable
        Returns whether a job would be accepted now, as far as the disk is concerned.

    Attributes
    ----------
    queue : JobQueue
        The jobs that wait for a slot.
    """

    def __init__(
        self,
        settings: Settings,
        runner: JobRunner,
        store: JobStore,
        counters: JobCounters,
        claims: RequestIdClaims | None,
        on_finished: Callable[[JobRecord], None] | None,
        is_draining: Callable[[], bool],
        disk_takes_jobs: Callable[[], bool],
    ) -> None:
        self.queue = JobQueue(settings.queue_timeout_seconds)
        self._settings = settings
        self._runner = runner
        self._store = store
        self._counters = counters
        self._claims = claims
        self._on_finished = on_finished
        self._is_draining = is_draining
        self._disk_takes_jobs = disk_takes_jobs
        runner.on_slot_free(self.queue.advance)

    async def drive(self, record: JobRecord, run: JobRun, *, has_verdict: bool = False) -> None:
        """Bring one job from its acceptance to its answer.

        Parameters
        ----------
        record : JobRecord
            An accepted job.
        run : JobRun
            The job in the runner.
        has_verdict : bool
            Whether the job has failed without running, so that only its log is delivered.
        """
        verdict: Verdict | None = None
        is_abandoned = False
        try:
            if not has_verdict:
                await self._execute(record, run)
            another = AnotherRun(record, self._settings, self._store, self._disk_takes_jobs)
            while (job := record.job) is not None and await another.follows(run, draining=self._is_draining()):
                await run.close()
                run = self._runner.open(job, record.log, record.stop, record.execution_id, record.uploads)
                await self._execute(record, run, is_again=True)
            if not self._is_left(record):
                verdict = await run.deliver()
                verdict = structs.replace(
                    verdict, stages_seconds={"queue": record.queue_seconds, **verdict.stages_seconds}
                )
        except asyncio.CancelledError:  # by `JobService.aclose`, when the drain could not end the job
            is_abandoned = True
            record.stop.request(FailureCode.SHUTTING_DOWN)
            verdict = Verdict.of(record.stop.failure())
            raise
        except Exception:
            # the last boundary: after a fault of ours the caller must still get an answer, and not our traceback
            log.exception("job %s: the gateway failed", record.execution_id)
        finally:
            left = not record.is_awaited and (is_abandoned or self._is_left(record)) and not _is_final(verdict)
            if left and self._is_draining():
                record.log.line("stderr", "The gateway is shutting down: this job is left to its next start")
                await asyncio.wait({self._store.suspend(record)})
            elif not left:
                await self.finish(record, verdict or Verdict.internal(), run)
            await run.close()
            if record.uploads is not None and not left:
                await asyncio.to_thread(record.uploads.remove)

    async def finish(self, record: JobRecord, verdict: Verdict, run: JobRun | None = None) -> None:
        """Store the verdict of a job and announce it.

        Parameters
        ----------
        record : JobRecord
            A live job.
        verdict : Verdict
            How it ended.
        run : JobRun, optional
            Has the job's tables, for the bundle of a failure.
        """
        record.end()
        verdict = structs.replace(verdict, host=record.log.host)
        bundles = self._store.bundles
        if bundles is not None and self._settings.keep_failed_jobs and may_run_again(verdict) and run is not None:
            await keep_bundle(bundles, record, verdict, run, self._runner, self._settings)
        stored = self._store.finish(record, verdict)
        if not record.is_awaited or record.key is not None:
            # a caller that asks later must get the same answer, whatever happens in between
            await asyncio.wait({stored})
        if self._claims is not None:  # before the caller gets the answer, and may use the id again
            await self._claims.release(record.execution_id)
        record.job = None  # the code and the presigned URLs are not needed any more
        self._counters.count(verdict)
        record.log.emit(Finished(verdict))
        self._store.forget_live(record)
        if self._on_finished is not None:
            self._on_finished(record)

    async def _execute(self, record: JobRecord, run: JobRun, *, is_again: bool = False) -> None:
        queued_since = time.monotonic()
        try:
            await record.stop.guard(self.queue.wait_for_slot(record, run, is_again=is_again))
        except JobFailed as failure:
            record.queue_seconds = time.monotonic() - queued_since
            run.fail(Verdict.of(failure))
            return
        try:
            self._store.begin(record, has_network=self._settings.allow_network)
            self._counters.attempts["first" if record.attempts == 1 else "again"] += 1
            record.log.emit(StateChanged(JobState.RUNNING))
            log_step("started", record)
            await run.execute()
        finally:
            # the answer does not wait until the job's processes are gone, but the next job does
            run.leave_slot()

    def _is_left(self, record: JobRecord) -> bool:
        """Return whether a job is left to the next process, because the drain came before its end."""
        return self._is_draining() and not record.is_awaited and record.stop.cause is FailureCode.SHUTTING_DOWN


def log_step(step: str, record: JobRecord) -> None:
    """Write the line of a job that was accepted or started; `gateway.telemetry.logging` writes its last line.

    Parameters
    ----------
    step : {'accepted', 'started'}
        The step.
    record : JobRecord
        The job.
    """
    ids = {"request_id": record.request_id, "job_id": record.execution_id, "token_name": record.token_name}
    names = (record.token_name or "-", record.call_id or "-")
    text = "job %a (%s) %s token=%s call=%s"
    log.info(text, record.request_id, record.execution_id, step, *names, extra=ids | {"call_id": record.call_id})


def _is_final(verdict: Verdict | None) -> bool:
    """Return whether a job has its verdict, and not only the end of the gateway."""
    return verdict is not None and verdict.code is not FailureCode.SHUTTING_DOWN
