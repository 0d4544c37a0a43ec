"""The query of ``GET /v1/jobs``, and its answer."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, get_args

import msgspec
from pydantic import Field

from gateway.core.displays import Display
from gateway.core.errors import FAILURES, BadRequest, FailureCode
from gateway.core.events import EventLog
from gateway.core.job import JobState, RequestId, Scope, Verdict
from gateway.http.schemas.query import check_names
from gateway.http.schemas.responses import ResponseModel, StageProgress, error_text, iso_utc, progress_of
from gateway.jobs.store import HistoryEntry, HistoryQuery, JobRecord
from gateway.jobs.store.history import SortKey
from gateway.telemetry.waterfall import lay_out

MAX_LIMIT = 500

#: Query parameters with their descriptions, as in the API description.
PARAMETERS = {
    "state": "Only jobs in this state: `queued`, `running` or `finished`.",
    "code": "Only jobs that ended with this code: `ok`, a failure code, or `failed` for every failure.",
    "since": "Only jobs accepted at this time or later: ISO 8601 (UTC without a zone), or seconds since the epoch.",
    "until": "Only jobs accepted before this time.",
    "request_id": 'Only jobs with this id of the caller\'s; `7` finds 7 and "7".',
    "label": "Only jobs whose label, or else names of tables, contain this text, in either case.",
    "token_name": "Only jobs that came with a token of this name.",
    "min_duration": "Only jobs that ran for at least this many seconds.",
    "min_rows": "Only jobs whose result has at least this many rows.",
    "sort": "`created_at`, `finished_at`, `duration` or `rows`; with `-` in front, the largest first. "
    "Default: `-created_at`.",
    "limit": f"Jobs on a page, 1 to {MAX_LIMIT}. Default: 50.",
    "cursor": "The `cursor` of the page before.",
}


class JobSummary(ResponseModel):
    """One job in the history."""

    job_id: str = Field(description="The gateway's id of this execution; `execution_id` in the response of execute.")
    request_id: int | str
    token_name: str | None = Field(description="Name of the caller's token in AUTH_TOKEN_FILE.")
    label: str | None
    tables: list[str] = Field(description="Names of the input tables.")
    state: JobState
    stage: str | None = Field(description="Of a job that is not finished.")
    code: str | None = Field(description='"ok" or the failure code of a finished job.')
    error: str | None = Field(description="The cause of a failure in a sentence.")
    attempts: int = Field(description="Number of times that it has begun to run.")
    created_at: str
    started_at: str | None
    finished_at: str | None
    duration: float | None = Field(description="Seconds from the slot to the end.")
    rows: int | None
    bytes_in: int | None
    bytes_out: int | None
    peak_memory_bytes: int | None
    member: str | None = Field(
        default=None, description="The member of a cluster that accepted the job and keeps its record."
    )
    host: str | None = Field(default=None, description="The member of a cluster that runs the job or ran it.")


class JobsResponse(ResponseModel):
    """One page of the history."""

    jobs: list[JobSummary]
    cursor: str | None = Field(description="Send it as `cursor` to get the next page; null on the last one.")
    missing_members: list[str] | None = Field(
        default=None, description="In a cluster, the members that do not answer, so that their jobs are not listed."
    )


class ColumnResponse(ResponseModel):
    """One column of a table."""

    name: str
    base_type: str = Field(description="Empty where only the file itself has the type.")


class InputTableResponse(ResponseModel):
    """The part of one table that a job read; of a table that it reads on demand, the part it needed."""

    name: str
    rows: int
    bytes: int
    columns: list[ColumnResponse] = Field(description="Of 500 columns of result and tables at most.")


class StageSpanResponse(ResponseModel):
    """One stage of a job, in seconds since the job was accepted."""

    name: str
    begin: float
    end: float
    parent: str | None = Field(description="The stage that contains this one.")


class JobDetailResponse(JobSummary):
    """One job."""

    progress: list[StageProgress]
    inputs: list[InputTableResponse] = Field(description="The tables that a finished job read.")
    columns: list[ColumnResponse] = Field(description="Of the result; 500 at most.")
    result: dict[str, Any] | None = Field(description="The response of execute, once the job is finished.")
    bundle: str | None = Field(description="Path of the bundle of a failed job, for a token that may read it.")
    waterfall: list[StageSpanResponse] = Field(description="The stages of a finished job with their times.")


class ImageResponse(ResponseModel):
    """An image that a job displayed."""

    type: Literal["image"]
    media_type: Literal["image/png", "image/svg+xml"]
    data: str = Field(description="The file in base64. Show an SVG as an image only: it may contain scripts.")
    text: str = Field(description="The displayed object as text.")


class TableResponse(ResponseModel):
    """A table that a job displayed, as text by rows."""

    type: Literal["table"]
    header: list[list[str]]
    rows: list[list[str]]
    index_columns: int = Field(description="How many columns from the left name the rows.")


class ColumnProfileResponse(ResponseModel):
    """Figures about one column of a result; those of the column's own type are texts."""

    name: str
    base_type: str
    nulls: int
    distinct: int | None = Field(description="Number of different values other than null.")
    smallest: str | None
    largest: str | None
    quartiles: list[str] | None = Field(description="25 %, 50 % and 75 % quantiles of a column of numbers.")
    histogram: list[int] | None = Field(
        description="Numbers of values in 12 bins of equal width from the smallest to the largest number."
    )


