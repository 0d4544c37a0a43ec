"""Queries of the history: filters, order, and pages that follow one another without gaps."""

from __future__ import annotations

import base64
import contextlib
import json
import sqlite3
from dataclasses import dataclass
from typing import Literal

import orjson

from gateway.core.errors import FAILURES, BadRequest, FailureCode
from gateway.core.job import ALL_JOBS, JobState, RequestId, Scope, Verdict
from gateway.core.wire import WireError, decode_verdict

SortKey = Literal["created_at", "finished_at", "duration", "rows"]

_COLUMNS = {
    "created_at": "created_at",
    "finished_at": "COALESCE(finished_at, -1)",
    "duration": "COALESCE(duration_seconds, -1)",
    "rows": "COALESCE(rows, -1)",
}


@dataclass(frozen=True, slots=True)
class HistoryQuery:
    """The filters of a query; a filter that is None matches all jobs.

    Attributes
    ----------
    state : JobState or None
    code : str or None
        ``ok``, a failure code, or ``failed`` for every failure.
    since, until : float or None
        Bounds of the time of acceptance, in seconds since the epoch; `until` is excluded.
    request_ids : tuple
        The caller's id, in each type that is meant; empty for all.
    label : str or None
        A part of the label, or of the tables of a job without one; ASCII letters of either case are the same.
    token_name : str or None
    min_duration_seconds : float or None
    min_rows : int or None
    sort : str
    descending : bool
    limit : int
        Jobs on a page.
    cursor : str or None
        `HistoryPage.cursor` of the page before.
    scope : Scope
        The jobs that the caller may see.
    """

    state: JobState | None = None
    code: str | None = None
    since: float | None = None
    until: float | None = None
    request_ids: tuple[RequestId, ...] = ()
    label: str | None = None
    token_name: str | None = None
    min_duration_seconds: float | None = None
    min_rows: int | None = None
    sort: SortKey = "created_at"
    descending: bool = True
    limit: int = 50
    cursor: str | None = None
    scope: Scope = ALL_JOBS


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One job in the history.

    Attributes
    ----------
    job_id : str
        The gateway's own id.
    request_id : int or str
    token_name : str or None
        Name of the caller's token.
    label : str or None
    tables : tuple of str
        Names of the input tables.
    state : JobState
    attempts : int
    created_at, started_at, finished_at : float or None
        Seconds since the epoch.
    verdict : Verdict or None
        None while the job is not over.
    """

    job_id: str
    request_id: RequestId
    token_name: str | None
    label: str | None
    tables: tuple[str, ...]
    state: JobState
    attempts: int
    created_at: float
    started_at: float | None
    finished_at: float | None
    verdict: Verdict | None


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """Some jobs.

    Attributes
    ----------
    entries : list of HistoryEntry
    cursor : str or None
        Where the next page begins; None on the last page.
    cursors : list of str
        Where a page would begin after each entry.
    """

    entries: list[HistoryEntry]
    cursor: str | None
    cursors: list[str]


def request_id_text(request_id: RequestId) -> str:
    """Return the JSON form of an id, in ASCII, in which 7 and "7" differ."""
    return json.dumps(request_id)


def read_page(connection: sqlite3.Connection, query: HistoryQuery) -> HistoryPage:
    """Return one page of the history.

    Raises
    ------
    BadRequest
        The cursor is not of this store.
    """
    column = _COLUMNS[query.sort]
    conditions, values = _conditions(query)
    if query.cursor is not None:
        conditions.append(f"({column}, seq) {'<' if query.descending else '>'} (?, ?)")
        values += _place(query.cursor)
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    order = "DESC" if query.descending else "ASC"
    ordered = f"ORDER BY {column} {order}, seq {order}"
    # Only numbers are sorted: with whole rows, 10,000 jobs took 62 ms instead of 6. Every part of the text is one of
    # ours; values of the caller are bound.
    found = f"SELECT seq FROM jobs {where} {ordered} LIMIT ?"  # noqa: S608
    text = f"SELECT {column} AS sorted, * FROM jobs WHERE seq IN ({found}) {ordered}"  # noqa: S608
    cursor = connection.execute(text, (*values, query.limit + 1))
    cursor.row_factory = sqlite3.Row
    rows = cursor.fetchall()
    more = len(rows) > query.limit
    rows = rows[: query.limit]
    cursors = [encode_cursor([row["sorted"], row["seq"]]) for row in rows]
    return HistoryPage([entry_of(row) for row in rows], cursors[-1] if more else None, cursors)


def sorted_value(cursor: str) -> float:
    """Return the value by which the entry of a cursor was sorted, to bring those of several stores into one order.

    Raises
    ------
    BadRequest
        It is not a cursor.
    """
    return _place(cursor)[0]


def entry_of(row: sqlite3.Row) -> HistoryEntry:
    """Return a row of the table ``jobs`` with all columns."""
    return HistoryEntry(
        job_id=row["job_id"],
        request_id=json.loads(row["request_id"]),
        token_name=row["token_name"],
        label=row["label"],
        tables=tuple(orjson.loads(row["tables"])),
        state=JobState(row["state"]),
        attempts=row["attempts"],
        created_at=row["created_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        verdict=verdict_of(row),
    )


def verdict_of(row: sqlite3.Row) -> Verdict | None:
    """Return the verdict in a row of the table ``jobs``; of one that another version wrote, the code."""
    if row["verdict"] is None:
        return None
    try:
        return decode_verdict(row["verdict"])
    except WireError:
        known = row["code"] in set(FailureCode)
        code = None if row["code"] == "ok" else FailureCode(row["code"]) if known else FailureCode.INTERNAL
        return Verdict(code, "", FAILURES[code].exit_code if code else 0, row["duration_seconds"] or 0.0)


def _conditions(query: HistoryQuery) -> tuple[list[str], list[object]]:
    marks = ", ".join("?" for _ in query.request_ids)
    filters: list[tuple[str, object]] = [
        ("state = ?", query.state),
        ("code = ?", query.code if query.code != "failed" else None),
        ("created_at >= ?", query.since),
        ("created_at < ?", query.until),
        ("instr(lower(coalesce(label, tables)), lower(?)) > 0", query.label),
        ("token_name = ?", query.token_name),
        ("duration_seconds >= ?", query.min_duration_seconds),
        ("rows >= ?", query.min_rows),
    ]
    conditions = [condition for condition, value in filters if value is not None]
    values = [value for _, value in filters if value is not None]
    if query.code == "failed":
        conditions.append("code != 'ok'")
    if not query.scope.sees_all:
        conditions.append("token_name IS ?")
        values.append(query.scope.token_name)
    if query.request_ids:
        conditions.append(f"request_id IN ({marks})")
        values += [request_id_text(each) for each in query.request_ids]
    return conditions, values


def encode_cursor(place: object) -> str:
    """Return a place in the history, as JSON has it, in a form for a URL."""
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")


def decode_cursor(text: str) -> object:
    """Return the JSON in a cursor, which the caller may have made itself; None if it has none."""
    try:
        return json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (ValueError, RecursionError):
        return None


def refused_cursor() -> BadRequest:
    """Return the refusal of a cursor that is none of this route."""
    return BadRequest("cursor: expected the `cursor` of an answer of this route", field="cursor")


def _place(cursor: str) -> tuple[float, int]:
    match decode_cursor(cursor):
        case [int() | float() as value, int() as seq] if -(2**63) <= seq < 2**63:
            with contextlib.suppress(OverflowError):
                return float(value), seq
    raise refused_cursor()
