"""Bringing a job's results and its log to where the request asked."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass

from gateway.errors import FAILURES, JobFailed
from gateway.jobs.events import EventLog, Progress
from gateway.jobs.model import DataFormat, DirectoryDelivery, Job, KeptDelivery, UrlDelivery, Verdict
from gateway.jobs.stop import StopSignal
from gateway.settings import Settings
from gateway.storage import (
    Connections,
    OpenOutput,
    ResultStore,
    deliver_files,
    events_object,
    put_object,
    stream_object,
)

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 0.25
"""Time between two reports on the upload of the output."""

CONTENT_TYPES: dict[DataFormat, str] = {
    "jsonl": "application/x-ndjson",
    "csv": "text/csv",
    "parquet": "application/vnd.apache.parquet",
    "arrow": "application/vnd.apache.arrow.file",
}

FAILED_LOG_SECONDS = 10.0
"""How long the log of a failed job is tried to be uploaded: its caller waits for the answer, which must come soon."""


@dataclass(slots=True, eq=False)
class Results:
    """What a successful job made: the opened output and the manifest's bytes."""

    output: OpenOutput
    manifest: bytes

    def close(self) -> None:
        """Close the output. May be called twice."""
        self.output.close()


class Deliverer:
    """Delivers for every kind of request; the only place that knows them apart."""

    def __init__(self, settings: Settings, store: ResultStore, connections: Connections | None = None) -> None:
        self._settings = settings
        self._connections = connections
        self._store = store

    async def deliver(
        self, job: Job, verdict: Verdict, results: Results | None, events: EventLog, stop: StopSignal, execution_id: str
    ) -> Verdict:
        """Deliver output and manifest of a success, then the log of whatever came, and return the final verdict.

        The log goes last because it ends with what happened to the others: the success lines are true only after the
        uploads, and a failed upload must stand in the log that Metabase shows.
        """
        if verdict.ok and results is not None:
            try:
                await stop.guard(self._results(job, results, events))
            except JobFailed as failure:
                verdict = dataclasses.replace(
                    verdict, code=failure.code, message=failure.message, exit_code=failure.exit_code, output=None
                )
        _last_words(job, verdict, events)
        try:
            async with asyncio.timeout(None if verdict.ok else FAILED_LOG_SECONDS):
                await self._log(job, verdict, results, events, execution_id)
        except (JobFailed, TimeoutError) as failure:
            # the results are there and true: a log that could not be brought does not undo them
            log.warning("job %s: its log could not be delivered: %s", execution_id, failure or "too slow")
        return verdict

    async def _results(self, job: Job, results: Results, events: EventLog) -> None:
        match job.delivery:
            case UrlDelivery(output_url, manifest_url):
                kind = CONTENT_TYPES[job.output_format]
                puts = [self._put(output_url, results.output, "output", _reporter(events), kind)]
                if manifest_url is not None:
                    puts.append(self._put(manifest_url, results.manifest, "output manifest"))
                await _all_or_first_failure(puts)
            case DirectoryDelivery(working_dir):
                await deliver_files(working_dir, self._settings.working_dir_roots, {"output.csv": results.output})
            case KeptDelivery():
                pass  # kept together with the log, below

    def _put(
        self,
        url: str,
        body: OpenOutput | bytes,
        what: str,
        on_progress: Callable[[int], None] | None = None,
        content_type: str | None = None,
    ) -> Coroutine[None, None, None]:
        return put_object(url, body, self._settings, what, on_progress, self._connections, content_type)

    async def _log(
        self, job: Job, verdict: Verdict, results: Results | None, events: EventLog, execution_id: str
    ) -> None:
        match job.delivery:
            case UrlDelivery(_, _, events_url, stdout_url, stderr_url):
                if events_url is not None:
                    await self._put(events_url, events_object(events), "log")
                if stdout_url is not None:
                    await self._put(stdout_url, stream_object(events, "stdout"), "stdout")
                if stderr_url is not None:
                    await self._put(stderr_url, stream_object(events, "stderr"), "stderr")
            case DirectoryDelivery(working_dir):
                logs: dict[str, OpenOutput | bytes] = {
                    "stdout.log": stream_object(events, "stdout"),
                    "stderr.log": stream_object(events, "stderr"),
                }
                await deliver_files(working_dir, self._settings.working_dir_roots, logs)
            case KeptDelivery():
                kept = results if verdict.ok else None
                await self._store.keep(
                    execution_id,
                    kept.output if kept else None,
                    kept.manifest if kept else None,
                    events_object(events),
                )


def _reporter(events: EventLog) -> Callable[[int], None]:
    """Return what tells of an upload that takes long, now and then."""
    next_at = time.monotonic() + PROGRESS_SECONDS

    def report(sent_bytes: int) -> None:
        nonlocal next_at
        now = time.monotonic()
        if now >= next_at:
            next_at = now + PROGRESS_SECONDS
            events.emit(Progress("deliver", "output", bytes=sent_bytes))

    return report


async def _all_or_first_failure(puts: list[Coroutine[None, None, None]]) -> None:
    """Await all; at the first failure cancel the others, wait for their end, and raise it bare."""
    try:
        async with asyncio.TaskGroup() as group:
            for put in puts:
                group.create_task(put)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


def _last_words(job: Job, verdict: Verdict, events: EventLog) -> None:
    """Put the line that names the outcome last in the log, where it is not there already."""
    if verdict.code is not None:
        if not FAILURES[verdict.code].in_log and not events.ends_with(verdict.message):
            events.line("stderr", f"ERROR: {verdict.message}")
        return
    if verdict.output is None:
        return
    where = " to S3" if isinstance(job.delivery, UrlDelivery) else ""
    events.line("stdout", f"Successfully saved {verdict.output.rows} rows{where}")
    events.line("stdout", f"Successfully saved output manifest with {verdict.output.fields} fields{where}")
