"""``GET /v1/status`` and ``GET /status``: the state of the gateway or of a job."""

from __future__ import annotations

from typing import Any

from gateway.core.job import ALL_JOBS, JobState
from gateway.core.version import VERSION
from gateway.http.access.tokens import TokenKind
from gateway.http.base_handler.elsewhere import anywhere
from gateway.http.base_handler.handler import BaseHandler
from gateway.http.handlers.job_lookup import asked_in_query, require_by_text
from gateway.http.schemas.gateway_state import StatusMetrics, StatusResponse
from gateway.http.schemas.responses import (
    JobStatusResponse,
    iso_utc,
    job_response,
    kept_links,
    progress_of,
)
from gateway.jobs.store import JobRecord

#: Members of a result that may contain paths or a user's data: an exception's message quotes values, and a digest tells
#: which of a few guesses is the output.
SECRET_MEMBERS = ("error", "sha256", "held", "not_held")


class StatusHandler(BaseHandler):
    """Sends the state of the gateway to everyone, that of a job to those with the token."""

    is_open = True
    checks_query = True

    @anywhere(asked_in_query)
    async def get(self) -> None:
        """Respond with 200 when jobs are accepted, else with 503 and the same body."""
        text = self.get_query_argument("request_id", None, strip=False)
        if text is None:
            answer = self._gateway()
            self.respond(answer.body(), 200 if answer.healthy else 503)
            return
        scope = self.context.guard.check(self.request, TokenKind.READ).scope
        self.respond(self._job(await require_by_text(self.context.service, text, scope)).body())

    head = get

    def _gateway(self) -> StatusResponse:
        service, guard = self.context.service, self.context.guard
        status = service.status()
        counters = status.counters
        token = guard.find(self.request)
        # without a token the caller may be any of those that share this gateway
        is_shown = token is not None or not guard.has_names
        scope = token.scope if token is not None else ALL_JOBS
        current, running = service.current(scope), service.running(scope)
        return StatusResponse(
            healthy=status.healthy,
            draining=status.draining,
            paused=status.paused,
            version=VERSION,
            state=current.state.value if current is not None else "idle",
            result=self._public_result(current, has_token=token is not None) if is_shown else None,
            queue_size=status.queue_size,
            max_queue_size=status.max_queue_size,
            slots=status.slots,
            busy_slots=status.busy_slots,
            currently_executing=bool(running),
            current_execution_id=running[-1].request_id if running and is_shown else None,
            metrics=StatusMetrics(
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
            ready_kernels=status.details.get("ready_kernels", {}),
            kernels=status.details.get("kernels", {}),
            sandbox=status.details.get("sandbox", {}),
            launcher=status.details.get("launcher", {}),
            fork_server=status.details.get("fork_server", {}),
            outbox=status.details.get("outbox", {}),
            disk=status.details.get("disk", {}),
            **({"cluster": status.details["cluster"]} if "cluster" in status.details else {}),
            internal_s3=status.internal_s3,
            limits=status.limits,
        )

    def _public_result(self, record: JobRecord | None, *, has_token: bool) -> dict[str, Any] | None:
        result = self._result(record) if record is not None else None
        if result is None or has_token:
            return result
        return {name: value for name, value in result.items() if name not in SECRET_MEMBERS}

    def _result(self, record: JobRecord) -> dict[str, Any] | None:
        if record.state is not JobState.FINISHED or record.verdict is None:
            return None
        answer = job_response(record, record.verdict)
        kept = self.context.service.kept_result(record)
        if kept is not None:
            links = kept_links(record.request_id, with_output="output" in kept.part_bytes)
            answer = answer.model_copy(update={"results": links})
        return answer.body()

    def _job(self, record: JobRecord) -> JobStatusResponse:
        return JobStatusResponse(
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
