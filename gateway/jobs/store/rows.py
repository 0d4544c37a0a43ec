"""The statements of the job store: rows of its tables from records, and records from rows.

A change takes the connection last and runs inside a transaction; a query takes it first. A `job_id` is the gateway's
own id.
"""

from __future__ import annotations

import json
import sqlite3
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from gateway.core.errors import FailureCode
from gateway.core.events import EventLog, LogSnapshot
from gateway.core.job import JobState, RequestId, Verdict
from gateway.core.uploads import Uploads
from gateway.core.wire import WireError, decode_log, encode_job, encode_log, encode_verdict
from gateway.jobs.store.history import request_id_text, verdict_of
from gateway.jobs.store.record import IdempotencyKey, JobRecord

#: How long an Idempotency-Key is known.
KEY_SECONDS = 86_400.0

#: Size of a row of the history and its indexes, without its verdict and the texts of the caller.
ROW_BYTES = 500


def encoded_request(record: JobRecord) -> bytes | None:
    """Return the request as it is stored.

    Returns
    -------
    bytes or None
        None if the job never runs again, so that its request need not be stored.
    """
    if record.job is None or record.is_awaited:
        return None
    try:
        return encode_job(record.job)
    except UnicodeEncodeError:
        return None  # a lone surrogate: no script that contains one can run


def insert_job(record: JobRecord, request: bytes | None, connection: sqlite3.Connection) -> None:
    """Store a new job, with its `encoded_request`.

    Raises
    ------
    sqlite3.IntegrityError
        Another job has the same Idempotency-Key.
    """
    key = record.key
    if key is not None:
        oldest = time.time() - KEY_SECONDS
        connection.execute("UPDATE jobs SET key = NULL WHERE key = ? AND created_at < ?", (key.key, oldest))
    row = {
        "job_id": record.execution_id,
        "request_id": request_id_text(record.request_id),
        "token_name": record.token_name,
        "label": record.label,
        "form": record.job_form,
        "is_awaited": record.is_awaited,
        "tables": json.dumps(record.tables, ensure_ascii=False),
        "trace_parent": record.trace_parent,
        "call_id": record.call_id,
        "state": JobState.QUEUED.value,
        "created_at": record.created_at,
        "key": key.key if key is not None else None,
        "body": key.body if key is not None else None,
    }
    names, marks = ", ".join(row), ", ".join(f":{name}" for name in row)
    connection.execute(f"INSERT INTO jobs ({names}) VALUES ({marks})", row)  # noqa: S608
    if request is not None:
        uploads = str(record.uploads.directory) if record.uploads is not None else None
        connection.execute("INSERT INTO requests VALUES (?, ?, ?)", (record.execution_id, request, uploads))


def update_state(record: JobRecord, state: JobState, has_network: bool) -> Callable[[sqlite3.Connection], None]:
    """Return the change that stores the state of a live job; the record is read now, not when the change runs."""
    values = (state.value, record.attempts, has_network, record.started_at, record.execution_id)

    def change(connection: sqlite3.Connection) -> None:
        text = "UPDATE jobs SET state = ?, attempts = ?, had_network = ?, started_at = ? WHERE job_id = ?"
        connection.execute(text, values)

    return change


def mark_cancelled(job_id: str, connection: sqlite3.Connection) -> None:
    """Give an unfinished job the code of its coming verdict, so that no later process runs it."""
    text = "UPDATE jobs SET code = ? WHERE job_id = ? AND state != 'finished'"
    connection.execute(text, (FailureCode.CANCELLED.value, job_id))


def update_end(record: JobRecord, verdict: Verdict, log: LogSnapshot, connection: sqlite3.Connection) -> None:
    """Store the end of a job, and delete its request."""
    encoded = encode_verdict(verdict)
    request_id = request_id_text(record.request_id)
    texts = (request_id, request_id, record.label or "", *record.tables)  # an index has the id once more
    row = {
        "job_id": record.execution_id,
        "state": JobState.FINISHED.value,
        "started_at": record.started_at,
        "finished_at": record.finished_at,
        "code": str(verdict.code or "ok"),
        "duration_seconds": verdict.execution_seconds,
        "rows": verdict.output.rows if verdict.output is not None else None,
        "attempts": record.attempts,
        "verdict": encoded,
        "row_bytes": ROW_BYTES + len(encoded) + sum(len(text.encode()) for text in texts),
    }
    changes = ", ".join(f"{name} = :{name}" for name in row)
    connection.execute(f"UPDATE jobs SET {changes} WHERE job_id = :job_id", row)  # noqa: S608
    connection.execute("DELETE FROM requests WHERE job_id = ?", (record.execution_id,))
    if log.head or log.tail:
        update_log(record.execution_id, log, connection, record.finished_at)


def update_log(job_id: str, log: LogSnapshot, connection: sqlite3.Connection, ended: float | None = None) -> None:
    """Store the log of a job in place of an earlier one; its time to be kept counts from `ended`, None for never."""
    packed = zlib.compress(encode_log(log), 1)
    values = (job_id, ended if ended is not None else float("inf"), len(packed), packed)
    connection.execute("INSERT OR REPLACE INTO logs VALUES (?, ?, ?, ?)", values)


