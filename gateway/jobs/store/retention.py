"""Delete old jobs and logs from the job store."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Collection

from gateway.core.settings import Settings
from gateway.jobs.store.rows import KEY_SECONDS


def prune(settings: Settings, connection: sqlite3.Connection) -> None:
    """Delete the jobs and logs whose time is over, and the oldest ones beyond the size limits.

    Parameters
    ----------
    settings : Settings
        Times and sizes of history and logs.
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
    """Return those ids that no job of the store has."""
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
