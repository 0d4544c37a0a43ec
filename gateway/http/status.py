"""``GET /v1/status`` and ``GET /status``: how the gateway is, and where a job stands."""

from __future__ import annotations

from typing import Any

from gateway import __version__
from gateway.http.answers import (
    FirstMetrics,
    JobStatusAnswer,
    StatusAnswer,
    iso_utc,
    job_answer,
    kept_links,
    progress_of,
)
from gateway.http.base import BaseHandler
from gateway.http.lookup import require_by_text
from gateway.jobs.model import JobState
from gateway.jobs.store import JobRecord

SECRET_MEMBERS = ("error", "held", "not_held")
"""Members of a result that may quote a user's data (a script's exception names the value it fell over), and paths."""


class StatusHandler(BaseHandler):
    """Answers everybody about the gateway, and those with the token about a job."""

    is_open = True

    def get(self) -> None:
        """Answer 200 when jobs are taken, 503 with the same body when not (yet or any more)."""
        text = self.get_query_argument("request_id", None, strip=False)
        if text is None:
            answer = self._gateway()
            self.answer(answer.body(), 200 if answer.healthy else 503)
            return
        self.context.guard.check(self.request)
        self.answer(self._job(require_by_text(self.context.service, text)).body())

    head = get

    def _gateway(self) -> StatusAnswer:
        service = self.context.service
        status, counters, current = service.status(), service.status().counters, service.current()
        running = service.running()
        return StatusAnswer(
            healthy=status.healthy,
            draining=status.draining,
            version=__version__,
            state=current.state.value if current is not None else "idle",
            result=self._public_result(current),
            queue_size=status.queue_size,
            max_queue_size=status.max_queue_size,
            slots=status.slots,
            busy_slots=status.busy_slots,
            currently_executing=bool(running),
            current_execution_id=running[-1].request_id if running else None,
            metrics=FirstMetrics(
                total_requests=counters.total_requests,
                completed=counters.completed,
                succeeded=counters.succeeded,
                failed=counters.failed,
                success_rate=round(counters.succeeded / max(1, counters.completed), 4),
                timeouts=counters.timeouts,
                cancelled=counters.cancelled,
                rejected=counters.rejected,
                avg_execution_time=round(counters.total_execution_seconds / max(1, counters.completed), 4),
                failures_by_code={str(code): count for code, count in counters.failures_by_code.items()},
            ),
            ready_kernels=status.ready_kernels,
            kernels=status.kernels,
            sandbox=status.sandbox,
            fork_server=status.fork_server,
            internal_s3=status.internal_s3,
            limits=status.limits,
        )

    def _public_result(self, record: JobRecord | None) -> dict[str, Any] | None:
        result = self._result(record) if record is not None else None
        if result is None or self.context.guard.has_token(self.request):
            return result
        return {name: value for name, value in result.items() if name not in SECRET_MEMBERS}

    def _result(self, record: JobRecord) -> dict[str, Any] | None:
        if record.state is not JobState.FINISHED or record.verdict is None:
            return None
        answer = job_answer(record, record.verdict)
        kept = self.context.service.results.get(record.execution_id)
        if kept is not None:
            links = kept_links(record.request_id, with_output=kept.output_path is not None)
            answer = answer.model_copy(update={"results": links})
        return answer.body()

    def _job(self, record: JobRecord) -> JobStatusAnswer:
        return JobStatusAnswer(
            request_id=record.request_id,
            execution_id=record.execution_id,
            state=record.state,
            stage=record.log.stage,
            created_at=iso_utc(record.created_at),
            started_at=iso_utc(record.started_at) if record.started_at else None,
            finished_at=iso_utc(record.finished_at) if record.finished_at else None,
            progress=progress_of(record.log),
            result=self._result(record),
        )