def delete_job(job_id: str, connection: sqlite3.Connection) -> bool:
    """Delete a finished job with its log.

    Returns
    -------
    bool
        Whether there was such a job.
    """
    text = "DELETE FROM jobs WHERE job_id = ? AND state = 'finished'"
    return connection.execute(text, (job_id,)).rowcount > 0


def delete_unfinished(job_id: str, connection: sqlite3.Connection) -> None:
    """Delete a job that was not accepted after all, with its request."""
    connection.execute("DELETE FROM jobs WHERE job_id = ? AND state != 'finished'", (job_id,))
    connection.execute("DELETE FROM requests WHERE job_id = ?", (job_id,))


def job_id_of_key(connection: sqlite3.Connection, key: bytes) -> str | None:
    """Return the id of the job that came with an `IdempotencyKey.key`, unless that is older than `KEY_SECONDS`."""
    text = "SELECT job_id FROM jobs WHERE key = ? AND created_at >= ?"
    row = connection.execute(text, (key, time.time() - KEY_SECONDS)).fetchone()
    return row[0] if row is not None else None


def known_keys(connection: sqlite3.Connection) -> list[bytes]:
    """Return each `IdempotencyKey.key` that came within `KEY_SECONDS`."""
    text = "SELECT key FROM jobs WHERE key IS NOT NULL AND created_at >= ?"
    return [row[0] for row in connection.execute(text, (time.time() - KEY_SECONDS,))]


def finished_job(connection: sqlite3.Connection, job_id: str) -> JobRecord | None:
    """Return a finished job with its log.

    Returns
    -------
    JobRecord or None
        None if there is no such job, or it is not over.
    """
    text = "SELECT jobs.*, logs.log FROM jobs LEFT JOIN logs USING (job_id) WHERE job_id = ?"
    cursor = connection.execute(text, (job_id,))
    cursor.row_factory = sqlite3.Row
    row = cursor.fetchone()
    verdict = verdict_of(row) if row is not None else None
    if verdict is None:
        return None
    return record_of(row, EventLog.restored(snapshot_of(row["log"]), verdict))


def record_of(row: sqlite3.Row, log: EventLog) -> JobRecord:
    """Return a row of the table ``jobs`` as a record.

    Parameters
    ----------
    row : sqlite3.Row
        With all columns; ``uploads`` of the request is used where it is present.
    log : EventLog
        Of the job.

    Returns
    -------
    JobRecord
        Without the request.
    """
    uploads = row["uploads"] if "uploads" in row.keys() else None  # noqa: SIM118 - iterating a row gives its values
    return JobRecord(
        request_id=json.loads(row["request_id"]),
        execution_id=row["job_id"],
        job_form=row["form"],
        job=None,
        log=log,
        is_awaited=bool(row["is_awaited"]),
        token_name=row["token_name"],
        label=row["label"],
        tables=tuple(json.loads(row["tables"])),
        attempts=row["attempts"],
        key=IdempotencyKey(row["key"], row["body"]) if row["key"] is not None else None,
        uploads=Uploads(Path(uploads)) if uploads is not None else None,
        trace_parent=row["trace_parent"],
        call_id=row["call_id"],
        created_at=row["created_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
    )


def ended_since(connection: sqlite3.Connection, earliest: float) -> list[tuple[str, RequestId, str | None, float]]:
    """Return the jobs that ended after a moment, in the order in which they were accepted, whatever the clock said.

    Returns
    -------
    list of tuple
        The gateway's id, the caller's, the name of the token, and the moment of the end.
    """
    rows = connection.execute(
        "SELECT job_id, request_id, token_name, finished_at FROM jobs WHERE finished_at > ? ORDER BY seq",
        (earliest,),
    )
    return [(job_id, json.loads(request_id), token_name, ended) for job_id, request_id, token_name, ended in rows]


def is_paused(connection: sqlite3.Connection) -> bool:
    """Return whether the intake of jobs is paused."""
    return connection.execute("SELECT 1 FROM flags WHERE name = 'paused'").fetchone() is not None


def update_paused(paused: bool, connection: sqlite3.Connection) -> None:
    """Store whether the intake of jobs is paused."""
    if paused:
        connection.execute("INSERT OR IGNORE INTO flags VALUES ('paused')")
    else:
        connection.execute("DELETE FROM flags WHERE name = 'paused'")


def snapshot_of(packed: bytes | None) -> LogSnapshot:
    """Return a stored log.

    Parameters
    ----------
    packed : bytes or None
        From the table ``logs``.

    Returns
    -------
    LogSnapshot
        Empty if there is none, or if another version wrote it.
    """
    try:
        return decode_log(zlib.decompress(packed)) if packed is not None else LogSnapshot([], [])
    except (WireError, zlib.error):
        return LogSnapshot([], [])
