"""Merge one page of the history of each member of a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from gateway.core.errors import MemberDown
from gateway.core.job import JobState
from gateway.http.access.peer_connection import PeerConnection
from gateway.http.base_handler.elsewhere import peer_request
from gateway.http.base_handler.handler import BaseHandler
from gateway.http.schemas.history import JobsResponse, summary_of
from gateway.http.streams.other_members import read_answer
from gateway.jobs.peers import Peers
from gateway.jobs.store import HistoryQuery
from gateway.jobs.store.history import SortKey, decode_cursor, encode_cursor, refused_cursor, sorted_value


@dataclass(frozen=True, slots=True)
class _Job:
    """A job on a member's page, and where this member's next page would begin after it."""

    summary: dict[str, Any]
    member: str
    cursor: str


async def own_page(handler: BaseHandler, query: HistoryQuery, *, with_places: bool = False) -> dict[str, Any]:
    """Return the page of this gateway as it is sent; for a merged page, with the place of each job."""
    service = handler.context.service
    page = await service.history(query)
    logs = {record.execution_id: record.log for record in service.running() + service.queued()}
    member = service.peers.name if service.peers is not None else None
    jobs = [summary_of(entry, logs.get(entry.job_id), member) for entry in page.entries]
    answer: dict[str, Any] = JobsResponse(jobs=jobs, cursor=page.cursor).body()
    return {**answer, "cursors": page.cursors} if with_places else answer


async def merged_page(
    handler: BaseHandler, peers: Peers, given: Mapping[str, str], query: HistoryQuery
) -> dict[str, Any]:
    """Return the page of all members as it is sent; it names those that did not answer."""
    places = _decode(given.get("cursor"), peers.name)
    others, silent = peers.others(), peers.silent()

    async def page_of(member: str) -> dict[str, Any]:
        if member == peers.name:
            return await own_page(handler, replace(query, cursor=places.get(member)), with_places=True)
        asked = {name: text for name, text in given.items() if name != "cursor"}
        if member in places:
            asked["cursor"] = places[member]
        return await _ask(handler, peers, member, asked)

    names = sorted([peers.name, *others])
    pages = await asyncio.gather(*map(page_of, names), return_exceptions=True)
    jobs: list[_Job] = []
    more = False
    for name, page in zip(names, pages, strict=True):
        if isinstance(page, MemberDown):
            silent.append(name)
            continue
        if isinstance(page, BaseException):
            raise page
        more |= page["cursor"] is not None
        jobs += [_Job(job, name, cursor) for job, cursor in zip(page["jobs"], page["cursors"], strict=True)]
    jobs.sort(key=lambda job: sorted_value(job.cursor), reverse=query.descending)
    for job in jobs[: query.limit]:
        places[job.member] = job.cursor
    more |= len(jobs) > query.limit
    answer = JobsResponse(jobs=[], cursor=encode_cursor(places) if more else None).body()
    answer["jobs"] = [job.summary for job in jobs[: query.limit]]
    return {**answer, "missing_members": sorted(silent)}


async def newest_elsewhere(handler: BaseHandler, *states: JobState) -> tuple[str, str] | None:
    """Return the id and the member of the newest job in the first of some states in which any member has one.

    Returns
    -------
    job_id, member : str
        None if this member keeps it, or there is none, or another member asks.
    """
    peers = handler.context.service.peers
    if peers is None or isinstance(handler.request.connection, PeerConnection):
        return None
    for state in states:
        sort: SortKey = "finished_at" if state is JobState.FINISHED else "created_at"
        query = HistoryQuery(state=state, sort=sort, limit=1, scope=handler.scope)
        page = await merged_page(handler, peers, {"state": state, "sort": f"-{sort}", "limit": "1"}, query)
        for job in page["jobs"]:
            return None if job["member"] == peers.name else (job["job_id"], job["member"])
    return None


async def _ask(handler: BaseHandler, peers: Peers, member: str, asked: Mapping[str, str]) -> dict[str, Any]:
    # a HEAD would get no page to merge
    request = replace(peer_request(handler, peers, handler.token), method="GET", uri=f"/v1/jobs?{urlencode(asked)}")
    status, answer = await read_answer(peers.ask(member, request), member)
    if status != 200 or not {"jobs", "cursor", "cursors"} <= answer.keys():
        raise MemberDown(f"the member {member} did not list its jobs (status {status})")
    return answer


def _decode(cursor: str | None, own: str) -> dict[str, str]:
    """Return the place in each member's history; a cursor of one member alone is this one's."""
    if cursor is None:
        return {}
    places = decode_cursor(cursor)
    if isinstance(places, list):
        return {own: cursor}
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise refused_cursor()
    return places
