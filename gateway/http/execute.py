"""``POST /v1/execute``: takes a job, and answers when it is over."""

from __future__ import annotations

import asyncio
from typing import Any

from gateway.errors import GatewayError, NotFound
from gateway.http.answers import AcceptedAnswer, JobAnswer, job_answer, kept_links
from gateway.http.base import BaseHandler
from gateway.http.build import Received, execute_job
from gateway.http.intake import Intake, JsonBody
from gateway.http.models import ExecuteRequest
from gateway.http.multipart import boundary_of
from gateway.http.results import read_inline
from gateway.http.uploads import MultipartBody
from gateway.http.validation import validate
from gateway.jobs.model import Job, KeptDelivery, Verdict
from gateway.jobs.store import JobRecord

UPLOAD_SECONDS = 3600.0


class JobHandler(BaseHandler):
    """What both forms of execute share: submitting, waiting, and cancelling when the caller hangs up."""

    record: JobRecord | None = None
    is_taken = False

    def submit(self, job: Job) -> JobRecord:
        """Hand the job to the service; a refusal carries the id it is about.

        Raises
        ------
        Conflict, QueueFull, ShuttingDown
        """
        try:
            record = self.context.service.submit(job)
        except GatewayError as refusal:
            refusal.details.setdefault("request_id", job.request_id)
            raise
        record.call_id = self.call_id
        self.is_taken = True
        self.context.metrics.job_taken()
        if isinstance(self.intake, MultipartBody):
            self.intake.hand_on()
        return record

    async def outcome(self, record: JobRecord) -> Verdict:
        """Wait for the end; when the caller hangs up first, nobody wants the result, and the slot is freed."""
        if self.gone:
            self._cancel(record)
        self.record = record
        try:
            return await record.wait()
        finally:
            self.record = None

    def on_connection_close(self) -> None:
        """End the job that nobody waits for any more."""
        super().on_connection_close()
        if self.record is not None:
            self._cancel(self.record)

    def _set_error(self, refusal: GatewayError) -> None:
        """Count the refusal too: whatever refuses a request, headers, body or service, comes through here once."""
        super()._set_error(refusal)
        if self.request.method == "POST" and not self.is_taken:
            self.context.metrics.job_refused(refusal.code)

    def _cancel(self, record: JobRecord) -> None:
        try:
            self.context.service.cancel(record.request_id)
        except NotFound:
            return  # it ended by itself at this very moment


class ExecuteHandler(JobHandler):
    """Runs one job in the form that Metabase sends."""

    def open_intake(self) -> Intake:
        """Take JSON, or a multipart request that brings tables along."""
        content_type = self.request.headers.get("Content-Type", "")
        if content_type.partition(";")[0].strip().lower() != "multipart/form-data":
            return self.json_intake()
        self.request.connection.set_body_timeout(UPLOAD_SECONDS)  # type: ignore[union-attr]
        return MultipartBody(boundary_of(content_type), self.context.settings)

    async def post(self) -> None:
        """Answer 200 for success, the failure's status otherwise; 202 at once in the asynchronous form or if asked."""
        self.check_intake()
        job = await self.off_loop(self._job)
        self.intake_done()
        if self.gone:
            return  # hung up while its body was parsed: files that came along are gone already
        record = self.submit(job)
        if self.context.settings.asynchronous or self._prefers_no_wait():
            accepted = AcceptedAnswer(
                request_id=record.request_id, execution_id=record.execution_id, state=record.state
            )
            self.answer(accepted.body(), 202)
            return
        verdict = await self.outcome(record)
        answer = job_answer(record, verdict)
        if isinstance(job.delivery, KeptDelivery):
            answer = await self._with_result(answer, verdict, record, inline=job.delivery.inline)
        self.answer(answer.body(), verdict.status)

    def _prefers_no_wait(self) -> bool:
        """Return whether the caller asked for an answer at once (``Prefer: respond-async``, RFC 7240, section 4.1)."""
        preferences = ",".join(self.request.headers.get_list("Prefer")).split(",")
        return any(text.partition(";")[0].strip().lower() == "respond-async" for text in preferences)

    def intake_done(self) -> None:
        """Let go of a JSON body: the job may run for hours."""
        if isinstance(self.intake, JsonBody):
            self.intake.close()

    def _job(self) -> Job:
        intake = self.intake
        received = Received()
        if isinstance(intake, MultipartBody):
            value, received = intake.value(), intake.received()
        elif isinstance(intake, JsonBody):
            value = intake.value()
        else:
            raise TypeError(intake)
        settings = self.context.settings
        return execute_job(validate(ExecuteRequest, value, settings), settings, received, self.trace_parent)

    async def _with_result(self, answer: JobAnswer, verdict: Verdict, record: JobRecord, *, inline: bool) -> JobAnswer:
        kept = self.context.service.results.get(record.execution_id)
        if kept is None:
            return answer
        links = kept_links(record.request_id, with_output=kept.output_path is not None)
        more: dict[str, Any] = {"results": links}
        if inline and verdict.output is not None:
            cap_bytes = self.context.settings.inline_cap_bytes
            more |= await asyncio.to_thread(read_inline, kept, verdict.output, cap_bytes)
        return answer.model_copy(update=more)
