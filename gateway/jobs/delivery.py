"""Delivery of a job's results and log to the places that the request names."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from msgspec.structs import replace

from gateway.core.cancellation import StopSignal
from gateway.core.errors import FAILURES, FailureCode, JobFailed
from gateway.core.events import EventSink, JobLog, Progress
from gateway.core.formats import FORMATS
from gateway.core.job import DirectoryDelivery, Job, KeptDelivery, ParcelDelivery, UrlDelivery, Verdict
from gateway.core.log_json import decode_line
from gateway.core.settings import Settings
from gateway.core.tasks import first_of, started
from gateway.core.uploads import UploadPermit
from gateway.storage import (
    KeptResultStore,
    ObjectClient,
    OpenOutput,
    RetryPolicy,
    deliver_files,
    events_object,
    put_object,
    stream_object,
)

log = logging.getLogger(__name__)

#: Time between two reports on the upload of the output.
PROGRESS_SECONDS = 0.25

#: How long a verdict waits for the upload of the log, which goes on in the background afterwards.
LOG_WAIT_SECONDS = 10.0

#: The same for a job that was cancelled or ended by a stop of the gateway.
ENDED_LOG_WAIT_SECONDS = 0.5

#: How long a stop of the gateway waits for logs that are uploaded in the background.
CLOSE_SECONDS = 2.0


@dataclass(slots=True, eq=False)
class JobOutputs:
    """The files of a successful job.

    Attributes
    ----------
    output : OpenOutput
        The opened output file.
    manifest : bytes
        Content of the output manifest, as the job wrote it.
    computed_at : float
        `time.monotonic` seconds; the time for the delivery counts from here.
    """

    output: OpenOutput
    manifest: bytes
    computed_at: float = field(default_factory=time.monotonic)

    def close(self) -> None:
        """Close the output. It may be called twice."""
        self.output.close()


class Deliverer:
    """Delivers for every kind of request; no other class distinguishes the kinds.

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
        self._client = client
        self._store = store
        self._on_retry = on_retry
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
        if verdict.ok and outputs is not None:
            try:
                if stop.cause is FailureCode.CANCELLED:  # a guard lets a result pass that is kept without a wait
                    raise stop.failure()
                await stop.guard(self._deliver_outputs(job, outputs, events, stop, execution_id, deadline, permit))
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
        _last_words(job, verdict, events)
        # in a task of its own, which goes on when the verdict waits no longer
        delivery = self._log(job, verdict, events, execution_id, deadline, permit)
        task = asyncio.create_task(delivery, name=f"log {execution_id}")
        self._logs[task] = execution_id
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
        return verdict

    async def aclose(self) -> None:
        """Wait a moment for the uploads of logs, then cancel them."""
        if self._logs:
            await asyncio.wait(self._logs, timeout=CLOSE_SECONDS)
        for task in self._logs:
            task.cancel()
        if self._logs:
            await asyncio.wait(self._logs)

    def _give_up_oldest_logs(self) -> None:
        """Keep no more logs in memory than may wait, beside those of the deliveries that a verdict waits for."""
        late = [task for task in self._logs if task not in self._awaited_logs]
        for task in late[: max(0, len(late) - self._settings.max_deliveries)]:
            execution_id = self._logs.pop(task)
            task.cancel()
            log.warning("job %s: its log could not be delivered: too many logs wait (MAX_DELIVERIES)", execution_id)

    async def _deliver_outputs(
        self,
        job: Job,
        outputs: JobOutputs,
        events: JobLog,
        stop: StopSignal,
        execution_id: str,
        deadline: float,
        permit: UploadPermit | None,
    ) -> None:
        put = partial(self._put, deadline=deadline, permit=permit)
        match job.delivery:
            case UrlDelivery(output_url, manifest_url):
                kind = FORMATS[job.output_format].content_type
                await put(output_url, outputs.output, "output", on_progress=_reporter(events), content_type=kind)
                if manifest_url is not None:
                    await put(manifest_url, outputs.manifest, "output manifest")
            case ParcelDelivery(output_url, manifest_url):
                put = partial(put, client=self._client.parcels)
                await put(output_url, outputs.output, "output", on_progress=_reporter(events))
                await put(manifest_url, outputs.manifest, "output manifest")
            case DirectoryDelivery(working_dir):
                await deliver_files(working_dir, self._settings, {"output.csv": outputs.output})
            case KeptDelivery():
                await self._store.keep(execution_id, outputs.output, outputs.manifest, events_object(events))
        stop.decide()  # not later: a cancel before the caller goes on would be granted, and the result would stay

    async def _put(
        self,
        url: str,
        body: OpenOutput | bytes,
        what: str,
        *,
        deadline: float,
        permit: UploadPermit | None,
        on_progress: Callable[[int], None] | None = None,
        content_type: str | None = None,
        client: ObjectClient | None = None,
    ) -> None:
        client = client or self._client
        retries = RetryPolicy(client.stall_seconds, deadline, self._on_retry)
        await put_object(client, url, body, what, on_progress, content_type, retries, permit)

    async def _log(
        self,
        job: Job,
        verdict: Verdict,
        events: JobLog,
        execution_id: str,
        deadline: float,
        permit: UploadPermit | None,
    ) -> None:
        """Deliver the log. A success stays one without its log, because the results are delivered and correct."""
        try:
            await self._deliver_log(job, verdict, events, execution_id, deadline, permit)
        except JobFailed as failure:
            log.warning("job %s: its log could not be delivered: %s", execution_id, failure)
        except Exception:
            log.exception("job %s: its log could not be delivered", execution_id)

    async def _deliver_log(
        self,
        job: Job,
        verdict: Verdict,
        events: JobLog,
        execution_id: str,
        deadline: float,
        permit: UploadPermit | None,
    ) -> None:
        put = partial(self._put, deadline=deadline, permit=permit)
        match job.delivery:
            case UrlDelivery(_, _, events_url, stdout_url, stderr_url):
                if events_url is not None:
                    await put(events_url, events_object(events), "log")
                if stdout_url is not None:
                    await put(stdout_url, await stream_object(events, "stdout"), "stdout")
                if stderr_url is not None:
                    await put(stderr_url, await stream_object(events, "stderr"), "stderr")
            case DirectoryDelivery(working_dir):
                logs: dict[str, OpenOutput | bytes] = {
                    "stdout.log": await stream_object(events, "stdout"),
                    "stderr.log": await stream_object(events, "stderr"),
                }
                await deliver_files(working_dir, self._settings, logs)
            case ParcelDelivery():
                pass  # its lines are at that member already
            case KeptDelivery() if verdict.ok:
                self._store.replace_events(execution_id, events_object(events))
            case KeptDelivery():
                await self._store.keep(execution_id, None, None, events_object(events))


