"""The statements of the job store: rows of its tables from records, and records from rows."""

from __future__ import annotations

import json
import sqlite3
import time
import zlib
from collections.abc import Callable, Collection
from pathlib import Path

from gateway.core.errors import FailureCode
from gateway.core.events import EventLog, LogSnapshot
from gateway.core.job import JobState, RequestId, Verdict
from gateway.core.settings import Settings
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

    Parameters
    ----------
    record : JobRecord
        A new job.

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
    """Store a new job.

    Parameters
    ----------
    record : JobRecord
        A new job.
    request : bytes or None
        As `encoded_request` returned it.
    connection : sqlite3.Connection
        Inside a transaction.

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
    """Return the change that stores the state of a live job.

    Parameters
    ----------
    record : JobRecord
        Read now, not when the change runs.
    state : JobState
        Its state now.
    has_network : bool
        Whether the job has access to the network.

    Returns
    -------
    callable
        Takes the connection.
    """
    values = (state.value, record.attempts, has_network, record.started_at, record.execution_id)

    def change(connection: sqlite3.Connection) -> None:
        text = "UPDATE jobs SET state = ?, attempts = ?, had_network = ?, started_at = ? WHERE job_id = ?"
        connection.execute(text, values)

    return change


def mark_cancelled(job_id: str, connection: sqlite3.Connection) -> None:
    """Give an unfinished job the code of its coming verdict, so that no later process runs it.

    Parameters
    ----------
    job_id : str
        The gateway's own id.
    connection : sqlite3.Connection
        Inside a transaction.
    """
    text = "UPDATE jobs SET code = ? WHERE job_id = ? AND state != 'finished'"
    connection.execute(text, (FailureCode.CANCELLED.value, job_id))


def update_end(record: JobRecord, verdict: Verdict, log: LogSnapshot, connection: sqlite3.Connection) -> None:
    """Store the end of a job, and delete its request.

    Parameters
    ----------
    record : JobRecord
        With ``finished_at``.
    verdict : Verdict
        How it ended.
    log : LogSnapshot
        Its log.
    connection : sqlite3.Connection
        Inside a transaction.
    """
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
    """Store the log of a job in place of an earlier one.

    Parameters
    ----------
    job_id : str
        The gateway's own id.
    log : LogSnapshot
        Its log.
    connection : sqlite3.Connection
        Inside a transaction.
    ended : float, optional
        From when its time to be kept counts; by default never, for a job that runs.
    """
    packed = zlib.compress(encode_log(log), 1)
    values = (job_id, ended if ended is not None else float("inf"), len(packed), packed)
    connection.execute("INSERT OR REPLACE INTO logs VALUES (?, ?, ?, ?)", values)


def delete_job(job_id: str, connection: sqlite3.Connection) -> bool:
    """Delete a finished job with its log.

    Parameters
    ----------
    job_id : str
        The gateway's own id.
    connection : sqlite3.Connection
        Inside a transaction.

    Returns
    -------
    bool
        Whether there was such a job.
    """
    text = "DELETE FROM jobs WHERE job_id = ? AND state = 'finished'"
    return connection.execute(text, (job_id,)).rowcount > 0


def delete_unfinished(job_id: str, connection: sqlite3.Connection) -> None:
    """Delete a job that was not accepted after all, with its request.

    Parameters
    ----------
    job_id : str
        The gateway's own id.
    connection : sqlite3.Connection
        Inside a transaction.
    """
    connection.execute("DELETE FROM jobs WHERE job_id = ? AND state != 'finished'", (job_id,))
    connection.execute("DELETE FROM requests WHERE job_id = ?", (job_id,))


def job_id_of_key(connection: sqlite3.Connection, key: bytes) -> str | None:
    """Return the id of the job that came with an Idempotency-Key.

    Parameters
    ----------
    connection : sqlite3.Connection
        To the job store.
    key : bytes
        `IdempotencyKey.key`.

    Returns
    -------
    str or None
        None if the key is new, or older than `KEY_SECONDS`.
    """
    text = "SELECT job_id FROM jobs WHERE key = ? AND created_at >= ?"
    row = connection.execute(text, (key, time.time() - KEY_SECONDS)).fetchone()
    return row[0] if row is not None else None


def known_keys(connection: sqlite3.Connection) -> list[bytes]:
    """Return the Idempotency-Keys that came within `KEY_SECONDS`.

    Parameters
    ----------
    connection : sqlite3.Connection
        To the job store.

    Returns
    -------
    list of bytes
        Each an `IdempotencyKey.key`.
    """
    text = "SELECT key FROM jobs WHERE key IS NOT NULL AND created_at >= ?"
    return [row[0] for row in connection.execute(text, (time.time() - KEY_SECONDS,))]


def finished_job(connection: sqlite3.Connection, job_id: str) -> JobRecord | None:
    """Return a finished job with its log.

    Parameters
    ----------
    connection : sqlite3.Connection
        To the job store.
    job_id : str
        The gateway's own id.

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

    Parameters
    ----------
    connection : sqlite3.Connection
        To read from.
    earliest : float
        Seconds since the epoch.

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


def prune(settings: Settings, connection: sqlite3.Connection) -> None:
    """Delete what is older than its time to be kept, and the oldest beyond the size limits.

    Parameters
    ----------
    settings : Settings
        How long, and how much of, history and logs are kept.
    connection : sqlite3.Connection
        Inside a transaction, or in autocommit mode.
    """
    now = time.time()
    connection.execute("DELETE FROM logs WHERE finished_at < ?", (now - settings.log_keep_seconds,))
    _shrink(connection, "logs", "bytes", settings.log_keep_bytes)
    connection.execute("UPDATE jobs SET key = NULL WHERE key IS NOT NULL AND created_at < ?", (now - KEY_SECONDS,))
    oldest = now - settings.history_keep_seconds
    connection.execute("DELETE FROM jobs WHERE finished_at < ? AND key IS NULL", (oldest,))
    _shrink(connection, "jobs", "row_bytes", settings.history_keep_bytes)


def unknown_jobs(connection: sqlite3.Connection, job_ids: Collection[str]) -> list[str]:
    """Return those ids that no job of the store has.

    Parameters
    ----------
    connection : sqlite3.Connection
        To the job store.
    job_ids : collection of str
        The gateway's own ids.

    Returns
    -------
    list of str
    """
    text = "SELECT 1 FROM jobs WHERE job_id = ?"
    return [job_id for job_id in job_ids if connection.execute(text, (job_id,)).fetchone() is None]


def _shrink(connection: sqlite3.Connection, table: str, column: str, keep_bytes: int) -> None:
    """Delete the oldest rows of finished jobs until the rest has at most `keep_bytes`."""
    finished = f"FROM {table} WHERE finished_at IS NOT NULL"
    excess = connection.execute(f"SELECT COALESCE(SUM({column}), 0) {finished}").fetchone()[0] - keep_bytes
    if excess <= 0:
        return
    gone = []
    for row, size in connection.execute(f"SELECT rowid, {column} {finished} ORDER BY finished_at"):
        gone.append((row,))
        excess -= size
        if excess <= 0:
            break
    connection.executemany(f"DELETE FROM {table} WHERE rowid = ?", gone)  # noqa: S608


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
