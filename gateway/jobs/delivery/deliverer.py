"""The order of deliveries, and the logs that are uploaded after the verdict."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from msgspec.structs import replace

from gateway.core.cancellation import StopSignal
from gateway.core.errors import FailureCode, JobFailed
from gateway.core.events import JobLog
from gateway.core.job import Job, Verdict
from gateway.core.settings import Settings
from gateway.core.tasks import first_of, started
from gateway.core.uploads import UploadPermit
from gateway.jobs.delivery.job_delivery import Destinations, JobDelivery, JobOutputs
from gateway.storage import KeptResultStore, ObjectClient

log = logging.getLogger(__name__)

#: How long a verdict waits for the upload of the log, which goes on in the background afterwards.
LOG_WAIT_SECONDS = 10.0

#: The same for a job that was cancelled or ended by a stop of the gateway.
ENDED_LOG_WAIT_SECONDS = 0.5

#: How long a stop of the gateway waits for logs that are uploaded in the background.
CLOSE_SECONDS = 2.0


class Deliverer:
    """Delivers the results and logs of all jobs.

    Parameters
    ----------
    settings : Settings
    store : KeptResultStore
        Stores results for which the request gives no URL.
    client : ObjectClient
        Sends requests to the storage.
    on_retry : callable, optional
        Called before each repeated attempt to deliver something.
    """

    def __init__(
        self,
        settings: Settings,
        store: KeptResultStore,
        client: ObjectClient,
        on_retry: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._destinations = Destinations(settings, store, client, on_retry)
        self._logs: dict[asyncio.Task[None], str] = {}
        self._awaited_logs: set[asyncio.Task[None]] = set()

    async def deliver(
        self,
        job: Job,
        verdict: Verdict,
        outputs: JobOutputs | None,
        events: JobLog,
        stop: StopSignal,
        execution_id: str,
        permit: UploadPermit | None = None,
    ) -> Verdict:
        """Deliver the output of a success, then its manifest, then the log of any job.

        A manifest is published only after its output, so that a reader that finds one finds both. The log goes last
        because it ends with the outcome of the other uploads: the success lines are true only after them, and a failed
        upload must be in the log that Metabase shows.

        Parameters
        ----------
        job : Job
            Names the places.
        verdict : Verdict
            How the job ended.
        outputs : JobOutputs or None
            The files of a success.
        events : JobLog
            The log so far; gets the last lines.
        stop : StopSignal
            Ends the delivery of the results before its time; changes nothing once the verdict is known.
        execution_id : str
            Name of a kept result.
        permit : callable, optional
            Awaited before the last block of each upload.

        Returns
        -------
        Verdict
            The final verdict; a failure if the results could not be delivered.
        """
        deadline = (outputs.computed_at if outputs else time.monotonic()) + self._settings.delivery_retry_seconds
        delivery = JobDelivery(self._destinations, job, execution_id, events, deadline, permit)
        if verdict.ok and outputs is not None:
            try:
                if stop.cause is FailureCode.CANCELLED:  # a guard lets a result pass that is kept without a wait
                    raise stop.failure()
                await stop.guard(_deliver_results(delivery, outputs, stop))
            except JobFailed as failure:
                failed = Verdict.of(failure)
                verdict = replace(
                    verdict,
                    code=failed.code,
                    message=failed.message,
                    exit_code=failed.exit_code,
                    retryable=failed.retryable,
                    output=None,
                )
        stop.decide()
        delivery.write_last_lines(verdict)
        await self._deliver_log(delivery, verdict, stop)
        return verdict

    async def aclose(self) -> None:
        """Wait a moment for the uploads of logs, then cancel them."""
        if self._logs:
            await asyncio.wait(self._logs, timeout=CLOSE_SECONDS)
        for task in self._logs:
            task.cancel()
        if self._logs:
            await asyncio.wait(self._logs)

    async def _deliver_log(self, delivery: JobDelivery, verdict: Verdict, stop: StopSignal) -> None:
        """Deliver the log in a task of its own, which goes on when the verdict has waited long enough for it."""
        task = asyncio.create_task(_deliver_log_or_warn(delivery, verdict), name=f"log {delivery.execution_id}")
        self._logs[task] = delivery.execution_id
        task.add_done_callback(lambda done: self._logs.pop(done, None))
        self._awaited_logs.add(task)
        try:
            if stop.cause is None:
                async with started(stop.wait()) as (stopped,):
                    await first_of(task, stopped, timeout_seconds=LOG_WAIT_SECONDS)
            if stop.cause is not None:
                await first_of(task, timeout_seconds=ENDED_LOG_WAIT_SECONDS)
        finally:
            self._awaited_logs.discard(task)
        self._give_up_oldest_logs()

    def _give_up_oldest_logs(self) -> None:
        """Keep no more logs in memory than may wait, beside those of the deliveries that a verdict waits for."""
        late = [task for task in self._logs if task not in self._awaited_logs]
        for task in late[: max(0, len(late) - self._settings.max_deliveries)]:
            execution_id = self._logs.pop(task)
            task.cancel()
            log.warning("job %s: its log could not be delivered: too many logs wait (MAX_DELIVERIES)", execution_id)


async def _deliver_results(delivery: JobDelivery, outputs: JobOutputs, stop: StopSignal) -> None:
    await delivery.deliver_results(outputs)
    stop.decide()  # not later: a cancel before the caller goes on would be granted, and the result would stay


async def _deliver_log_or_warn(delivery: JobDelivery, verdict: Verdict) -> None:
    """Deliver the log. A success stays one without its log, because the results are delivered and correct."""
    try:
        await delivery.deliver_log(verdict)
    except JobFailed as failure:
        log.warning("job %s: its log could not be delivered: %s", delivery.execution_id, failure)
    except Exception:
        log.exception("job %s: its log could not be delivered", delivery.execution_id)