class ProfileResponse(ResponseModel):
    """The profile of a job's result, if the request asked for it with `profile`."""

    type: Literal["profile"]
    rows: int = Field(description="Number of rows that were profiled, from the first on.")
    columns: list[ColumnProfileResponse] = Field(description="At most 500.")


class DisplaysResponse(ResponseModel):
    """The images and tables that a job displayed, in order, and the profile of its result."""

    displays: list[ImageResponse | TableResponse | ProfileResponse]


class DeletedResponse(ResponseModel):
    """The id of a job that was removed from the history."""

    deleted: str


def history_query(
    given: Mapping[str, str], request_ids: Callable[[str], tuple[RequestId, ...]], scope: Scope
) -> HistoryQuery:
    """Return the query that parameters of a URL ask for, about the jobs in `scope`.

    Raises
    ------
    BadRequest
        A parameter is unknown or has no valid value.
    """
    check_names(given, PARAMETERS)
    sort, descending = _sort(given.get("sort", "-created_at"))
    return HistoryQuery(
        state=_state(given.get("state")),
        code=_code(given.get("code")),
        since=_moment("since", given.get("since")),
        until=_moment("until", given.get("until")),
        request_ids=request_ids(given["request_id"]) if "request_id" in given else (),
        label=given.get("label"),
        token_name=given.get("token_name"),
        min_duration_seconds=_number("min_duration", given.get("min_duration")),
        min_rows=_whole("min_rows", given["min_rows"], 0, 10**18) if "min_rows" in given else None,
        sort=sort,
        descending=descending,
        limit=_whole("limit", given.get("limit", "50"), 1, MAX_LIMIT),
        cursor=given.get("cursor"),
        scope=scope,
    )


def summary_of(entry: HistoryEntry, log: EventLog | None, member: str | None) -> JobSummary:
    """Return a job of the history as it is sent; `log` is that of a job that is not finished."""
    return JobSummary(**summary_members(entry, log, member))


def detail_of(
    record: JobRecord,
    member: str | None,
    result: dict[str, Any] | None,
    has_bundle: bool,
) -> JobDetailResponse:
    """Return one job with its result as it is sent."""
    entry = record.entry()
    output = entry.verdict.output if entry.verdict is not None else None
    bundle = f"/v1/jobs/{entry.job_id}/bundle" if has_bundle else None
    return JobDetailResponse(
        **summary_members(entry, record.log, member),
        progress=progress_of(record.log),
        inputs=_inputs_of(entry),
        columns=_columns_of(output.columns if output is not None else ()),
        result=result,
        waterfall=_waterfall_of(entry),
        bundle=bundle,
    )


def displays_of(displays: list[Display]) -> DisplaysResponse:
    """Return the displays of a job as they are sent."""
    return DisplaysResponse.model_validate({"displays": [msgspec.to_builtins(display) for display in displays]})


