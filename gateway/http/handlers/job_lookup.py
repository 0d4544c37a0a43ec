"""Find a job by an id in a URL: ids keep their JSON type, but a URL has text only."""

from __future__ import annotations

import re

from gateway.core.errors import NotFound
from gateway.core.job import JobState, RequestId, Scope
from gateway.http.base_handler.handler import BaseHandler
from gateway.jobs.service import JobService
from gateway.jobs.store import JobRecord

_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")


def request_ids_of(text: str) -> tuple[RequestId, ...]:
    """Return the ids that a text in a URL may mean: ``7`` is 7 or "7"."""
    return (int(text), text) if _INTEGER.fullmatch(text) else (text,)


def named_in_path(handler: BaseHandler, job_id: str, *more: str) -> str:
    """Return the job that a request names by the gateway's own id in its path."""
    return job_id


def asked_in_path(handler: BaseHandler, request_id: str, *more: str) -> tuple[RequestId, ...]:
    """Return the job that a request names by the caller's id in its path."""
    return request_ids_of(request_id)


def asked_in_query(handler: BaseHandler) -> tuple[RequestId, ...] | None:
    """Return the job that a request names by the caller's id in its query, if it names one."""
    text = handler.get_query_argument("request_id", None, strip=False)
    return None if text is None else request_ids_of(text)


async def find_by_text(service: JobService, text: str, scope: Scope) -> JobRecord | None:
    """Return the job with this id, of either type.

    ``7`` may mean 7 or "7": an unfinished job takes precedence, then the number, which Metabase sends.
    """
    records = [await service.find(request_id, scope) for request_id in request_ids_of(text)]
    known = [record for record in records if record is not None]
    live = [record for record in known if record.state is not JobState.FINISHED]
    return next(iter(live + known), None)


async def require_by_text(service: JobService, text: str, scope: Scope) -> JobRecord:
    """Return the job with this id, of either type.

    Raises
    ------
    NotFound
        No such job is known.
    """
    record = await find_by_text(service, text, scope)
    if record is None:
        raise NotFound(f"there is no job with request_id {text[:200]!r}, or it was forgotten")
    return record
