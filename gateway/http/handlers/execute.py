"""``POST /v1/execute``: runs a job and responds when it is finished."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import re
from dataclasses import replace
from typing import Any

from msgspec import structs

from gateway.core.errors import BadRequest, Conflict, GatewayError, KeyReused, MemberDown, NotFound
from gateway.core.job import Delivery, Job, KeptDelivery, Verdict
from gateway.core.uploads import Uploads
from gateway.core.wire import encode_job
from gateway.http.access.peer_connection import PeerConnection, for_peers
from gateway.http.base_handler.context import Context
from gateway.http.base_handler.elsewhere import pass_on, peer_request
from gateway.http.base_handler.handler import BaseHandler
from gateway.http.bodies.multipart import boundary_of
from gateway.http.bodies.receivers import BodyReceiver, JsonBody
from gateway.http.bodies.uploads import MultipartBody
from gateway.http.handlers.results import read_inline
from gateway.http.schemas.fields import check_url
from gateway.http.schemas.ignored_members import IgnoredMembers, ignored_members
from gateway.http.schemas.requests import ExecuteRequest
from gateway.http.schemas.responses import AcceptedResponse, JobResponse, job_response, kept_links
from gateway.http.schemas.to_job import Received, execute_job
from gateway.http.schemas.validation import validate
from gateway.jobs.store import IdempotencyKey, JobRecord

UPLOAD_SECONDS = 3600.0

log = logging.getLogger(__name__)


class JobHandler(BaseHandler):
    """Base of both execute routes: submits the job, waits for it, and cancels it when the client disconnects."""

    record: JobRecord | None = None
    is_taken = False

    def prepare(self) -> None:
        super().prepare()
        if not self._finished:
            self.context.arrivals.begin(self)

    async def submit(self, job: Job, *, is_awaited: bool = True, key: IdempotencyKey | None = None) -> JobRecord:
        """Submit the job to the service; a refusal has the job's request_id.

        Raises
        ------
        Conflict, QueueFull, ShuttingDown, StoreFailed
        """
        uploads: Uploads | None = None
        if isinstance(self.body, MultipartBody) and self.body.received().tables:
            uploads = self.body.uploads()
            self.body.transfer_ownership()  # before the wait: a client that disconnects in it frees the body
        try:
            record = await self.context.service.submit(
                job,
                uploads,
                is_awaited=is_awaited,
                key=key,
                call_id=self.call_id,
                token_name=self.scope.token_name,
            )
        except GatewayError as refusal:
            if uploads is not None:
                await asyncio.to_thread(uploads.remove)
            refusal.details.setdefault("request_id", job.request_id)
            raise
        self.context.arrivals.end(self)
        self.is_taken = True
        self.context.metrics.job_taken()
        return record

    async def outcome(self, record: JobRecord) -> Verdict:
        """Return the verdict of the finished job; if the client disconnects first, the job is cancelled."""
        if self.client_disconnected:
            self._cancel(record)
        self.record = record
        try:
            return await record.wait()
        finally:
            self.record = None

    def on_connection_close(self) -> None:
        super().on_connection_close()
        if self.record is not None:
            self._cancel(self.record)

    def _close_body(self) -> None:
        super()._close_body()
        self.context.arrivals.end(self)

    def _set_error(self, refusal: GatewayError) -> None:
        # each refusal, by headers, body or service, comes through here once
        super()._set_error(refusal)
        if self.request.method == "POST" and not self.is_taken:
            self.context.metrics.job_refused(refusal.code)

    def _cancel(self, record: JobRecord) -> None:
        try:
            record.cancel()
        except NotFound:
            return  # it finished at this moment


class ExecuteHandler(JobHandler):
    """Runs one job of Metabase or another client."""

    #: As sent, before validation; None until the body is parsed.
    _events_url: object = None
    _ignored = IgnoredMembers()

    def body_receiver(self) -> BodyReceiver:
        content_type = self.request.headers.get("Content-Type", "")
        if content_type.partition(";")[0].strip().lower() != "multipart/form-data":
            return self.json_body(is_small=False)
        length = self.request.headers.get("Content-Length", "0")
        self.context.service.check_disk(int(length) if length.isdecimal() else 0)
        self.request.connection.set_body_timeout(UPLOAD_SECONDS)  # type: ignore[union-attr]
        return MultipartBody(boundary_of(content_type), self.context.settings)

    async def post(self) -> None:
        """Respond with 200 for success, else the failure's status; with 202 at once if ASYNCHRONOUS or asked to."""
        self.check_body()
        is_awaited = not (self.context.settings.asynchronous or self._prefers_no_wait())
        try:
            job = await self.run_in_thread_if_large(self._job)
            self.release_body()
            key = await self._idempotency_key(job)
            if self.client_disconnected:
                return  # the client disconnected while its body was read, and its files are removed already
            if key is not None and await self._is_recorded(key, job.delivery):
                return
            record = await self.submit(job, is_awaited=is_awaited, key=key)
            self._tell_ignored(record)
        except GatewayError as refusal:
            await self._write_refusal(refusal)
            raise
        if not is_awaited:
            accepted = AcceptedResponse(
                request_id=record.request_id, execution_id=record.execution_id, state=record.state
            )
            self.respond(accepted.body(), 202)
            return
        verdict = await self.outcome(record)
        answer = await _response(self.context, record, verdict, is_inline=_is_inline(job.delivery))
        self.respond(answer.body(), verdict.status)

    def _tell_ignored(self, record: JobRecord) -> None:
        for text in self._ignored.warnings:
            record.log.line("stderr", text)
        if self._ignored.unknown:
            names = ", ".join(self._ignored.unknown)
            log.info("job %s: unknown members of the request were ignored: %s", record.execution_id, names)

    async def _is_recorded(self, key: IdempotencyKey, delivery: Delivery) -> bool:
        """Respond with the recorded outcome of the job that came with the same Idempotency-Key, if there is one."""
        service, peers = self.context.service, self.context.service.peers
        is_inline = _is_inline(delivery)
        earlier = await service.find_by_key(key)
        if earlier is None and peers is not None and (entry := await peers.entry_of_key(key.key)) is not None:
            if entry.owner == peers.name:
                earlier = await service.find_by_key(key)  # the job was stored meanwhile, or is deleted
            else:
                uri = f"/v1/outcomes/{key.key.hex()}/{key.body.hex()}?inline={is_inline:d}"
                request = replace(peer_request(self, peers, self.token), method="GET", uri=uri)
                if await pass_on(self, entry.owner, request, unless=NotFound.status):
                    return True
            if earlier is None:
                await peers.forget_key(key.key, entry)
        if earlier is not None:
            await _respond_again(self, earlier, is_inline=is_inline)
        return earlier is not None

    async def _idempotency_key(self, job: Job) -> IdempotencyKey | None:
        """Return the request's ``Idempotency-Key`` with a fingerprint of its body.

        Raises
        ------
        BadRequest
            The header is not 1 to 255 visible ASCII characters.
        """
        given = self.request.headers.get_list("Idempotency-Key")
        if not given:
            return None
        if len(given) > 1 or not re.fullmatch(r"[\x21-\x7e]{1,255}", given[0]):
            raise BadRequest("Idempotency-Key: expected 1 to 255 visible ASCII characters", field="Idempotency-Key")
        uploads = self.body.uploads() if isinstance(self.body, MultipartBody) else None
        try:
            body = await asyncio.to_thread(_fingerprint, job, uploads)
        except FileNotFoundError:  # the client has disconnected, and its files are removed
            return None
        name = self.scope.token_name
        key = given[0] if name is None else f"{name} {given[0]}"  # neither has a space in it
        return IdempotencyKey(hashlib.sha256(key.encode()).digest(), body)

    def _set_error(self, refusal: GatewayError) -> None:
        # Metabase shows the exit code of a run that failed, and "?" without one
        refusal.details.setdefault("exit_code", 1)
        super()._set_error(refusal)

    async def _write_refusal(self, refusal: GatewayError) -> None:
        """Write the reason to the request's events URL, before the response, after which Metabase reads it."""
        # another job with this id, or with this key, writes its log to that URL, or has written it
        if (
            self.context.refusals is None
            or isinstance(refusal, Conflict | KeyReused | MemberDown)
            or not isinstance(self._events_url, str)
        ):
            return
        with contextlib.suppress(ValueError):
            await self.context.refusals.write(check_url(self._events_url), refusal.message)

    def _prefers_no_wait(self) -> bool:
        """Return whether the client wants a response at once (``Prefer: respond-async``, RFC 7240, section 4.1)."""
        preferences = ",".join(self.request.headers.get_list("Prefer")).split(",")
        return any(text.partition(";")[0].strip().lower() == "respond-async" for text in preferences)

    def release_body(self) -> None:
        """Free a JSON body, because the job may run for hours."""
        if isinstance(self.body, JsonBody):
            self.body.close()

    def _job(self) -> Job:
        body = self.body
        received = Received()
        if isinstance(body, MultipartBody):
            value, received = body.value(), body.received()
        elif isinstance(body, JsonBody):
            value = body.value()
        else:
            raise TypeError(body)
        self._events_url = value.get("events_url")
        self._ignored = ignored_members(ExecuteRequest, value)
        settings = self.context.settings
        return execute_job(validate(ExecuteRequest, value, settings), settings, received, self.trace_parent)


