"""The jobs that an earlier process left: whether each may run again, and the reason if not."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from gateway.core.cancellation import StopSignal
from gateway.core.errors import FAILURES, FailureCode
from gateway.core.job import Job, UrlDelivery, UrlSource, Verdict
from gateway.jobs.store import StoredJob
from gateway.jobs.table_use import used_tables
from gateway.storage import expiry_of


def reason_against(stored: StoredJob, max_attempts: int, now: datetime, *, is_computed: bool = False) -> str | None:
    """Return the reason why a job must not run again.

    Parameters
    ----------
    stored : StoredJob
        A job that an earlier process did not finish.
    max_attempts : int
        How often a job may begin.
    now : datetime
        The time, in UTC.
    is_computed : bool
        Whether only the delivery of its output is left, which repeats no effect and reads no table.

    Returns
    -------
    str or None
        None if it may run; otherwise the rest of a sentence.
    """
    record, job = stored.record, stored.record.job
    if stored.was_cancelled:
        return "it was cancelled"
    if record.is_awaited:
        return "its caller waited on a connection, which is closed"
    if job is None:
        return f"its request cannot be read ({stored.problem})" if stored.problem else "its request was not stored"
    if is_computed:
        return _expired(_urls_of_delivery(job), now)
    if stored.had_begun and stored.had_network:
        return "it had access to the network, where a second run could repeat its effects"
    if stored.had_begun and record.attempts >= max_attempts:
        times = "once" if record.attempts == 1 else f"{record.attempts} times"
        return f"it has begun {times}, and MAX_ATTEMPTS is {max_attempts}"
    if record.uploads is not None and not record.uploads.directory.is_dir():
        return "the files that came with the request are gone"
    return _expired(_urls_of(job), now)


def verdict_against(stored: StoredJob, reason: str) -> Verdict:
    """Return the verdict on a job that does not run again.

    Parameters
    ----------
    stored : StoredJob
        The job.
    reason : str
        From `reason_against`.

    Returns
    -------
    Verdict
        The failure ``gateway_restarted``, or ``cancelled``.
    """
    if stored.was_cancelled:
        return Verdict.of(StopSignal().failure())
    stage = "ran" if stored.had_begun else "waited"
    text = f"The gateway was restarted while the job {stage}, and does not run it again: {reason}"
    return Verdict(FailureCode.GATEWAY_RESTARTED, text, FAILURES[FailureCode.GATEWAY_RESTARTED].exit_code)


def expired_url(job: Job, now: datetime) -> str | None:
    """Return the expired URL of a job, as the rest of a sentence.

    Parameters
    ----------
    job : Job
        A validated job.
    now : datetime
        The time, in UTC.

    Returns
    -------
    str or None
        None if all can be used.
    """
    return _expired(_urls_of(job), now)


def _expired(urls: Iterator[tuple[str, str]], now: datetime) -> str | None:
    expired = [name for name, url in urls if (end := expiry_of(url)) is not None and end <= now]
    return f"the URL of {expired[0]} has expired" if expired else None


def _urls_of(job: Job) -> Iterator[tuple[str, str]]:
    for table in used_tables(job):
        for source in (table.data, table.manifest):
            if isinstance(source, UrlSource):
                yield f"table {table.alias!r}", source.url
    yield from _urls_of_delivery(job)


def _urls_of_delivery(job: Job) -> Iterator[tuple[str, str]]:
    if isinstance(job.delivery, UrlDelivery):
        yield "the output", job.delivery.output_url
        others = ("manifest", job.delivery.manifest_url), ("log", job.delivery.events_url)
        yield from ((f"the {name}", url) for name, url in others if url is not None)
