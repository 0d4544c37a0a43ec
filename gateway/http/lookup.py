"""Finding the job that a text in a URL means: ids keep their JSON type, but a URL has only text."""

from __future__ import annotations

import re

from gateway.errors import NotFound
from gateway.jobs.model import JobState
from gateway.jobs.service import JobService
from gateway.jobs.store import JobRecord

_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")


def find_by_text(service: JobService, text: str) -> JobRecord | None:
    """Return the job with this id, whichever type it was sent with.

    ``7`` may mean 7 or "7": a job that is not over goes first, then the number, which is what Metabase sends.
    """
    records = []
    if _INTEGER.fullmatch(text):
        records.append(service.find(int(text)))
    records.append(service.find(text))
    known = [record for record in records if record is not None]
    live = [record for record in known if record.state is not JobState.FINISHED]
    return next(iter(live + known), None)


def require_by_text(service: JobService, text: str) -> JobRecord:
    """Return the job with this id.

    Raises
    ------
    NotFound
    """
    record = find_by_text(service, text)
    if record is None:
        raise NotFound(f"nothing is known about a job with request_id {text[:200]!r}")
    return record