class OutcomeHandler(BaseHandler):
    """Sends another member the recorded outcome of the job that came with an Idempotency-Key."""

    @for_peers
    async def get(self, key: str, body: str) -> None:
        """Respond as to a request with this key and this body, and with 404 if a job may run for it."""
        if not isinstance(self.request.connection, PeerConnection):
            raise NotFound("only another member of the cluster can ask for this")
        record = await self.context.service.find_by_key(IdempotencyKey(bytes.fromhex(key), bytes.fromhex(body)))
        if record is None:
            raise NotFound("no job with this Idempotency-Key is known")
        await _respond_again(self, record, is_inline=self.get_query_argument("inline") == "1")

    def _set_error(self, refusal: GatewayError) -> None:
        refusal.details.setdefault("exit_code", 1)  # as `ExecuteHandler`
        super()._set_error(refusal)


def _is_inline(delivery: Delivery) -> bool:
    return isinstance(delivery, KeptDelivery) and delivery.inline


async def _respond_again(handler: BaseHandler, record: JobRecord, *, is_inline: bool) -> None:
    """Respond with the recorded outcome of a job, for a request with the same Idempotency-Key."""
    verdict = await record.wait()
    answer = await _response(handler.context, record, verdict, is_inline=is_inline)
    handler.respond(answer.model_copy(update={"replayed": True}).body(), verdict.status)


async def _response(context: Context, record: JobRecord, verdict: Verdict, *, is_inline: bool) -> JobResponse:
    """Return the answer to a request, with its result if that stays here."""
    answer = job_response(record, verdict)
    kept = context.service.kept_result(record)
    if kept is None:
        return answer
    links = kept_links(record.request_id, with_output="output" in kept.part_bytes)
    more: dict[str, Any] = {"results": links}
    if is_inline and verdict.output is not None:
        more |= await read_inline(kept, verdict.output, context.settings.inline_cap_bytes)
    return answer.model_copy(update=more)


def _fingerprint(job: Job, uploads: Uploads | None) -> bytes:
    """Return a hash of everything that decides what the job does; blocks while it reads files."""
    same = structs.replace(job, trace_parent=None)  # a caller that tries again traces the new attempt
    try:
        digest = hashlib.sha256(encode_job(same))
    except UnicodeEncodeError:  # a lone surrogate
        digest = hashlib.sha256(repr(same).encode("utf-8", "backslashreplace"))
    for path in sorted(uploads.directory.glob("*")) if uploads is not None else ():
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.digest()
