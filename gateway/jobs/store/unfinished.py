"""The jobs that an earlier process left."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from gateway.core.events import EventLog, LogSnapshot
from gateway.core.job import JobState
from gateway.core.settings import Settings
from gateway.core.wire import WireError, decode_job
from gateway.jobs.store.record import JobRecord
from gateway.jobs.store.rows import record_of, snapshot_of


@dataclass(frozen=True, slots=True)
class StoredJob:
    """A job that an earlier process accepted and did not finish.

    Attributes
    ----------
    record : JobRecord
        Live again; ``job`` is None where no request was stored or it cannot be read.
    had_begun : bool
        Whether it had a slot when the process ended.
    had_network : bool
        Whether it had access to the network then.
    was_cancelled : bool
        Whether a caller cancelled it.
    problem : str
        Why the request cannot be read, if that is so.
    lines : LogSnapshot or None
        Its output so far; not in the record's log yet.
    """

    record: JobRecord
    had_begun: bool
    had_network: bool
    was_cancelled: bool = False
    problem: str = ""
    lines: LogSnapshot | None = None

    def restore_log(self) -> None:
        """Begin the record's log with the earlier output of the job."""
        if self.lines is not None:
            self.record.log.resume(self.lines)
            self.record.stored_lines = self.record.log.line_count


def read_unfinished(connection: sqlite3.Connection, settings: Settings) -> list[StoredJob]:
    """Return the jobs that are not over.

    Parameters
    ----------
    connection : sqlite3.Connection
        To the job store.
    settings : Settings
        Bounds of their logs.

    Returns
    -------
    list of StoredJob
        The oldest first.
    """
    text = (
        "SELECT jobs.*, requests.job AS request, requests.uploads, logs.log FROM jobs "
        "LEFT JOIN requests USING (job_id) LEFT JOIN logs USING (job_id) WHERE state != 'finished' ORDER BY seq"
    )
    cursor = connection.execute(text)
    cursor.row_factory = sqlite3.Row
    return [_stored_job(row, settings) for row in cursor.fetchall()]


def _stored_job(row: sqlite3.Row, settings: Settings) -> StoredJob:
    record = record_of(row, EventLog(settings.log_cap_bytes, settings.log_line_cap_bytes))
    problem = ""
    try:
        record.job = decode_job(row["request"]) if row["request"] is not None else None
    except WireError as error:
        problem = str(error)
    had_begun, record.started_at = row["state"] == JobState.RUNNING, None
    lines = snapshot_of(row["log"]) if row["log"] is not None else None
    return StoredJob(record, had_begun, bool(row["had_network"]), row["code"] is not None, problem, lines)
