"""Results reach presigned URLs exactly once and whole, in the one way that S3 takes them."""

from __future__ import annotations

import asyncio
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.errors import FailureCode, JobFailed
from gateway.settings import Settings
from gateway.storage import transfer
from gateway.storage.artifacts import OpenOutput, open_output
from gateway.storage.exchange import Exchange
from gateway.storage.upload import put_object
from tests.gateway.storage.faulty_server import Conversation, FaultyServer, answer, reset
from tests.s3 import BUCKET, S3Server

CONTENT = os.urandom(1 << 20) * 5 + b"tail"


@pytest.fixture(autouse=True)
def _short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "RETRY_DELAYS_SECONDS", (0.01, 0.02, 0.03))


def opened(directory: Path, content: bytes) -> OpenOutput:
    path = directory / "output"
    path.write_bytes(content)
    return open_output(path, owner_uid=None, max_bytes=1 << 30)


async def failure(url: str, body: OpenOutput | bytes, settings: Settings) -> str:
    with pytest.raises(JobFailed) as caught:
        await put_object(url, body, settings, "the output")
    assert caught.value.code is FailureCode.OUTPUT_UPLOAD_FAILED
    assert "5ecr3t" not in caught.value.message
    assert "X-Amz" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("content", [CONTENT, b"", b"x"], ids=["large", "empty", "one byte"])
async def test_object_arrives_at_a_server_that_checks_signatures(
    content: bytes, s3: S3Server, settings: Settings, tmp_path: Path
) -> None:
    key = s3.new_prefix()
    with opened(tmp_path, content) as output:
        await put_object(s3.put_url(f"{key}/file"), output, settings, "the output")
    await put_object(s3.put_url(f"{key}/bytes"), content, settings, "the manifest")
    assert s3.get(f"{key}/file") == content
    assert s3.get(f"{key}/bytes") == content


async def test_request_has_a_length_and_no_header_that_a_signature_could_miss(
    settings: Settings, tmp_path: Path
) -> None:
    with FaultyServer([answer(200)]) as server:
        with opened(tmp_path, CONTENT) as output:
            await put_object(server.url(), output, settings, "the output")
        await put_object(server.url(), b"", settings, "the log")
    first, second = server.received
    assert first.body == CONTENT
    assert (first.method, first.target) == ("PUT", "/bucket/key?X-Amz-Signature=5ecr3t")
    assert [r.headers["content-length"] for r in (first, second)] == [str(len(CONTENT)), "0"]
    assert set(first.headers) == set(second.headers) == {"host", "user-agent", "connection", "content-length"}


@pytest.mark.parametrize("status", [301, 400, 403, 404])
async def test_refusal_is_told_and_not_tried_again(status: int, settings: Settings) -> None:
    with FaultyServer([answer(status, b"<Code>AccessDenied</Code>")]) as server:
        message = await failure(server.url(), b"x", settings)
    assert message.startswith(f"The output could not be uploaded: the storage answered {status} (AccessDenied)")
    assert message.endswith("; the URL may have expired, or was signed for another host")  # whatever the status
    assert len(server.received) == 1


async def test_refusal_in_the_middle_of_a_large_body_is_heard(settings: Settings, tmp_path: Path) -> None:
    heard = threading.Event()

    def refuse_early(conversation: Conversation) -> None:
        conversation.send(403, b"<Code>RequestExpired</Code>")
        heard.wait(10)  # with megabytes unread: whoever must send them all before it listens waits for ever

    with FaultyServer([refuse_early]) as server, opened(tmp_path, CONTENT * 4) as output:
        assert "answered 403 (RequestExpired)" in await failure(server.url(), output, settings)
        heard.set()
    assert len(server.received) == 1


@pytest.mark.parametrize("content", [b"small", b"large" * 100_000], ids=["small", "large"])
async def test_answer_to_a_whole_body_is_never_taken_for_an_early_one(
    content: bytes, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if it is there before the last piece counts as sent, as with a store that is faster than our loop."""
    first_of = Exchange._first_of

    async def first_of_and_the_answer(self: Exchange, *futures: asyncio.Future[None]) -> None:
        await first_of(self, *futures)
        if self._is_headed and not self._unsent_bytes:
            await asyncio.wait({self._reader.headed}, timeout=0.2)  # the headers of a large body are not answered

    monkeypatch.setattr(Exchange, "_first_of", first_of_and_the_answer)
    with FaultyServer([answer(200)]) as server:
        await put_object(server.url(), content, settings, "the output")
    assert [request.body for request in server.received] == [content]


async def test_server_errors_and_resets_are_survived(settings: Settings, tmp_path: Path) -> None:
    def reset_in_the_middle(conversation: Conversation) -> None:
        conversation.connection.recv(100_000)
        conversation.reset()

    behaviours = [answer(503), reset_in_the_middle, answer(500), answer(200)]
    with FaultyServer(behaviours) as server, opened(tmp_path, CONTENT) as output:
        await put_object(server.url(), output, settings, "the output")
    assert server.received[-1].body == CONTENT
    assert len(server.received) == 4


async def test_lasting_fault_is_told(settings: Settings) -> None:
    with FaultyServer([reset()]) as server:
        assert "closed the connection" in await failure(server.url(), b"x" * 100, settings)
        assert len(server.received) == 4
    assert "Connection refused" in await failure("http://127.0.0.1:1/x?sig=5ecr3t", b"x", settings)


async def test_server_that_takes_nothing_is_given_up(settings: Settings, tmp_path: Path) -> None:
    settings = replace(settings, storage_stall_seconds=0.3)
    release = threading.Event()

    def take_nothing(conversation: Conversation) -> None:
        release.wait(5)

    with FaultyServer([take_nothing]) as server, opened(tmp_path, os.urandom(1 << 20) * 20) as output:
        try:
            assert "sent and took no byte for 0.3 s" in await failure(server.url(), output, settings)
        finally:
            release.set()


async def test_cancelled_upload_closes_its_connection_and_leaves_the_output_open(
    settings: Settings, tmp_path: Path
) -> None:
    begun, closed = threading.Event(), threading.Event()

    def wait(conversation: Conversation) -> None:
        begun.set()
        if conversation.wait_for_close():
            closed.set()

    with FaultyServer([wait]) as server, opened(tmp_path, CONTENT) as output:
        uploading = asyncio.create_task(put_object(server.url(), output, settings, "the output"))
        assert await asyncio.to_thread(begun.wait, 5)
        uploading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await uploading
        assert await asyncio.to_thread(closed.wait, 10)
        assert output.read(1 << 30) == CONTENT


async def test_progress_ends_with_the_size(settings: Settings, tmp_path: Path) -> None:
    seen: list[int] = []
    with FaultyServer([answer(200)]) as server, opened(tmp_path, CONTENT) as output:
        await put_object(server.url(), output, settings, "the output", seen.append)
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
async def test_type_is_told_where_no_signature_can_miss_it(settings: Settings, query: str, is_sent: bool) -> None:
    with FaultyServer([answer(200)]) as server:
        url = f"{server.url().partition('?')[0]}?{query}"
        await put_object(url, b"x", settings, "the output", content_type="text/csv")
    assert server.received[0].headers.get("content-type") == ("text/csv" if is_sent else None)


async def test_type_is_taken_by_a_server_that_checks_signatures(s3: S3Server, settings: Settings) -> None:
    key = s3.new_prefix()
    await put_object(s3.put_url(key), b"{}", settings, "the output", content_type="application/x-ndjson")
    assert s3.client.head_object(Bucket=BUCKET, Key=key)["ContentType"] == "application/x-ndjson"
