"""Results reach presigned URLs exactly once and whole, in the one way that S3 takes them."""

from __future__ import annotations

import asyncio
import os
import re
import threading
from pathlib import Path

import pytest
from aiohttp.http_writer import StreamWriter

from gateway.core.errors import FailureCode, JobFailed
from gateway.storage import ObjectClient
from gateway.storage.objects import retries
from gateway.storage.outputs import upload
from gateway.storage.outputs.job_files import OpenOutput, open_output
from gateway.storage.outputs.upload import put_object
from tests.gateway.storage.conftest import open_descriptors
from tests.gateway.storage.faulty_server import Conversation, FaultyServer, answer, reset
from tests.support.s3 import BUCKET, S3Server

CONTENT = os.urandom(1 << 20) * 5 + b"tail"


@pytest.fixture(autouse=True)
def _short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "RETRY_DELAYS_SECONDS", (0.01, 0.02, 0.03))


def opened(directory: Path, content: bytes) -> OpenOutput:
    path = directory / "output"
    path.write_bytes(content)
    return open_output(path, owner_uid=None, max_bytes=1 << 30)


async def failure(
    client: ObjectClient,
    url: str,
    body: OpenOutput | bytes,
    code: FailureCode = FailureCode.OUTPUT_UPLOAD_FAILED,
) -> str:
    with pytest.raises(JobFailed) as caught:
        await put_object(client, url, body, "the output")
    assert caught.value.code is code
    assert "5ecr3t" not in caught.value.message
    assert "X-Amz" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("content", [CONTENT, b"", b"x"], ids=["large", "empty", "one byte"])
async def test_object_arrives_at_a_server_that_checks_signatures(
    content: bytes, s3: S3Server, client: ObjectClient, tmp_path: Path
) -> None:
    key = s3.new_prefix()
    with opened(tmp_path, content) as output:
        await put_object(client, s3.put_url(f"{key}/file"), output, "the output")
    await put_object(client, s3.put_url(f"{key}/bytes"), content, "the manifest")
    assert s3.get(f"{key}/file") == content
    assert s3.get(f"{key}/bytes") == content


async def test_request_has_a_length_and_no_header_that_a_signature_could_miss(
    client: ObjectClient, tmp_path: Path
) -> None:
    with FaultyServer([answer(200)]) as server:
        with opened(tmp_path, CONTENT) as output:
            await put_object(client, server.url(), output, "the output")
        await put_object(client, server.url(), b"", "the log")
    first, second = server.received
    assert first.body == CONTENT
    assert (first.method, first.target) == ("PUT", "/bucket/key?X-Amz-Signature=5ecr3t")
    assert [r.headers["content-length"] for r in (first, second)] == [str(len(CONTENT)), "0"]
    assert set(first.headers) == set(second.headers) == {"host", "user-agent", "content-length"}


@pytest.mark.parametrize("status", [301, 400, 403, 404])
async def test_refusal_is_reported_and_not_tried_again(status: int, client: ObjectClient) -> None:
    with FaultyServer([answer(status, b"<Code>AccessDenied</Code>")]) as server:
        message = await failure(client, server.url(), b"x")
    assert message.startswith(f"The output could not be uploaded: the storage answered {status} (AccessDenied)")
    assert message.endswith(
        "; the URL may have expired, or was signed for another host or method"
    )  # whatever the status
    assert len(server.received) == 1


async def test_refusal_in_the_middle_of_a_large_body_is_heard(client: ObjectClient, tmp_path: Path) -> None:
    heard = threading.Event()

    def refuse_early(conversation: Conversation) -> None:
        conversation.send(403, b"<Code>RequestExpired</Code>")
        heard.wait(60)  # with megabytes unread: a client that must send them all before it listens waits for ever

    with FaultyServer([refuse_early]) as server, opened(tmp_path, CONTENT * 4) as output:
        assert "answered 403 (RequestExpired)" in await failure(client, server.url(), output)
        heard.set()
    assert len(server.received) == 1


