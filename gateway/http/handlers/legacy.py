"""The legacy API: the unversioned routes of the first public runner (2025), with its responses."""

from __future__ import annotations

import asyncio
from typing import Any

from gateway.core.job import DirectoryDelivery, Job, JobState, Verdict
from gateway.http.access.peer_connection import for_peers
from gateway.http.access.tokens import TokenKind
from gateway.http.base_handler.elsewhere import pass_on, peer_request
from gateway.http.base_handler.handler import BaseHandler
from gateway.http.bodies.receivers import BodyReceiver
from gateway.http.handlers.execute import JobHandler
from gateway.http.handlers.history_pages import newest_elsewhere
from gateway.http.schemas.legacy_to_job import legacy_job
from gateway.http.schemas.requests import LegacyExecuteRequest
from gateway.http.schemas.responses import LegacyJobResponse, LegacyLogsResponse, error_text, holding_members
from gateway.http.schemas.validation import validate
from gateway.jobs.store import JobRecord
from gateway.storage.outputs.log_objects import stream_object


class LegacyExecuteHandler(JobHandler):
    """Runs one job and responds when it is finished, also with ASYNCHRONOUS."""

    def body_receiver(self) -> BodyReceiver:
        return self.json_body(is_small=False)

    async def post(self) -> None:
        """Respond with 200 when `exit_code` is 0, else with the failure's status."""
        self.check_body()
        settings = self.context.settings
        request = await self.run_in_thread_if_large(lambda: validate(LegacyExecuteRequest, self.json_value(), settings))
        self.body.close()
        job = await asyncio.to_thread(legacy_job, request, settings, self.trace_parent)
        record = await self.submit(job)
        verdict = await self.outcome(record)
        self.respond(_answer(job, record, verdict).body(), verdict.status)


class LegacyLogsHandler(BaseHandler):
    """Sends the output of the newest running job; the status is always 200."""

    read_kind = TokenKind.READ

    @for_peers
    async def get(self) -> None:
        peers, found = self.context.service.peers, await newest_elsewhere(self, JobState.RUNNING)
        if peers is not None and found is not None:
            await pass_on(self, found[1], peer_request(self, peers, self.token))
            return
        running = self.context.service.running(self.scope)
        if not running:
            answer = LegacyLogsResponse(execution_id=None, status="no_execution", stdout="", stderr="")
        else:
            record = running[-1]
            answer = LegacyLogsResponse(
                execution_id=record.request_id,
                status="executing",
                stdout=(await stream_object(record.log, "stdout")).decode(),
                stderr=(await stream_object(record.log, "stderr")).decode(),
            )
        self.respond(answer.body())

    head = get


def _answer(job: Job, record: JobRecord, verdict: Verdict) -> LegacyJobResponse:
    answer = LegacyJobResponse(
        request_id=record.request_id,
        exit_code=verdict.exit_code,
        # for a timeout that runner reported the limit itself, and its callers compare
        execution_time=job.timeout_seconds if verdict.timed_out else round(verdict.execution_seconds, 4),
        timeout=verdict.timed_out,
        cancelled=verdict.cancelled,
        code=verdict.code or "ok",
        stdout_file=None,
        stderr_file=None,
        output_file=None,
    )
    more: dict[str, Any] = holding_members(verdict)
    if not verdict.ok:
        more["error"] = error_text(verdict)
    if isinstance(job.delivery, DirectoryDelivery):
        directory = job.delivery.working_dir
        more["stdout_file"], more["stderr_file"] = str(directory / "stdout.log"), str(directory / "stderr.log")
        if verdict.ok:
            more["output_file"] = str(directory / "output.csv")
    return answer.model_copy(update=more)