def summary_members(entry: HistoryEntry, log: EventLog | None, member: str | None = None) -> dict[str, Any]:
    """Return the members of a `JobSummary`."""
    verdict: Verdict | None = entry.verdict
    host = verdict.host if verdict is not None else log.host if log is not None else ""
    of_cluster = {"member": member, "host": host}
    output = verdict.output if verdict is not None else None
    return {
        "job_id": entry.job_id,
        "request_id": entry.request_id,
        "token_name": entry.token_name,
        "label": entry.label,
        "tables": list(entry.tables),
        "state": entry.state,
        "stage": log.stage if log is not None and verdict is None else None,
        "code": None if verdict is None else str(verdict.code or "ok"),
        "error": None if verdict is None or verdict.ok else error_text(verdict),
        "attempts": entry.attempts,
        "created_at": iso_utc(entry.created_at),
        "started_at": iso_utc(entry.started_at) if entry.started_at is not None else None,
        "finished_at": iso_utc(entry.finished_at) if entry.finished_at is not None else None,
        "duration": round(verdict.execution_seconds, 4) if verdict is not None else None,
        "rows": output.rows if output is not None else None,
        "bytes_in": verdict.bytes_in if verdict is not None else None,
        "bytes_out": output.output_bytes if output is not None else None,
        "peak_memory_bytes": verdict.peak_memory_bytes if verdict is not None else None,
        **{name: value for name, value in of_cluster.items() if value},
    }


def _waterfall_of(entry: HistoryEntry) -> list[StageSpanResponse]:
    if entry.verdict is None:
        return []
    created = entry.created_at
    return [
        StageSpanResponse(
            name=span.name, begin=round(span.begin - created, 6), end=round(span.end - created, 6), parent=span.parent
        )
        for span in lay_out(entry.verdict.stages_seconds, created, entry.started_at, entry.finished_at)
    ]


def _inputs_of(entry: HistoryEntry) -> list[InputTableResponse]:
    read = entry.verdict.tables if entry.verdict is not None else ()
    return [
        InputTableResponse(
            name=table.alias,
            rows=table.rows,
            bytes=table.bytes,
            columns=_columns_of(table.columns),
        )
        for table in read
    ]


def _columns_of(columns: Iterable[tuple[str, str]]) -> list[ColumnResponse]:
    return [ColumnResponse(name=name, base_type=base_type) for name, base_type in columns]


def _state(text: str | None) -> JobState | None:
    known = [state.value for state in JobState]
    if text is not None and text not in known:
        raise BadRequest(f"state: expected {', '.join(known)}, not {text[:60]!r}", field="state")
    return JobState(text) if text is not None else None


def _code(text: str | None) -> str | None:
    if text is not None and text not in ("ok", "failed") and text not in {str(code) for code in FAILURES}:
        near = difflib.get_close_matches(text, [str(code) for code in FailureCode], 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise BadRequest(f"code: expected ok, failed or a failure code, not {text[:60]!r}{hint}", field="code")
    return text


def _moment(name: str, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,9})?", text) and not re.fullmatch(r"[0-9]{8}", text):
            return float(text)
        moment = datetime.fromisoformat(text.replace(" ", "+"))  # a plus that was not quoted arrives as a space
    except ValueError:
        expected = "a time in ISO 8601, or seconds since the epoch"
        raise BadRequest(f"{name}: expected {expected}, not {text[:60]!r}", field=name) from None
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()


def _number(name: str, text: str | None) -> float | None:
    if text is not None and not re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,9})?", text):
        raise BadRequest(f"{name}: expected a number, 0 or more, not {text[:60]!r}", field=name)
    return float(text) if text is not None else None


def _whole(name: str, text: str, least: int, most: int) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text) or not least <= int(text) <= most:
        bounds = f"from {least} to {most}" if most < 10**18 else f"{least} or more"
        raise BadRequest(f"{name}: expected a whole number, {bounds}, not {text[:60]!r}", field=name)
    return int(text)


def _sort(text: str) -> tuple[SortKey, bool]:
    known: tuple[SortKey, ...] = get_args(SortKey)
    for key in known:
        if text.removeprefix("-") == key:
            return key, text.startswith("-")
    expected = f"{', '.join(known)}, or one of these after '-'"
    raise BadRequest(f"sort: expected {expected}, not {text[:60]!r}", field="sort")
