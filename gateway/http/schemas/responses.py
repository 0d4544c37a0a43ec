"""Responses as pydantic models, and functions that make them of the gateway's own values."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field

from gateway.core.errors import FAILURES
from gateway.core.events import EventLog
from gateway.core.job import HeldKernel, JobState, RequestId, Verdict
from gateway.jobs.store import JobRecord


class ResponseModel(BaseModel):
    """The JSON object of a response, which has no members but those of its model."""

    # a validator is built at its first use: all of them took 25 ms of each start (measured)
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    def body(self) -> dict[str, Any]:
        """Return the JSON object without the members that are not set."""
        return self.model_dump(mode="json", exclude_unset=True)


class ErrorResponse(ResponseModel):
    """The reason why a request was refused. Nothing ran."""

    model_config = ConfigDict(extra="allow", frozen=True, defer_build=True)

    error: str = Field(description="The cause, its place, and how to fix it.")
    code: str = Field(description="A stable code for programs.")
    retryable: bool
    request_id: int | str | None = None
    exit_code: int | None = Field(None, description="1 for a refused `/v1/execute`, as of a run that failed.")
    field: str | None = Field(None, description="The field to fix (400).")
    queue_size: int | None = Field(None, description="Number of waiting jobs (503).")


class KeptLinks(ResponseModel):
    """Paths of a kept result; `output` and `manifest` exist after success only."""

    output: str | None = None
    manifest: str | None = None
    events: str


class HeldResponse(ResponseModel):
    """A held kernel."""

    id: str
    attach: str = Field(
        description="Command that attaches a console; run it on the gateway's machine as a user who can read the "
        "gateway's state directory."
    )
    connection_file: str
    host: str | None = Field(
        None, description="The member of a cluster that holds the kernel: `attach` works on its machine."
    )
    request_id: int | str | None = Field(description="The job that failed in it; null for a console.")
    code: str | None = Field(description="The failure code of that job.")
    held_at: str
    expires_at: str = Field(description="The time at which it ends, also while a console is attached.")


class HeldListResponse(ResponseModel):
    """The held kernels, oldest first."""

    held: list[HeldResponse]
    limit: int = Field(description="Largest number of held kernels.")


class ReleasedResponse(ResponseModel):
    """The id of a kernel that has been released."""

    released: str


class JobResponse(ResponseModel):
    """The outcome of a job. Status 200 with `exit_code` 0 is success; everything else is a failure."""

    request_id: int | str
    execution_id: str = Field(description="The gateway's id of this execution.")
    exit_code: int
    timeout: bool
    cancelled: bool
    code: str = Field(description='"ok", or the stable failure code.')
    error: str | None = Field(None, description="The cause of a failure in a sentence.")
    retryable: bool = Field(description="Whether the same request may succeed later.")
    execution_time: float = Field(description="Seconds from the slot to the end.")
    stages: dict[str, float] = Field(description="Seconds of each stage.")
    rows: int | None = None
    fields: int | None = None
    bytes_in: int
    bytes_out: int | None = None
    data_format: str | None = None
    sha256: str | None = Field(None, description="SHA-256 of the result, unless it went to `output_url`.")
    peak_memory_bytes: int | None = None
    displays: int | None = Field(
        None,
        description="Number of images and tables that the job displayed, if any: `/v1/jobs/{job_id}/displays`.",
    )
    results: KeptLinks | None = Field(None, description="Present when the gateway keeps the result.")
    output: str | None = Field(
        None, description="The data, with `inline`; absent when it is larger than INLINE_CAP_BYTES."
    )
    output_encoding: Literal["utf-8", "base64"] | None = None
    manifest: dict[str, Any] | None = Field(None, description="The manifest, with `inline`.")
    held: HeldResponse | None = Field(None, description="Present when the kernel of the failed job is held.")
    not_held: str | None = Field(None, description="The reason why the kernel is not held although that was requested.")
    replayed: bool | None = Field(
        None, description="True when nothing ran, because the Idempotency-Key is that of a job that is finished."
    )


class AcceptedResponse(ResponseModel):
    """A job that was accepted and runs without the client waiting for it."""

    request_id: int | str
    execution_id: str
    state: JobState


class LegacyJobResponse(ResponseModel):
    """The outcome of a job (legacy API)."""

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
    held: HeldResponse | None = None
    not_held: str | None = None


class LogEvent(ResponseModel):
    """One line of output."""

    timestamp: str = Field(description="ISO 8601, UTC.")
    stream: Literal["stdout", "stderr"]
    message: str
    display: bool = Field(False, description="Whether it is the text of an image or a table that the job displayed.")


class StageProgress(ResponseModel):
    """The progress of a stage."""

    stage: str
    table: str | None = None
    rows: int | None = None
    bytes: int | None = None
    bar: int | None = Field(None, description="Of the stage `transform`: the number of a bar of the script, from 0.")
    description: str = ""
    done: int | float | None = None
    total: int | float | None = None


class LogsResponse(ResponseModel):
    """The log of a job so far."""

    execution_id: int | str = Field(description="The request_id, with the JSON type it was sent with.")
    job_id: str = Field(description="The gateway's id of this execution.")
    state: JobState
    stage: str
    events: list[LogEvent]
    next_offset: int = Field(description="Send it as `offset` to get new lines only.")
    progress: list[StageProgress]


class LegacyLogsResponse(ResponseModel):
    """The output of the running job so far (legacy API)."""

    execution_id: int | str | None
    status: Literal["executing", "no_execution"]
    stdout: str
    stderr: str


class CancelResponse(ResponseModel):
    """The id of a job that is being cancelled."""

    message: str
    request_id: int | str
    execution_id: str

    @classmethod
    def of(cls, record: JobRecord, requested: str = "Cancellation") -> CancelResponse:
        return cls(
            message=f"{requested} requested for {record.request_id}",
            request_id=record.request_id,
            execution_id=record.execution_id,
        )


class JobStatusResponse(ResponseModel):
    """The state of one job."""

    request_id: int | str
    execution_id: str
    state: JobState
    stage: str
    created_at: str
    started_at: str | None = None
    finished_at: str | None = None
    progress: list[StageProgress]
    result: dict[str, Any] | None = Field(None, description="The response of execute, once the job is finished.")


def iso_utc(seconds: float) -> str:
    """Return a time since the epoch as ISO 8601 in UTC, with milliseconds.

    It is never later than the time: a job is among those `since` its time of creation. `datetime` rounds to
    microseconds.
    """
    milliseconds = math.floor(seconds * 1000)
    milliseconds -= milliseconds / 1000 > seconds  # the product may have been rounded to the next whole number
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def job_response(record: JobRecord, verdict: Verdict) -> JobResponse:
    """Return the response of execute, without the members that must be read from disk."""
    output = verdict.output
    members: dict[str, Any] = {
        "request_id": record.request_id,
        "execution_id": record.execution_id,
        "exit_code": verdict.exit_code,
        "timeout": verdict.timed_out,
        "cancelled": verdict.cancelled,
        "code": verdict.code or "ok",
        "retryable": verdict.may_retry,
        "execution_time": round(verdict.execution_seconds, 4),
        "stages": {stage: round(seconds, 6) for stage, seconds in verdict.stages_seconds.items()},
        "bytes_in": verdict.bytes_in,
        "peak_memory_bytes": verdict.peak_memory_bytes,
    }
    if not verdict.ok:
        members["error"] = error_text(verdict)
    if record.log.displays:
        members["displays"] = len(record.log.displays)
    members |= holding_members(verdict)
    if output is not None:
        members |= {"rows": output.rows, "fields": output.fields, "bytes_out": output.output_bytes}
        members["data_format"] = output.data_format
        if output.sha256 is not None:
            members["sha256"] = output.sha256
    return JobResponse(**members)


def holding_members(verdict: Verdict) -> dict[str, Any]:
    """Return the members of a response about the held kernel, or about the reason why a requested hold failed."""
    if verdict.held is not None:
        return {"held": held_response(verdict.held)}
    return {"not_held": verdict.not_held} if verdict.not_held else {}


def held_response(held: HeldKernel) -> HeldResponse:
    """Return a held kernel as it is sent."""
    return HeldResponse(
        id=held.id,
        **held.access,
        request_id=held.request_id,
        code=held.code,
        held_at=iso_utc(held.held_at),
        expires_at=iso_utc(held.expires_at),
    )


def error_text(verdict: Verdict) -> str:
    """Return the message of a failure; Metabase looks for the word "timeout" in that of a timeout."""
    text = verdict.message or (FAILURES[verdict.code].meaning if verdict.code else "")
    return text if not verdict.timed_out or "timeout" in text.lower() else f"{text} (timeout)"


def kept_links(request_id: RequestId, *, with_output: bool) -> KeptLinks:
    """Return the paths of a kept result."""
    base = f"/v1/results/{quote(str(request_id), safe='')}"
    if not with_output:
        return KeptLinks(events=f"{base}/events")
    return KeptLinks(output=f"{base}/output", manifest=f"{base}/manifest", events=f"{base}/events")


def progress_of(log: EventLog) -> list[StageProgress]:
    """Return the progress of each stage."""
    return [StageProgress.model_validate(each, from_attributes=True) for each in log.progress.values()]
