"""What callers get, as pydantic models, and how the gateway's own values become them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field

from gateway.errors import FAILURES
from gateway.jobs.events import EventLog, Progress
from gateway.jobs.model import HeldKernel, JobState, RequestId, Verdict
from gateway.jobs.store import JobRecord


class AnswerModel(BaseModel):
    """Something that is sent; nothing stands in an answer that its model does not name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def body(self) -> dict[str, Any]:
        """Return the JSON object; what is unset is left out."""
        return self.model_dump(mode="json", exclude_unset=True)


class ErrorAnswer(AnswerModel):
    """Why a request was refused. Nothing ran."""

    model_config = ConfigDict(extra="allow", frozen=True)

    error: str = Field(description="What is wrong, where, and what to do.")
    code: str = Field(description="Stable; switch on this.")
    retryable: bool
    request_id: int | str | None = None
    field: str | None = Field(None, description="The field to mend (400).")
    queue_size: int | None = Field(None, description="Jobs that wait (503).")


class KeptLinks(AnswerModel):
    """Where a kept result can be fetched; `output` and `manifest` after success only."""

    output: str | None = None
    manifest: str | None = None
    events: str


class HeldAnswer(AnswerModel):
    """A kernel that is kept for a person."""

    id: str
    attach: str = Field(
        description="Attaches a console, on the gateway's machine, for who may read its state directory."
    )
    connection_file: str
    request_id: int | str | None = Field(description="Of the job that failed in it; null for a console.")
    code: str | None = Field(description="Why that job failed.")
    held_at: str
    expires_at: str = Field(description="When it is ended, whoever is attached.")


class HeldListAnswer(AnswerModel):
    """What is held now, oldest first."""

    held: list[HeldAnswer]
    limit: int = Field(description="How many may be held at once.")


class ReleasedAnswer(AnswerModel):
    """Nothing is left of the kernel."""

    released: str


class JobAnswer(AnswerModel):
    """How a job ended. 200 with `exit_code` 0 is success; everything else is a failure."""

    request_id: int | str
    execution_id: str = Field(description="The gateway's own id of this execution.")
    exit_code: int
    timeout: bool
    cancelled: bool
    code: str = Field(description='"ok", or why the job failed; stable.')
    error: str | None = Field(None, description="The cause in a sentence, on failure.")
    retryable: bool = Field(description="Whether the same request may succeed when sent again.")
    execution_time: float = Field(description="Seconds from the slot to the end.")
    stages: dict[str, float] = Field(description="Seconds by stage.")
    rows: int | None = None
    fields: int | None = None
    bytes_in: int
    bytes_out: int | None = None
    data_format: str | None = None
    sha256: str | None = None
    peak_memory_bytes: int | None = None
    results: KeptLinks | None = Field(None, description="Set when the gateway keeps the result.")
    output: str | None = Field(None, description="The data, with `inline`; absent when it is too large for that.")
    output_encoding: Literal["utf-8", "base64"] | None = None
    manifest: dict[str, Any] | None = Field(None, description="The manifest, with `inline`.")
    held: HeldAnswer | None = Field(None, description="Set when the kernel of the failed job is kept for inspection.")
    not_held: str | None = Field(None, description="Why it is not, though that was asked for.")


class AcceptedAnswer(AnswerModel):
    """The job was accepted and goes on without the caller (asynchronous form)."""

    request_id: int | str
    execution_id: str
    state: JobState


class FirstAnswer(AnswerModel):
    """How a job ended, in the form of the first public runner."""

    request_id: int | str
    exit_code: int
    execution_time: float
    timeout: bool
    cancelled: bool
    code: str
    error: str | None = None
    stdout_file: str | None = None
    stderr_file: str | None = None
    output_file: str | None = None
    held: HeldAnswer | None = None
    not_held: str | None = None


class LogEvent(AnswerModel):
    """One line of output."""

    timestamp: str = Field(description="ISO 8601, UTC.")
    stream: Literal["stdout", "stderr"]
    message: str


class StageProgress(AnswerModel):
    """How far a stage has come."""

    stage: str
    table: str | None = None
    rows: int | None = None
    bytes: int | None = None


class LogsAnswer(AnswerModel):
    """What a job has said so far; a prefix of what it will have said."""

    execution_id: int | str = Field(description="The request_id, with the JSON type it was sent with.")
    state: JobState
    stage: str
    events: list[LogEvent]
    next_offset: int = Field(description="Send it as `offset` to get only what is new.")
    progress: list[StageProgress]


class FirstLogsAnswer(AnswerModel):
    """What the running job has said so far, in the form of the first public runner."""

    execution_id: int | str | None
    status: Literal["executing", "no_execution"]
    stdout: str
    stderr: str


