"""The unversioned routes: what the first public runner spoke in 2025, answered as it did."""

from __future__ import annotations

import asyncio
from typing import Any

from gateway.http.answers import FirstAnswer, FirstLogsAnswer, error_text, holding_members
from gateway.http.base import BaseHandler
from gateway.http.execute import JobHandler
from gateway.http.first_build import first_job
from gateway.http.intake import Intake
from gateway.http.models import FirstExecuteRequest
from gateway.http.validation import validate
from gateway.jobs.model import DirectoryDelivery, Job, Verdict
from gateway.jobs.store import JobRecord
from gateway.storage.events_object import stream_object


class FirstExecuteHandler(JobHandler):
    """Runs one job and answers when it is over, also where the asynchronous form is set."""

    def open_intake(self) -> Intake:
        """Take a JSON object."""
        return self.json_intake()

    async def post(self) -> None:
        """Answer 200 when `exit_code` is 0, the failure's status otherwise."""
        self.check_intake()
        settings = self.context.settings
        request = await self.off_loop(lambda: validate(FirstExecuteRequest, self.json_value(), settings))
        self.intake.close()
        job = await asyncio.to_thread(first_job, request, settings, self.trace_parent)
        record = self.submit(job)
        verdict = await self.outcome(record)
        self.answer(_answer(job, record, verdict).body(), verdict.status)


class FirstLogsHandler(BaseHandler):
    """Sends the texts of the job that runs; always 200."""

    def get(self) -> None:
        """Answer about the newest running job."""
        running = self.context.service.running()
        if not running:
            answer = FirstLogsAnswer(execution_id=None, status="no_execution", stdout="", stderr="")
        else:
            record = running[-1]
            answer = FirstLogsAnswer(
                execution_id=record.request_id,
                status="executing",
                stdout=stream_object(record.log, "stdout").decode(),
                stderr=stream_object(record.log, "stderr").decode(),
            )
        self.answer(answer.body())

    head = get


def _answer(job: Job, record: JobRecord, verdict: Verdict) -> FirstAnswer:
    answer = FirstAnswer(
        request_id=record.request_id,
        exit_code=verdict.exit_code,
        # it reported the limit itself for a time-out, and its callers compare
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
