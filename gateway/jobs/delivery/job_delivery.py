"""The delivery of one job, for every kind of request: its results, its log, and the last lines of this log."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from gateway.core.errors import FAILURES
from gateway.core.events import EventSink, JobLog, Progress
from gateway.core.formats import FORMATS
from gateway.core.job import DirectoryDelivery, Job, KeptDelivery, ParcelDelivery, UrlDelivery, Verdict
from gateway.core.log_json import decode_line
from gateway.core.settings import Settings
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

#: Time between two reports on the upload of the output.
PROGRESS_SECONDS = 0.25


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


@dataclass(frozen=True, slots=True)
class Destinations:
    """The destinations of all deliveries of a gateway.

    Attributes
    ----------
    settings : Settings
    store : KeptResultStore
        Stores results for which the request gives no URL.
    client : ObjectClient
        Sends requests to the storage.
    on_retry : callable
        Called before each repeated attempt to deliver something.
    """

    settings: Settings
    store: KeptResultStore
    client: ObjectClient
    on_retry: Callable[[], None]


@dataclass(frozen=True, slots=True, eq=False)
class JobDelivery:
    """Delivers what belongs to one job; no other class distinguishes the kinds of requests.

    Attributes
    ----------
    destinations : Destinations
    job : Job
        Names the places.
    execution_id : str
        Name of a kept result.
    events : JobLog
        The log.
    deadline : float
        `time.monotonic` seconds until which an upload is tried again.
    permit : callable or None
        Awaited before the last block of each upload.
    """

    destinations: Destinations
    job: Job
    execution_id: str
    events: JobLog
    deadline: float
    permit: UploadPermit | None

    async def deliver_results(self, outputs: JobOutputs) -> None:
        """Deliver the output, then its manifest.

        Raises
        ------
        JobFailed
            They could not be delivered in time.
        """
        match self.job.delivery:
            case UrlDelivery(output_url, manifest_url):
                kind, report = FORMATS[self.job.output_format].content_type, _reporter(self.events)
                await self._put(output_url, outputs.output, "output", on_progress=report, content_type=kind)
                if manifest_url is not None:
                    await self._put(manifest_url, outputs.manifest, "output manifest")
            case ParcelDelivery(output_url, manifest_url):
                put = partial(self._put, client=self.destinations.client.parcels)
                await put(output_url, outputs.output, "output", on_progress=_reporter(self.events))
                await put(manifest_url, outputs.manifest, "output manifest")
            case DirectoryDelivery(working_dir):
                await deliver_files(working_dir, self.destinations.settings, {"output.csv": outputs.output})
            case KeptDelivery():
                log = events_object(self.events)
                await self.destinations.store.keep(self.execution_id, outputs.output, outputs.manifest, log)

    def write_last_lines(self, verdict: Verdict) -> None:
        """End the log with the line that names the outcome, unless it does already."""
        if isinstance(self.job.delivery, ParcelDelivery):
            return  # the owner of the job writes it, after its delivery
        if verdict.code is not None:
            if not FAILURES[verdict.code].in_log and not _ends_with(self.events, verdict.message):
                self.events.line("stderr", f"ERROR: {verdict.message}")
            return
        if verdict.output is None:
            return
        where = " to S3" if isinstance(self.job.delivery, UrlDelivery) else ""
        fields = f"{verdict.output.fields} fields{where}"
        self.events.line("stdout", f"Successfully saved {verdict.output.rows} rows{where}")
        self.events.line("stdout", f"Successfully saved output manifest with {fields}")

    async def deliver_log(self, verdict: Verdict) -> None:
        """Deliver the log.

        Raises
        ------
        JobFailed
            It could not be delivered in time.
        """
        store, events = self.destinations.store, self.events
        match self.job.delivery:
            case UrlDelivery(_, _, events_url, stdout_url, stderr_url):
                if events_url is not None:
                    await self._put(events_url, events_object(events), "log")
                if stdout_url is not None:
                    await self._put(stdout_url, await stream_object(events, "stdout"), "stdout")
                if stderr_url is not None:
                    await self._put(stderr_url, await stream_object(events, "stderr"), "stderr")
            case DirectoryDelivery(working_dir):
                logs: dict[str, OpenOutput | bytes] = {
                    "stdout.log": await stream_object(events, "stdout"),
                    "stderr.log": await stream_object(events, "stderr"),
                }
                await deliver_files(working_dir, self.destinations.settings, logs)
            case ParcelDelivery():
                pass  # its lines are at that member already
            case KeptDelivery() if verdict.ok:
                store.replace_events(self.execution_id, events_object(events))
            case KeptDelivery():
                await store.keep(self.execution_id, None, None, events_object(events))

    async def _put(
        self,
        url: str,
        body: OpenOutput | bytes,
        what: str,
        *,
        on_progress: Callable[[int], None] | None = None,
        content_type: str | None = None,
        client: ObjectClient | None = None,
    ) -> None:
        client = client or self.destinations.client
        retries = RetryPolicy(client.stall_seconds, self.deadline, self.destinations.on_retry)
        await put_object(client, url, body, what, on_progress, content_type, retries, self.permit)


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


def _ends_with(events: JobLog, text: str) -> bool:
    """Return whether one of the last three lines already says `text`."""
    tail = text.strip()
    return bool(tail) and any(tail in decode_line(line)[2] for line in events.json_lines()[0][-3:])
