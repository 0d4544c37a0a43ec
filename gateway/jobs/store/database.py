"""The SQLite file of the job store: checks before it is opened, schema, migrations."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from gateway.core.errors import ConfigurationError, NotReady

log = logging.getLogger(__name__)

#: Name of the file, in a directory of its own: SQLite makes two more files while it is open.
FILE_NAME = "jobs.db"

#: One script for each version of the schema; a file of version n needs those from n on. A script never changes.
MIGRATIONS = (
    """
    CREATE TABLE jobs (
        seq INTEGER PRIMARY KEY,
        job_id TEXT NOT NULL UNIQUE,
        request_id TEXT NOT NULL,          -- as JSON: 7 and "7" differ
        label TEXT,
        form TEXT NOT NULL,
        is_awaited INTEGER NOT NULL,
        tables TEXT NOT NULL,
        trace_parent TEXT,
        call_id TEXT,
        state TEXT NOT NULL,
        attempts INTEGER NOT NULL DEFAULT 0,
        had_network INTEGER NOT NULL DEFAULT 0,
        created_at REAL NOT NULL,
        started_at REAL,
        finished_at REAL,
        code TEXT,
        duration_seconds REAL,
        rows INTEGER,
        verdict BLOB,
        key BLOB,
        body BLOB,
        row_bytes INTEGER NOT NULL DEFAULT 0
    );
    CREATE INDEX jobs_by_request ON jobs (request_id, seq);
    CREATE INDEX jobs_by_creation ON jobs (created_at, seq);
    CREATE INDEX jobs_by_end ON jobs (finished_at) WHERE finished_at IS NOT NULL;
    CREATE INDEX jobs_by_code ON jobs (code, created_at);
    CREATE INDEX jobs_unfinished ON jobs (seq) WHERE state != 'finished';
    CREATE UNIQUE INDEX jobs_by_key ON jobs (key) WHERE key IS NOT NULL;
    CREATE TABLE requests (job_id TEXT PRIMARY KEY, job BLOB NOT NULL, uploads TEXT);
    CREATE TABLE logs (job_id TEXT PRIMARY KEY, finished_at REAL NOT NULL, bytes INTEGER NOT NULL, log BLOB NOT NULL);
    CREATE INDEX logs_by_end ON logs (finished_at, bytes);
    """,
    """
    ALTER TABLE jobs ADD COLUMN token_name TEXT;
    CREATE INDEX jobs_by_token ON jobs (token_name, created_at, seq) WHERE token_name IS NOT NULL;
    CREATE TABLE flags (name TEXT PRIMARY KEY);
    """,
    # The size of the history is added up once a minute, from an index alone: from 100,000 rows it took half a second.
    """
    DROP INDEX jobs_by_end;
    CREATE INDEX jobs_by_end ON jobs (finished_at, row_bytes) WHERE finished_at IS NOT NULL;
    CREATE TRIGGER logs_end_with_jobs AFTER DELETE ON jobs BEGIN DELETE FROM logs WHERE job_id = old.job_id; END;
    """,
)
#: In the file as ``user_version``.
SCHEMA_VERSION = len(MIGRATIONS)

#: A larger file is not checked at the start, which would take seconds.
CHECKED_BYTES = 64 << 20

#: Types of file systems, as in mountinfo(5), on which locks and shared memory of SQLite's WAL do not work.
NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "lustre", "glusterfs", "beegfs", "gpfs", "ncpfs", "coda"}
    | {f"fuse.{name}" for name in ("sshfs", "s3fs", "rclone", "gcsfuse", "goofys", "glusterfs", "ceph-fuse", "davfs")}
    | {f"fuse.{name}" for name in ("mount-s3", "blobfuse2", "juicefs", "cephfs", "curlftpfs")}
)


def open_database(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> sqlite3.Connection:
    """Open the file, make it if it is missing, and bring it to this version's schema.

    Parameters
    ----------
    path : Path
        The file; its directory must exist.
    mounts : Path
        Table of mounts, see mountinfo(5).

    Returns
    -------
    sqlite3.Connection
        In autocommit mode, for use from any thread, one at a time.

    Raises
    ------
    ConfigurationError
        The file is on a network file system, cannot be opened, is damaged, or is of a newer version.
    NotReady
        SQLite cannot use it now, as when the disk is full.
    """
    remote = network_file_system(path.parent, mounts)
    if remote is not None:
        raise ConfigurationError(
            f"the job store {path} is on a network file system ({remote}), where SQLite loses data; "
            "set STATE_DIR (--state-dir) to a directory on a local disk"
        )
    try:
        if path.is_file() and not path.stat().st_size:  # no damage if the first start met a full disk
            log.warning("the job store %s is empty: jobs and history that it may have had are lost", path)
        # SQLite gives the mode of this file to its WAL too
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        path.chmod(0o600)
    except OSError as error:
        raise ConfigurationError(
            f"the job store {path} cannot be opened: {error.strerror or error}; "
            "give it to the gateway's user, or set STATE_DIR (--state-dir)"
        ) from None
    with problems_named(path):
        connection = connect(str(path))
        try:
            _prepare(connection, path)
        except BaseException:
            connection.close()
            raise
    return connection


@contextlib.contextmanager
def problems_named(path: Path) -> Iterator[None]:
    """Raise what goes wrong while a start reads the file as a `ConfigurationError` that says what to do.

    The check of a file finds damage of its structure and not of its content, and large files are not checked.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    ConfigurationError
        The file is damaged.
    NotReady
        SQLite cannot use it now.
    """
    try:
        yield
    except (sqlite3.DatabaseError, LookupError, TypeError, ValueError) as error:
        if getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            text = f"the job store {path} is in use by another process; end it, or wait until it ends"
            raise NotReady(text) from None
        # "no such column" is an OperationalError of that code
        if isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
            raise NotReady(f"the job store {path} cannot be used: {error}; free its disk, or move it") from None
        raise ConfigurationError(
            f"the job store {path} is damaged ({error}); move it away to start with an empty one, "
            "which forgets its unfinished jobs and its history"
        ) from None


def open_in_memory() -> sqlite3.Connection:
    """Open a database in memory, for tests.

    Returns
    -------
    sqlite3.Connection
        With the whole schema.
    """
    connection = connect(":memory:")
    _migrate(connection, 0)
    return connection


def connect(name: str) -> sqlite3.Connection:
    """Return a connection with the options that all connections of the store have.

    Parameters
    ----------
    name : str
        Path of the file, or ``:memory:``.

    Returns
    -------
    sqlite3.Connection
        In autocommit mode, for use from any thread, one at a time.
    """
    connection = sqlite3.connect(name, timeout=10, isolation_level=None, check_same_thread=False)
    # deleted content is overwritten, so that code and URLs of a finished job are in no free page
    connection.execute("PRAGMA secure_delete = ON")
    connection.execute("PRAGMA temp_store = MEMORY")
    return connection


def network_file_system(directory: Path, mounts: Path) -> str | None:
    """Return the type of the network file system that a directory is on.

    Parameters
    ----------
    directory : Path
        An existing directory.
    mounts : Path
        Table of mounts, see mountinfo(5).

    Returns
    -------
    str or None
        None for a local file system, or if the table cannot be read.
    """
    device = directory.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(OSError):
        for line in mounts.read_text().splitlines():
            left, _, right = line.partition(" - ")
            if left.split()[2] == wanted and (kind := right.split()[0]) in NETWORK_FILE_SYSTEMS:
                return kind
    return None


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > SCHEMA_VERSION:
        raise ConfigurationError(
            f"the job store {path} was written by a newer version (schema {version}, this one reads {SCHEMA_VERSION}); "
            "start that version, or move the file away to start with an empty one"
        )
    if version == 0 and connection.execute("SELECT 1 FROM sqlite_schema").fetchone() is not None:
        raise ConfigurationError(f"{path} is the database of another program; move it away, or set another STATE_DIR")
    if path.stat().st_size <= CHECKED_BYTES:
        found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise sqlite3.DatabaseError(str(found).strip().splitlines()[-1])
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise NotReady(f"the file system of the job store {path} does not support SQLite's write-ahead log; move it")
    connection.execute("PRAGMA synchronous = FULL")
    _migrate(connection, version)
    # the WAL of a gateway that was killed may still hold erased rows
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _migrate(connection: sqlite3.Connection, version: int) -> None:
    for number in range(version, SCHEMA_VERSION):
        connection.executescript(f"BEGIN IMMEDIATE; {MIGRATIONS[number]}; PRAGMA user_version = {number + 1}; COMMIT;")
