"""``/v1/jobs``: the jobs that run and wait, and those that are finished, by the gateway's own id."""

from __future__ import annotations

from typing import cast, get_args

from gateway.core.errors import BadRequest
from gateway.core.job import ResultPart
from gateway.http.access.peer_connection import PeerConnection, for_peers
from gateway.http.access.tokens import TokenKind
from gateway.http.base_handler.elsewhere import anywhere
from gateway.http.base_handler.handler import BaseHandler
from gateway.http.bodies.receivers import BodyReceiver
from gateway.http.handlers.history_pages import merged_page, own_page
from gateway.http.handlers.job_lookup import named_in_path, request_ids_of
from gateway.http.handlers.logs import offset_of, send_log
from gateway.http.handlers.results import KeptFileHandler
from gateway.http.schemas.history import (
    DeletedResponse,
    detail_of,
    displays_of,
    history_query,
)
from gateway.http.schemas.requests import HoldRequest
from gateway.http.schemas.responses import CancelResponse, KeptLinks, job_response
from gateway.http.schemas.validation import validate
from gateway.jobs.store import JobRecord


class HistoryHandler(BaseHandler):
    """Lists jobs."""

    read_kind = TokenKind.READ

    @for_peers
    async def get(self) -> None:
        given = {name: self.get_query_arguments(name, strip=False) for name in self.request.query_arguments}
        twice = next((name for name, values in given.items() if len(values) > 1), None)
        if twice is not None:
            raise BadRequest(f"{twice[:60]}: expected once", field=twice[:60])
        first = {name: values[0] for name, values in given.items()}
        query = history_query(first, request_ids_of, self.scope)
        peers = self.context.service.peers
        if isinstance(self.request.connection, PeerConnection):
            answer = await own_page(self, query, with_places=True)
        elif peers is not None:
            answer = await merged_page(self, peers, first, query)
        else:
            answer = await own_page(self, query)
        self.respond(answer)

    head = get


class HistoryJobHandler(BaseHandler):
    """Sends one job, or removes it from the history."""

    read_kind = TokenKind.READ
    checks_query = True

    @anywhere(named_in_path)
    async def get(self, job_id: str) -> None:
        record = await self.context.service.get(job_id, self.scope)
        service = self.context.service
        detail = detail_of(
            record,
            service.peers.name if service.peers is not None else None,
            self._result(record),
            service.has_bundle(record) and self.token.kind > TokenKind.READ,
        )
        self.respond(detail.body())

    head = get

    @anywhere(named_in_path)
    async def delete(self, job_id: str) -> None:
        """Remove the job with its log, its kept result and its bundle; 409 while it is not finished."""
        await self.context.service.forget(job_id, self.scope)
        self.respond(DeletedResponse(deleted=job_id).body())

    def _result(self, record: JobRecord) -> dict[str, object] | None:
        if record.verdict is None:
            return None
        answer = job_response(record, record.verdict)
        kept = self.context.service.kept_result(record)
        if kept is not None:
            base = f"/v1/jobs/{record.execution_id}/result"
            links = KeptLinks(events=f"{base}?what=events")
            if "output" in kept.part_bytes:
                links = KeptLinks(output=base, manifest=f"{base}?what=manifest", events=f"{base}?what=events")
            answer = answer.model_copy(update={"results": links})
        return answer.body()


class HistoryCancelHandler(BaseHandler):
    """Cancels one job; two names may each have a job with one request_id."""

    checks_query = True

    @anywhere(named_in_path)
    async def post(self, job_id: str) -> None:
        record = await self.context.service.get(job_id, self.scope)
        await self.context.service.end(record)
        self.respond(CancelResponse.of(record).body())


class HistoryHoldHandler(BaseHandler):
    """Ends one running job as cancelled and holds its kernel, in which its variables can be inspected."""

    checks_query = True

    def body_receiver(self) -> BodyReceiver:
        return self.json_body()

    @anywhere(named_in_path)
    async def post(self, job_id: str) -> None:
        """Respond at once; the job's result says how to attach, or why the kernel could not be held."""
        self.check_body()
        request = validate(HoldRequest, self.json_value(), self.context.settings)
        record = await self.context.service.get(job_id, self.scope)
        await self.context.service.end(record, 60.0 * request.minutes)
        self.respond(CancelResponse.of(record, "Cancellation and hold").body())


class HistoryLogsHandler(BaseHandler):
    """Sends the log of one job."""

    read_kind = TokenKind.READ
    checks_query = True

    @anywhere(named_in_path)
    async def get(self, job_id: str) -> None:
        offset = offset_of(self)
        send_log(self, await self.context.service.get(job_id, self.scope), offset)

    head = get


class HistoryDisplaysHandler(BaseHandler):
    """Sends the displays of one job."""

    checks_query = True

    @anywhere(named_in_path)
    async def get(self, job_id: str) -> None:
        record = await self.context.service.get(job_id, self.scope)
        self.respond(displays_of(record.log.displays).body())

    head = get


class HistoryResultHandler(KeptFileHandler):
    """Sends the kept result of one job."""

    checks_query = True

    @anywhere(named_in_path)
    async def get(self, job_id: str) -> None:
        what = self.get_query_argument("what", "output")
        if what not in get_args(ResultPart):
            raise BadRequest(f"what: expected output, manifest or events, not {what[:60]!r}", field="what")
        record = await self.context.service.get(job_id, self.scope)
        await self.send_kept(record, cast(ResultPart, what), job_id)

    head = get