class CancelAnswer(AnswerModel):
    """The job was told to end."""

    message: str
    request_id: int | str
    execution_id: str


class FirstMetrics(AnswerModel):
    """The counters of the first public runner, and some more."""

    total_requests: int
    completed: int
    succeeded: int
    failed: int
    success_rate: float = Field(description="Share of completed jobs that succeeded, 0 to 1.")
    timeouts: int
    cancelled: int
    rejected: int
    avg_execution_time: float
    failures_by_code: dict[str, int]


class StatusAnswer(AnswerModel):
    """How the gateway is. Gives nothing secret and needs no token."""

    healthy: bool
    draining: bool
    version: str
    state: Literal["idle", "queued", "running", "finished"] = Field(description="Of the current, else the last job.")
    result: dict[str, Any] | None = Field(
        description="How the last job ended, once `state` is finished; its text only for callers who may see it."
    )
    queue_size: int
    max_queue_size: int
    slots: int
    busy_slots: int
    currently_executing: bool
    current_execution_id: int | str | None
    metrics: FirstMetrics
    ready_kernels: dict[str, Any]
    kernels: dict[str, Any]
    sandbox: dict[str, Any]
    fork_server: dict[str, Any]
    internal_s3: dict[str, Any] | None
    limits: dict[str, Any]


class JobStatusAnswer(AnswerModel):
    """Where one job stands."""

    request_id: int | str
    execution_id: str
    state: JobState
    stage: str
    created_at: str
    started_at: str | None = None
    finished_at: str | None = None
    progress: list[StageProgress]
    result: dict[str, Any] | None = Field(None, description="As the answer of execute, once finished.")


class RootAnswer(AnswerModel):
    """Where everything is."""

    name: str
    version: str
    links: dict[str, str]


def iso_utc(seconds: float) -> str:
    """Return a time since the epoch as ISO 8601 in UTC, with milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def job_answer(record: JobRecord, verdict: Verdict) -> JobAnswer:
    """Return the answer to execute, without what must be read from disk."""
    output = verdict.output
    members: dict[str, Any] = {
        "request_id": record.request_id,
        "execution_id": record.execution_id,
        "exit_code": verdict.exit_code,
        "timeout": verdict.timed_out,
        "cancelled": verdict.cancelled,
        "code": verdict.code or "ok",
        "retryable": verdict.code is not None and FAILURES[verdict.code].retryable,
        "execution_time": round(verdict.execution_seconds, 4),
        "stages": {stage: round(seconds, 4) for stage, seconds in verdict.stages_seconds.items()},
        "bytes_in": verdict.bytes_in,
        "peak_memory_bytes": verdict.peak_memory_bytes,
    }
    if not verdict.ok:
        members["error"] = error_text(verdict)
    members |= holding_members(verdict)
    if output is not None:
        members |= {"rows": output.rows, "fields": output.fields, "bytes_out": output.output_bytes}
        members |= {"data_format": output.data_format, "sha256": output.sha256}
    return JobAnswer(**members)


def holding_members(verdict: Verdict) -> dict[str, Any]:
    """Return the members of an answer that tell of a kept kernel, or why there is none though it was asked for."""
    if verdict.held is not None:
        return {"held": held_answer(verdict.held)}
    return {"not_held": verdict.not_held} if verdict.not_held else {}


def held_answer(held: HeldKernel) -> HeldAnswer:
    """Return how a held kernel is shown."""
    return HeldAnswer(
        id=held.id,
        attach=held.attach,
        connection_file=held.connection_file,
        request_id=held.request_id,
        code=held.code,
        held_at=iso_utc(held.held_at),
        expires_at=iso_utc(held.expires_at),
    )


def error_text(verdict: Verdict) -> str:
    """Return the sentence for a failure; Metabase looks for the word "timeout" in that of a time-out."""
    text = verdict.message or (FAILURES[verdict.code].meaning if verdict.code else "")
    return text if not verdict.timed_out or "timeout" in text.lower() else f"{text} (timeout)"


def kept_links(request_id: RequestId, *, with_output: bool) -> KeptLinks:
    """Return the paths under which a kept result stands."""
    base = f"/v1/results/{quote(str(request_id), safe='')}"
    if not with_output:
        return KeptLinks(events=f"{base}/events")
    return KeptLinks(output=f"{base}/output", manifest=f"{base}/manifest", events=f"{base}/events")


def progress_of(log: EventLog) -> list[StageProgress]:
    """Return how far each stage has come."""
    return [_stage_progress(p) for p in log.progress.values()]


def _stage_progress(progress: Progress) -> StageProgress:
    return StageProgress(stage=progress.stage, table=progress.table, rows=progress.rows, bytes=progress.bytes)
