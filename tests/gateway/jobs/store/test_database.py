"""A job store that cannot be relied on refuses to start, in one line that says what to do."""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

import pytest

from gateway.core.errors import ConfigurationError, NotReady
from gateway.core.settings import Settings
from gateway.jobs.store import JobStore
from gateway.jobs.store.database import MIGRATIONS, SCHEMA_VERSION, network_file_system, open_database


def refusal(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    with pytest.raises(ConfigurationError) as refused:
        open_database(path, mounts)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_new_file_has_this_version_and_is_synced_at_each_commit(tmp_path: Path) -> None:
    connection = open_database(tmp_path / "jobs.db")
    found = {name: connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("user_version", "journal_mode")}
    assert found == {"user_version": SCHEMA_VERSION, "journal_mode": "wal"}
    assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2, "FULL"
    assert connection.execute("PRAGMA secure_delete").fetchone()[0] == 1
    connection.close()


def test_a_newer_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    before = path.read_bytes()
    assert "newer version" in refusal(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", ["header", "middle", "text"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "jobs.db"
    connection = open_database(path)
    values = [(f"{n}", f"{n}", "v1", 0, "[]", "finished", 1.0) for n in range(2000)]
    columns = "job_id, request_id, form, is_awaited, tables, state, created_at"
    connection.execute("BEGIN")
    connection.executemany(f"INSERT INTO jobs ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", values)
    connection.execute("COMMIT")
    connection.close()
    content = bytearray(path.read_bytes())
    if damage == "text":
        content = bytearray(b"not a database, but long enough to be one " * 100)
    elif damage == "header":
        content[:100] = b"\0" * 100
    else:
        content[len(content) // 2 : len(content) // 2 + 8192] = b"\xff" * 8192
    path.write_bytes(content)
    assert "is damaged" in refusal(path)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE jobs SET request_id = '{'",
        "UPDATE jobs SET request_id = '{', state = 'queued', finished_at = NULL",
        "UPDATE jobs SET tables = '[', state = 'queued', finished_at = NULL",
        "UPDATE jobs SET state = 'queued'; ALTER TABLE jobs RENAME COLUMN is_awaited TO is_awaitet",
        "ALTER TABLE logs RENAME COLUMN finished_at TO finished_as",
    ],
)
def test_damage_that_no_check_of_the_file_finds_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "jobs.db"
    connection = open_database(path)
    columns = "job_id, request_id, form, is_awaited, tables, state, created_at, finished_at"
    values = ("1", "1", "v1", 0, "[]", "finished", time.time(), time.time())
    connection.execute(f"INSERT INTO jobs ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
    connection.executescript(damage)
    connection.close()
    with pytest.raises(ConfigurationError, match="is damaged") as refused:
        JobStore(Settings(), tmp_path).unfinished()
    assert not isinstance(refused.value, NotReady), "another start would find it again"


def test_a_file_that_another_process_holds_is_named_and_may_be_free_at_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    open_database(path).close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(NotReady, match="in use by another process"):
        JobStore(Settings(), tmp_path)
    other.close()


def test_a_database_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE notes (text)")
    connection.close()
    before = path.read_bytes()
    assert "of another program" in refusal(path)
    assert path.read_bytes() == before


def test_an_empty_file_is_taken_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "jobs.db"
    open_database(path).close()
    assert caplog.messages == []
    os.truncate(path, 0)
    open_database(path).close()
    assert caplog.messages == [f"the job store {path} is empty: jobs and history that it may have had are lost"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    path.touch(0o400)
    assert "cannot be opened" in refusal(path)


def test_a_directory_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "jobs.db").mkdir()
    assert "cannot be opened" in refusal(tmp_path / "jobs.db")


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs", "fuse.rclone"])
def test_a_network_file_system_is_refused(tmp_path: Path, kind: str) -> None:
    device = tmp_path.stat().st_dev
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "21 1 0:999 / /else rw - nfs4 server:/x rw\n"
        f"36 21 {os.major(device)}:{os.minor(device)} / /data rw,noatime shared:1 master:2 - {kind} server:/data rw\n"
    )
    assert f"network file system ({kind})" in refusal(tmp_path / "jobs.db", mounts)
    assert not (tmp_path / "jobs.db").exists()


@pytest.mark.parametrize("kind", ["ext4", "overlay", "tmpfs", "fuse.fuse-overlayfs", "9p"])
def test_a_local_file_system_is_taken(tmp_path: Path, kind: str) -> None:
    device = tmp_path.stat().st_dev
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"36 21 {os.major(device)}:{os.minor(device)} / / rw - {kind} none rw\n")
    assert network_file_system(tmp_path, mounts) is None


def test_each_older_version_is_brought_to_this_one(tmp_path: Path) -> None:
    for version in range(SCHEMA_VERSION):
        path = tmp_path / f"{version}.db"
        with sqlite3.connect(path) as connection:
            for number in range(version):
                connection.executescript(MIGRATIONS[number])
            connection.execute(f"PRAGMA user_version = {version}")
        connection.close()
        migrated = open_database(path)
        assert migrated.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION
        migrated.close()
