"""Inputs reach the job's directory whole, or the job fails with a sentence that says why and leaks nothing."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import shutil
import stat
import threading
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from msgspec import structs

from gateway.core.errors import FailureCode, JobFailed
from gateway.core.events import Progress
from gateway.core.job import FileSource, InputTable, UploadSource, UrlSource
from gateway.core.settings import Settings
from gateway.core.uploads import Uploads
from gateway.storage import ObjectClient
from gateway.storage.inputs.compression import decompress_manifest
from gateway.storage.inputs.fetch import fetch_tables
from gateway.storage.objects import bodies, retries
from tests.gateway.storage.conftest import Recorder, files_in, open_descriptors
from tests.gateway.storage.faulty_server import Conversation, FaultyServer, answer, drip, reset, stall, truncate
from tests.support.s3 import S3Server

ROWS = b'{"n":1}\n{"n":2}\n'
MANY_ROWS = ROWS * 200_000
"""Half of it is more than a block: a broken attempt has written some of it to the file."""


@pytest.fixture(autouse=True)
def _short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "RETRY_DELAYS_SECONDS", (0.01, 0.02, 0.03))


def table(url: str, manifest: str | None = None, alias: str = "orders") -> InputTable:
    return InputTable(alias, UrlSource(url), UrlSource(manifest) if manifest else None)


async def failure(client: ObjectClient, tables: tuple[InputTable, ...], into: Path, settings: Settings) -> str:
    with pytest.raises(JobFailed) as caught:
        await fetch_tables(client, tables, into, settings, Recorder())
    assert caught.value.code is FailureCode.INPUT_UNAVAILABLE
    assert "X-Amz" not in caught.value.message
    assert "5ecr3t" not in caught.value.message
    return caught.value.message


async def test_tables_of_any_alias_become_numbered_files_that_all_may_read(
    s3: S3Server, client: ObjectClient, settings: Settings, sink: Recorder, tmp_path: Path
) -> None:
    prefix = s3.new_prefix()
    s3.put(f"{prefix}/data", ROWS)
    s3.put(f"{prefix}/empty", b"")
    s3.put(f"{prefix}/manifest", b'{"data_format":"jsonl"}')
    tables = (
        table(s3.get_url(f"{prefix}/data"), s3.get_url(f"{prefix}/manifest"), alias="../../etc/passwd"),
        table(s3.get_url(f"{prefix}/empty"), alias="naïve \N{SNOWMAN}\n"),
    )
    old = os.umask(0o077)
    try:
        first, second = await fetch_tables(client, tables, tmp_path, settings, sink)
    finally:
        os.umask(old)
    assert files_in(tmp_path) == ["0.data", "0.manifest", "1.data"]
    assert first.data_path.read_bytes() == ROWS
    assert first.manifest_path is not None
    assert first.manifest_path.read_bytes() == b'{"data_format":"jsonl"}'
    assert (first.bytes, first.compression, first.data_format) == (len(ROWS), None, "jsonl")
    assert (second.bytes, second.manifest_path, second.data_path.read_bytes()) == (0, None, b"")
    assert stat.S_IMODE(first.data_path.stat().st_mode) == 0o644
    assert [e for e in sink.events if isinstance(e, Progress) and e.table == "../../etc/passwd"][-1].bytes == len(ROWS)


async def test_large_table_arrives_whole_while_the_loop_stays_free(
    s3: S3Server, client: ObjectClient, settings: Settings, tmp_path: Path
) -> None:
    content = os.urandom(1 << 20) * 40 + b"tail"
    key = f"{s3.new_prefix()}/large"
    s3.put(key, content)
    fetching = asyncio.create_task(fetch_tables(client, (table(s3.get_url(key)),), tmp_path, settings, Recorder()))
    turns = 0
    while not fetching.done():
        await asyncio.sleep(0)
        turns += 1
    (fetched,) = fetching.result()
    assert fetched.data_path.read_bytes() == content
    assert turns > 40  # at least one turn for other work in each MiB


async def test_reading_buffered_bytes_lets_other_tasks_run(client: ObjectClient) -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    with FaultyServer([answer(200, bytes(20 << 20))]) as server:
        async with client.request("GET", server.url()) as given:
            counting = asyncio.create_task(count())
            async for _ in given.chunks():
                time.sleep(0.01)  # noqa: ASYNC251 - the server is far ahead: every next byte is there when it is asked for
            counting.cancel()
    assert turns >= 15  # of 20 blocks


async def test_url_reaches_the_server_unchanged(client: ObjectClient, settings: Settings, tmp_path: Path) -> None:
    target = "/b%2Fu/k%C3%A9y//a/../b;c=d?X-Amz-Date=1&q=a+b%20c%2f&empty=&flag"
    with FaultyServer([answer(200, ROWS)]) as server:
        await fetch_tables(
            client, (table(f"http://127.0.0.1:{server.port}{target}#f"),), tmp_path, settings, Recorder()
        )
    (request,) = server.received
    assert request.target == target
    assert request.headers["host"] == f"127.0.0.1:{server.port}"
    assert set(request.headers) <= {"host", "user-agent", "connection", "accept"}


@pytest.mark.parametrize("status", [301, 400, 403, 404])
async def test_refusal_is_reported_with_its_status_and_not_tried_again(
    status: int, client: ObjectClient, settings: Settings, tmp_path: Path
) -> None:
    text = b"<Error><Code>SomeReason</Code><Message>Signature X</Message></Error>"
    location = "Location: http://127.0.0.1:1/elsewhere\r\n"
    with FaultyServer([answer(status, text, location)]) as server:
        message = await failure(client, (table(server.url()),), tmp_path, settings)
    assert message.startswith(f"Table 'orders' could not be fetched: the storage answered {status} (SomeReason)")
    assert len(server.received) == 1


async def test_wrong_signature_is_refused_by_a_real_server(
    s3: S3Server, client: ObjectClient, settings: Settings, tmp_path: Path
) -> None:
    key = f"{s3.new_prefix()}/data"
    s3.put(key, ROWS)
    message = await failure(client, (table(s3.get_url(key).replace("/data?", "/other?")),), tmp_path, settings)
    assert "the storage answered 403 (SignatureDoesNotMatch)" in message


async def test_server_errors_and_resets_are_survived(client: ObjectClient, settings: Settings, tmp_path: Path) -> None:
    with FaultyServer([answer(503), reset(), truncate(MANY_ROWS), answer(200, ROWS)]) as server:
        (fetched,) = await fetch_tables(client, (table(server.url()),), tmp_path, settings, Recorder())
    assert fetched.data_path.read_bytes() == ROWS  # nothing of the truncated attempt is left in front
    assert len(server.received) == 4


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        (answer(503), "the storage answered 503"),
        (reset(), "closed the connection"),
        (truncate(ROWS * 100_000), f"closed the connection after {len(ROWS) * 50_000} of {len(ROWS) * 100_000} bytes"),
        (answer(200, ROWS, "Content-Encoding: br\r\n"), "compressed with 'br'"),
    ],
    ids=["503", "reset", "truncated", "unknown encoding"],
)
async def test_lasting_fault_is_reported(
    behaviour: object, said: str, client: ObjectClient, settings: Settings, tmp_path: Path
) -> None:
    with FaultyServer([behaviour]) as server:  # type: ignore[list-item]
        assert said in await failure(client, (table(server.url()),), tmp_path, settings)


async def test_truncated_chunked_answer_is_noticed(client: ObjectClient, settings: Settings, tmp_path: Path) -> None:
    def cut(conversation: Conversation) -> None:
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        conversation.connection.sendall(head + b"8\r\n" + ROWS[:8] + b"\r\n")

    with FaultyServer([cut]) as server:
        assert "closed the connection" in await failure(client, (table(server.url()),), tmp_path, settings)


async def test_chunked_answer_arrives_whole(client: ObjectClient, settings: Settings, tmp_path: Path) -> None:
    def chunked(conversation: Conversation) -> None:
        conversation.connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for at in range(0, len(ROWS), 8):
            conversation.connection.sendall(b"8\r\n" + ROWS[at : at + 8] + b"\r\n")
        conversation.connection.sendall(b"0\r\n\r\n")

    with FaultyServer([chunked]) as server:
        (fetched,) = await fetch_tables(client, (table(server.url()),), tmp_path, settings, Recorder())
    assert fetched.data_path.read_bytes() == ROWS


async def test_silent_server_is_given_up(hasty_client: ObjectClient, settings: Settings, tmp_path: Path) -> None:
    with FaultyServer([stall(b"abc")]) as server:
        message = await failure(hasty_client, (table(server.url()),), tmp_path, settings)
    assert "sent and accepted no byte for 0.3 s" in message


async def test_server_that_drips_a_head_is_given_up(
    hasty_client: ObjectClient, settings: Settings, tmp_path: Path
) -> None:
    with FaultyServer([drip()]) as server:
        message = await failure(hasty_client, (table(server.url()),), tmp_path, settings)
    assert "sent and accepted no byte for 0.3 s" in message


async def test_server_that_drips_a_body_is_given_up(
    client: ObjectClient, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # for the average speed alone time goes faster, so that no pause of this process is a silence of the server
    monkeypatch.setattr(bodies, "time", SimpleNamespace(monotonic=lambda: 50 * time.monotonic()))
    with FaultyServer([drip("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")]) as server:
        message = await failure(client, (table(server.url()),), tmp_path, settings)
    assert "the storage is too slow" in message


async def test_refused_connection_and_unknown_host_are_reported(
    client: ObjectClient, settings: Settings, tmp_path: Path
) -> None:
    assert "Connection refused" in await failure(client, (table("http://127.0.0.1:1/x?s=5ecr3t"),), tmp_path, settings)
    (tmp_path / "2").mkdir()
    message = await failure(client, (table("http://no-such-host.invalid/x?s=5ecr3t"),), tmp_path / "2", settings)
    assert "the storage at no-such-host.invalid could not be reached" in message


@pytest.mark.parametrize(
    "url", ["ftp://h/x", "file:///etc/passwd", "/etc/passwd", "http://", "http://h:x/", "http://h/a b"]
)
async def test_url_that_is_none_is_refused(url: str, client: ObjectClient, settings: Settings, tmp_path: Path) -> None:
    await failure(client, (table(url),), tmp_path, settings)


@pytest.mark.parametrize("announced", [True, False])
async def test_tables_beyond_the_cap_are_given_up_early(
    announced: bool, client: ObjectClient, settings: Settings, tmp_path: Path
) -> None:
    settings = replace(settings, max_input_bytes=3_000_000)

    def endless(conversation: Conversation) -> None:
        length = "Content-Length: 99999999999\r\n" if announced else ""
        conversation.connection.sendall(f"HTTP/1.1 200 OK\r\n{length}\r\n".encode())
        for _ in range(10_000):
            conversation.connection.sendall(b"x" * 65536)

    with FaultyServer([endless]) as server:
        message = await failure(client, (table(server.url()),), tmp_path, settings)
        assert "MAX_INPUT_BYTES" in message
        assert len(server.received) == 1
        assert (tmp_path / "0.data").stat().st_size <= 3_000_000


async def test_cap_counts_all_tables_together_but_an_attempt_only_once(
    client: ObjectClient, settings: Settings, tmp_path: Path
) -> None:
    settings = replace(settings, max_input_bytes=3 * len(MANY_ROWS))
    tables = tuple(table("", alias=str(i)) for i in range(3))
    with FaultyServer([truncate(MANY_ROWS), answer(200, MANY_ROWS)]) as server:
        tables = tuple(structs.replace(t, data=UrlSource(server.url())) for t in tables)
        await fetch_tables(client, tables, tmp_path, settings, Recorder())
        (tmp_path / "2").mkdir()
        await failure(client, (*tables, tables[0]), tmp_path / "2", settings)


async def test_packed_table_stays_packed_and_packed_manifest_is_unpacked(
    s3: S3Server, client: ObjectClient, settings: Settings, tmp_path: Path
) -> None:
    prefix = s3.new_prefix()
    s3.put(f"{prefix}/data", gzip.compress(ROWS), ContentEncoding="gzip")
    s3.put(f"{prefix}/manifest", gzip.compress(b'{"data_format":"csv"}'), ContentEncoding="gzip")
    source = table(s3.get_url(f"{prefix}/data"), s3.get_url(f"{prefix}/manifest"))
    (fetched,) = await fetch_tables(client, (source,), tmp_path, settings, Recorder())
    assert fetched.compression == "gzip"
    assert gzip.decompress(fetched.data_path.read_bytes()) == ROWS
    assert fetched.manifest_path is not None
    assert json.loads(fetched.manifest_path.read_bytes()) == {"data_format": "csv"}
    assert fetched.data_format == "csv"  # the manifest says so


async def test_members_of_a_manifest_are_not_made(
    s3: S3Server, client: ObjectClient, settings: Settings, sink: Recorder, tmp_path: Path
) -> None:
    """Making them would hold up all requests, for two seconds with a manifest of the largest size."""
    prefix = s3.new_prefix()
    manifest = b'{"data_format":"csv",%b}' % b",".join(b'"%d":0' % number for number in range(300_000))
    s3.put(f"{prefix}/data", ROWS)
    s3.put(f"{prefix}/manifest", manifest)
    tables = (table(s3.get_url(f"{prefix}/data"), s3.get_url(f"{prefix}/manifest")),)
    tracemalloc.start()
    try:
        [fetched] = await fetch_tables(client, tables, tmp_path, settings, sink)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert fetched.data_format == "csv"
    assert peak_bytes < 4 * len(manifest)


def test_unpacked_manifest_of_a_job_that_has_ended_is_not_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The thread goes on after a failure of the table, and the job's files are removed meanwhile."""
    path, read = tmp_path / "x.0.manifest", Path.read_bytes
    path.write_bytes(gzip.compress(b"{}"))

    def read_and_remove(path: Path) -> bytes:
        content = read(path)
        path.unlink()
        return content

    monkeypatch.setattr(Path, "read_bytes", read_and_remove)
    with pytest.raises(FileNotFoundError):
        decompress_manifest(path, 100)
    assert files_in(tmp_path) == []