def _reporter(events: EventSink) -> Callable[[int], None]:
    """Return a function that reports a long upload at intervals."""
    next_at = time.monotonic() + PROGRESS_SECONDS

    def report(sent_bytes: int) -> None:
        nonlocal next_at
        now = time.monotonic()
        if now >= next_at:
            next_at = now + PROGRESS_SECONDS
            events.emit(Progress("deliver", "output", bytes=sent_bytes))

    return report


def _last_words(job: Job, verdict: Verdict, events: JobLog) -> None:
    """End the log with the line that names the outcome, unless it does already."""
    if isinstance(job.delivery, ParcelDelivery):
        return  # the member that accepted the job writes it, after its delivery
    if verdict.code is not None:
        if not FAILURES[verdict.code].in_log and not _ends_with(events, verdict.message):
            events.line("stderr", f"ERROR: {verdict.message}")
        return
    if verdict.output is None:
        return
    where = " to S3" if isinstance(job.delivery, UrlDelivery) else ""
    events.line("stdout", f"Successfully saved {verdict.output.rows} rows{where}")
    events.line("stdout", f"Successfully saved output manifest with {verdict.output.fields} fields{where}")


def _ends_with(events: JobLog, text: str) -> bool:
    """Return whether one of the last three lines already says `text`."""
    tail = text.strip()
    return bool(tail) and any(tail in decode_line(line)[2] for line in events.json_lines()[0][-3:])
