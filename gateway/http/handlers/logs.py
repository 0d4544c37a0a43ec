"""``GET /v1/logs``: the log of a job so far."""

from __future__ import annotations

from dataclasses import replace

from gateway.core.errors import BadRequest, NotFound
from gateway.core.job import JobState
from gateway.http.access.tokens import TokenKind
from gateway.http.base_handler.elsewhere import anywhere, pass_on, peer_request
from gateway.http.base_handler.handler import BaseHandler
from gateway.http.handlers.history_pages import newest_elsewhere
from gateway.http.handlers.job_lookup import asked_in_query, require_by_text
from gateway.http.schemas.responses import LogsResponse, progress_of
from gateway.jobs.store import JobRecord

#: Responses from this size on are kept for the next poll: joining 20,000 lines takes 2 ms.
LONG_BYTES = 1 << 16


class LogsHandler(BaseHandler):
    """Sends log lines while a job runs and for a while after.

    Metabase compares `execution_id` with the id of its run including the JSON type, so it is the id of the request to
    execute, not the text in the URL.
    """

    read_kind = TokenKind.READ
    checks_query = True

    @anywhere(asked_in_query)
    async def get(self) -> None:
        # an unknown job must be 404: Metabase then keeps polling, and stops at any other status
        offset = offset_of(self)
        if self.get_query_argument("request_id", None) is None and await self._is_elsewhere(offset):
            return
        record = await self._record()
        if record.state is JobState.FINISHED:
            # The id may be that of a job whose request came first and is still being read or stored. The log of an
            # earlier job with this id would not be a prefix of the log of that one.
            await self.context.arrivals.wait()
            if self.client_disconnected:
                return
            record = await self._record()
        send_log(self, record, offset)

    head = get

    async def _is_elsewhere(self, offset: int) -> bool:
        """Send the log of the default job, for a request that names none, if another member keeps it."""
        peers = self.context.service.peers
        found = await newest_elsewhere(self, JobState.RUNNING, JobState.QUEUED, JobState.FINISHED)
        if found is None or peers is None:
            return False
        job_id, member = found
        request = peer_request(self, peers, self.token)
        await pass_on(self, member, replace(request, uri=f"/v1/jobs/{job_id}/logs?offset={offset}"))
        return True

    async def _record(self) -> JobRecord:
        text = self.get_query_argument("request_id", None, strip=False)
        if text is not None:
            return await require_by_text(self.context.service, text, self.scope)
        record = self.context.service.current(self.scope)
        if record is None:
            raise NotFound("no job is running, waiting or recently finished")
        return record


def send_log(handler: BaseHandler, record: JobRecord, offset: int) -> None:
    """Respond with the lines of a job from a number on."""
    tag = f'"{record.execution_id}.{record.state}.{record.log.version}.{offset}"'
    handler.set_header("Etag", tag)
    if handler.check_etag_header():
        handler.set_status(304)
        handler.finish()
        return
    known_tag, body = handler.context.long_log
    if known_tag != tag:
        body = _render(handler, record, offset)
        if len(body) >= LONG_BYTES:
            handler.context.long_log = tag, body
    handler.finish(body)


def _render(handler: BaseHandler, record: JobRecord, offset: int) -> bytes:
    lines, next_offset = record.log.json_lines(offset)
    response = LogsResponse(
        execution_id=record.request_id,
        job_id=record.execution_id,
        state=record.state,
        stage=record.log.stage,
        events=[],
        next_offset=next_offset,
        progress=progress_of(record.log),
    )
    # the lines are JSON already: encoding 20,000 of them at each poll took 40 ms
    members = response.body()
    del members["events"]
    opening = handler._encode(members).removesuffix(b"}\n")
    return b"".join((opening, b', "events": [', b",".join(lines), b"]}\n"))


def offset_of(handler: BaseHandler) -> int:
    """Return the query parameter ``offset``, 0 by default.

    Raises
    ------
    BadRequest
        It is not a whole number.
    """
    text = handler.get_query_argument("offset", "0")
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise BadRequest("offset: expected a whole number of lines, 0 or more", field="offset")
    return int(text)