async def test_cancelled_fetch_closes_files_and_connections(
    client: ObjectClient, settings: Settings, tmp_path: Path
) -> None:
    arrived, closed = threading.Event(), threading.Event()

    def trickle(conversation: Conversation) -> None:
        conversation.send(200, b"x" * 3_000_000, announced=10_000_000)
        arrived.set()
        if conversation.wait_for_close():
            closed.set()

    before = open_descriptors()
    with FaultyServer([trickle]) as server:
        fetching = asyncio.create_task(fetch_tables(client, (table(server.url()),), tmp_path, settings, Recorder()))
        assert await asyncio.to_thread(arrived.wait, 60)
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
        assert await asyncio.to_thread(closed.wait, 60)
    await asyncio.sleep(0)
    left = {fd for fd, _ in open_descriptors() - before if _is_file_or_socket(fd)}
    assert left == set()


async def test_first_failure_abandons_the_other_downloads(
    client: ObjectClient, settings: Settings, tmp_path: Path
) -> None:
    begun, closed = threading.Event(), threading.Event()

    def wait(conversation: Conversation) -> None:
        conversation.send(200, b"x", announced=100)
        begun.set()
        if conversation.wait_for_close():
            closed.set()

    def refuse(conversation: Conversation) -> None:
        begun.wait(60)  # a download that has not begun has no connection to close
        answer(404)(conversation)

    with FaultyServer([wait]) as slow, FaultyServer([refuse]) as missing:
        tables = (table(slow.url(), alias="slow"), table(missing.url(), alias="gone"))
        assert "'gone'" in await failure(client, tables, tmp_path, settings)
        assert await asyncio.to_thread(closed.wait, 60)


