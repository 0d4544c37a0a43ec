"""The decision whether a job is accepted; a refused job leaves nothing behind."""

from __future__ import annotations

from gateway.core.errors import Conflict, QueueFull, StorageDown
from gateway.core.job import Job, Scope, UrlDelivery, UrlSource
from gateway.core.settings import Settings
from gateway.jobs.runner import SlotCount
from gateway.jobs.store import JobStore
from gateway.storage.embedded_s3.server import EmbeddedS3


def check_admission(job: Job, token_name: str | None, store: JobStore, slots: SlotCount, places: int) -> None:
    """Return if a job can be accepted now.

    Parameters
    ----------
    job : Job
        A validated job.
    token_name : str or None
        Name of the caller's token; each name has its own ids.
    store : JobStore
        The jobs that are known.
    slots : SlotCount
        Slots of the runner.
    places : int
        Jobs that may wait beyond those that run.

    Raises
    ------
    Conflict
        A job with this ``request_id`` is not over.
    QueueFull
        All slots and places are taken.
    """
    known = store.find_live(job.request_id, Scope(token_name, sees_all=False))
    if known is not None:
        raise Conflict(f"a job with request_id {job.request_id!r} is {known.state} now; cancel it or wait for its end")
    # counted by records and not by the queue: a burst of requests is admitted before any task has begun
    unstarted = sum(record.started_at is None for record in store.live()) + slots.wanted
    # a slot whose job is answered is free in a moment, and a caller that has the answer may count on that
    running = slots.busy - slots.ending
    if unstarted >= slots.total - running + places:
        text = f"the queue is full: {running} of {slots.total} slots busy, {places} of {places} places taken"
        raise QueueFull(text, queue_size=unstarted, max_queue_size=places)


def check_storage(job: Job, server: EmbeddedS3 | None, store: JobStore, settings: Settings) -> None:
    """Return unless a job needs storage that is known to fail.

    Parameters
    ----------
    job : Job
        A validated job. Each URL counts: the server may have more names than its settings list.
    server : EmbeddedS3 or None
        None without one; a failure of other storage is known only after a request to it.
    store : JobStore
        The jobs that are known.
    settings : Settings
        With ``max_deliveries``: jobs whose delivery may wait. Each holds its log in memory, and an open file and a
        connection. As many as run at a time may always deliver.

    Raises
    ------
    StorageDown
        The embedded server is being restarted, or that many deliveries wait.
    """
    if isinstance(job.delivery, UrlDelivery):
        waiting = sum(record.log.stage == "deliver" for record in store.live())
        if waiting >= max(settings.max_deliveries, settings.slots):
            text = f"{waiting} jobs wait for the storage to accept their results, and no more may wait (MAX_DELIVERIES)"
            raise StorageDown(text)
    if server is None or server.healthy:
        return
    has_url = any(isinstance(source, UrlSource) for table in job.tables for source in (table.data, table.manifest))
    if has_url or isinstance(job.delivery, UrlDelivery):
        raise StorageDown("the embedded S3 server does not run and is being restarted")