@pytest.mark.parametrize("content", [b"small", b"large" * 100_000], ids=["small", "large"])
async def test_answer_to_a_whole_body_is_never_taken_for_an_early_one(
    content: bytes, client: ObjectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if it is there before the last write returns, as with a store that is faster than our loop."""
    write = StreamWriter.write

    async def write_and_wait_for_the_answer(self: StreamWriter, chunk: bytes) -> None:
        await write(self, chunk)
        await asyncio.to_thread(answered.wait, 5)
        await asyncio.sleep(0.01)  # the loop reads the answer

    answered = threading.Event()

    def answer_and_say_so(conversation: Conversation) -> None:
        answer(200)(conversation)
        answered.set()

    monkeypatch.setattr(StreamWriter, "write", write_and_wait_for_the_answer)
    with FaultyServer([answer_and_say_so]) as server:
        await put_object(client, server.url(), content, "the output")
    assert [request.body for request in server.received] == [content]


async def test_refusal_of_a_server_that_resets_the_connection_at_once_is_heard(
    client: ObjectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "RETRY_DELAYS_SECONDS", ())
    monkeypatch.setattr(upload, "READ_BYTES", 1000)
    begun, ended = threading.Event(), threading.Event()

    def refuse_and_reset(conversation: Conversation) -> None:
        begun.wait(60)
        conversation.send(403, b"<Code>RequestExpired</Code>")
        conversation.reset()
        conversation.connection.close()
        ended.set()

    def wait_for_the_end(_: int) -> None:
        begun.set()
        assert ended.wait(60)  # without a turn of the loop, which therefore has not read the answer yet

    with FaultyServer([refuse_and_reset]) as server, pytest.raises(JobFailed, match=r"answered 403 \(RequestExpired\)"):
        await put_object(client, server.url(), b"x" * 5000, "the output", wait_for_the_end)


async def test_no_text_of_the_library_shows_the_url(client: ObjectClient, monkeypatch: pytest.MonkeyPatch) -> None:
    write = StreamWriter.write

    async def write_to_a_broken_connection(self: StreamWriter, chunk: bytes) -> None:
        assert self.transport is not None
        self.transport.abort()
        await write(self, chunk)

    monkeypatch.setattr(StreamWriter, "write", write_to_a_broken_connection)
    with FaultyServer([answer(200)]) as server:
        assert (await failure(client, server.url(), b"x")).endswith("closed the connection without an answer")


async def test_success_before_the_whole_body_is_a_failure(client: ObjectClient, tmp_path: Path) -> None:
    heard = threading.Event()

    def accept_early(conversation: Conversation) -> None:
        conversation.send(200)
        heard.wait(60)

    with FaultyServer([accept_early]) as server, opened(tmp_path, CONTENT * 4) as output:
        assert re.search(
            rf"answered 200 after \d+ of {output.size_bytes} bytes", await failure(client, server.url(), output)
        )
        heard.set()


async def test_output_that_became_shorter_is_reported_as_unreadable(client: ObjectClient, tmp_path: Path) -> None:
    with FaultyServer([answer(200)]) as server, opened(tmp_path, CONTENT) as output:
        os.truncate(tmp_path / "output", 1 << 20)
        message = await failure(client, server.url(), output, FailureCode.GATEWAY_DISK_FAILED)
    assert "could not be read for the upload: the file ended" in message
    assert len(server.received) <= 1, "tried again; the server may not have read the first attempt"


async def test_server_errors_and_resets_are_survived(client: ObjectClient, tmp_path: Path) -> None:
    def reset_in_the_middle(conversation: Conversation) -> None:
        conversation.connection.recv(100_000)
        conversation.reset()

    behaviours = [answer(503), reset_in_the_middle, answer(500), answer(200)]
    with FaultyServer(behaviours) as server, opened(tmp_path, CONTENT) as output:
        await put_object(client, server.url(), output, "the output")
    assert server.received[-1].body == CONTENT
    assert len(server.received) == 4


async def test_lasting_fault_is_reported(client: ObjectClient) -> None:
    with FaultyServer([reset()]) as server:
        assert "closed the connection" in await failure(client, server.url(), b"x" * 100)
        assert len(server.received) == 4
    assert "Connection refused" in await failure(client, "http://127.0.0.1:1/x?sig=5ecr3t", b"x")


@pytest.mark.parametrize("size_bytes", [20 << 20, 700_000], ids=["much", "no more than what is buffered"])
async def test_server_that_takes_nothing_is_given_up(
    size_bytes: int, hasty_client: ObjectClient, tmp_path: Path
) -> None:
    release = threading.Event()

    def take_nothing(conversation: Conversation) -> None:
        release.wait(60)

    before = open_descriptors()
    with FaultyServer([take_nothing]) as server, opened(tmp_path, bytes(size_bytes)) as output:
        open_before = open_descriptors() - before
        try:
            assert "sent and accepted no byte for 0.3 s" in await failure(hasty_client, server.url(), output)
            await asyncio.sleep(0)
            assert len(open_descriptors() - before) - len(open_before) <= len(server.received)  # the server's end only
        finally:
            release.set()


async def test_cancelled_upload_closes_its_connection_and_leaves_the_output_open(
    client: ObjectClient, tmp_path: Path
) -> None:
    begun, closed = threading.Event(), threading.Event()

    def wait(conversation: Conversation) -> None:
        begun.set()
        if conversation.wait_for_close():
            closed.set()

    with FaultyServer([wait]) as server, opened(tmp_path, CONTENT) as output:
        uploading = asyncio.create_task(put_object(client, server.url(), output, "the output"))
        assert await asyncio.to_thread(begun.wait, 60)
        uploading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await uploading
        assert await asyncio.to_thread(closed.wait, 60)
        assert output.read(1 << 30) == CONTENT


async def test_progress_ends_with_the_size(client: ObjectClient, tmp_path: Path) -> None:
    seen: list[int] = []
    with FaultyServer([answer(200)]) as server, opened(tmp_path, CONTENT) as output:
        await put_object(client, server.url(), output, "the output", seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == len(CONTENT)


@pytest.mark.parametrize(
    ("query", "is_sent"),
    [
        ("X-Amz-SignedHeaders=host&X-Amz-Signature=5ecr3t", True),
        ("X-Amz-SignedHeaders=content-type%3Bhost&X-Amz-Signature=5ecr3t", False),
        ("AWSAccessKeyId=test&Signature=5ecr3t", False),  # version 2 signs whatever type is sent
        ("sig=5ecr3t", False),
    ],
)
async def test_content_type_is_sent_only_where_the_signature_allows_it(
    client: ObjectClient, query: str, is_sent: bool
) -> None:
    with FaultyServer([answer(200)]) as server:
        url = f"{server.url().partition('?')[0]}?{query}"
        await put_object(client, url, b"x", "the output", content_type="text/csv")
    assert server.received[0].headers.get("content-type") == ("text/csv" if is_sent else None)


async def test_type_is_taken_by_a_server_that_checks_signatures(s3: S3Server, client: ObjectClient) -> None:
    key = s3.new_prefix()
    await put_object(client, s3.put_url(key), b"{}", "the output", content_type="application/x-ndjson")
    assert s3.client.head_object(Bucket=BUCKET, Key=key)["ContentType"] == "application/x-ndjson"