async def test_file_of_the_request_is_linked_and_a_callers_file_is_copied(
    client: ObjectClient, settings: Settings, tmp_path: Path
) -> None:
    root, into, came = tmp_path / "root", tmp_path / "into", tmp_path / "uploads"
    root.mkdir()
    into.mkdir()
    came.mkdir()
    (came / "mine").write_bytes(ROWS)
    (root / "theirs").write_bytes(ROWS)
    settings = replace(settings, working_dir_roots=(root,))
    tables = (InputTable("a", UploadSource("mine")), InputTable("b", FileSource(root / "theirs")))
    fetched = await fetch_tables(client, tables, into, settings, Recorder(), Uploads(came))
    assert [f.data_path.read_bytes() for f in fetched] == [ROWS, ROWS]
    assert [path.name for path in (*root.iterdir(), *came.iterdir())] == ["theirs", "mine"]
    assert fetched[0].data_path.samefile(came / "mine")
    shutil.rmtree(into)
    assert (came / "mine").read_bytes() == ROWS, "for another attempt after a restart"


async def test_file_outside_of_the_roots_or_behind_a_link_is_refused(
    client: ObjectClient, settings: Settings, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    (root / "deep").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(b"s")
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "out").symlink_to(tmp_path)
    os.mkfifo(root / "pipe")
    settings = replace(settings, working_dir_roots=(root,))
    for number, (path, said) in enumerate({
        tmp_path / "secret": "not below",
        root / "deep" / ".." / ".." / "secret": "..",
        root / "link": "symbolic link",
        root / "out" / "secret": "symbolic link",
        root / "pipe": "not a regular file",
        root: "is a directory",
        root / "none": "No such file",
    }.items()):  # fmt: skip
        into = tmp_path / f"into{number}"
        into.mkdir()
        message = await failure(client, (InputTable("t", FileSource(path)),), into, settings)
        assert said in message, path


def _is_file_or_socket(fd: str) -> bool:
    try:
        mode = Path(f"/proc/self/fd/{fd}").stat().st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) or stat.S_ISSOCK(mode)
