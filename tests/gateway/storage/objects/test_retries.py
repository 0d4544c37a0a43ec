"""A transfer is tried again where that can help, as long as its bounds allow, and when the storage asks for it."""

from __future__ import annotations

import asyncio
import ssl
import time
from datetime import UTC, datetime

import pytest
import trustme

from gateway.core.errors import JobFailed
from gateway.storage import ObjectClient, put_object
from gateway.storage.objects import retries
from gateway.storage.objects.errors import StatusError, StorageError
from gateway.storage.objects.retries import RetryPolicy
from gateway.storage.objects.target import expiry_of
from tests.gateway.storage.faulty_server import FaultyServer, answer, reset

EXPIRED = b"<Error><Code>AccessDenied</Code></Error>"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record the waits between attempts, and do not wait."""
    waited: list[float] = []
    turn = asyncio.sleep

    async def sleep(seconds: float) -> None:
        if seconds:
            waited.append(seconds)
        await turn(0)

    monkeypatch.setattr(retries.asyncio, "sleep", sleep)
    return waited


async def failure(client: ObjectClient, url: str) -> JobFailed:
    with pytest.raises(JobFailed) as caught:
        await put_object(client, url, b"x", "the output", retries=RetryPolicy(60))
    return caught.value


@pytest.mark.parametrize(
    ("status", "body", "attempts"),
    [
        (301, b"", 1),
        (501, b"<Error><Code>NotImplemented</Code></Error>", 1),
        (403, EXPIRED, 1),
        (404, b"", 1),
        (400, EXPIRED, 1),
        (400, b"<Error><Code>RequestTimeout</Code></Error>", 4),
        (408, b"", 4),
        (429, b"", 4),
        (500, b"", 4),
        (503, b"<Error><Code>SlowDown</Code></Error>", 4),
    ],
)
async def test_failure_is_retryable_only_where_the_transfer_was_tried_again(
    status: int, body: bytes, attempts: int, client: ObjectClient, waits: list[float]
) -> None:
    with FaultyServer([answer(status, body)]) as server:
        failed = await failure(client, server.url())
    # by waits and not by requests received: an attempt may meet a kept connection that the server is closing
    assert (len(waits) + 1, failed.retryable) == (attempts, attempts > 1)


async def test_broken_connections_may_pass_and_untrusted_certificates_may_not(
    client: ObjectClient, waits: list[float]
) -> None:
    with FaultyServer([reset()]) as server:
        assert (await failure(client, server.url())).retryable
    assert (await failure(client, "http://127.0.0.1:1/x")).retryable
    waits.clear()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(tls)
    with FaultyServer([answer(200)], tls=tls) as server:
        assert not (await failure(client, server.url(host="localhost"))).retryable
    assert waits == []


@pytest.mark.parametrize(
    ("asked", "waited"),
    [
        ("7", 7),
        ("3600", retries.LONGEST_RETRY_AFTER_SECONDS),
        ("soon", 0.1),
        ("Thu, 01 Jan 99999999999 00:00:00 GMT", 0.1),
    ],
)
async def test_wait_that_the_storage_asks_for_is_kept_within_a_bound(
    asked: str, waited: float, client: ObjectClient, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries.random, "uniform", lambda _low, _high: 1.0)
    with FaultyServer([answer(429, headers=f"Retry-After: {asked}\r\nConnection: close\r\n"), answer(200)]) as server:
        await put_object(client, server.url(), b"x", "the output", retries=RetryPolicy(60))
    assert waits == [waited]


def test_date_of_retry_after_is_understood() -> None:
    assert retries._retry_after("Fri, 31 Dec 1999 23:59:59 GMT") == 0
    assert retries._retry_after("Fri, 31 Dec 9999 23:59:59 GMT") > 1e9


async def test_transfer_is_tried_again_until_its_deadline(waits: list[float]) -> None:
    attempts, counted = 0, 0

    async def attempt() -> None:
        nonlocal attempts
        attempts += 1
        if attempts < 20:
            raise StorageError("no")

    def count() -> None:
        nonlocal counted
        counted += 1

    await RetryPolicy(1, time.monotonic() + 60, count).run(attempt)
    assert (attempts, counted, len(waits)) == (20, 19, 19)
    assert all(wait <= retries.LATER_DELAY_SECONDS * 1.25 for wait in waits)


@pytest.mark.parametrize("error", [StorageError("no"), StatusError(503, "", "host", retry_after_seconds=1000)])
async def test_no_attempt_begins_after_the_deadline(error: StorageError) -> None:
    attempts = 0

    async def attempt() -> None:
        nonlocal attempts
        attempts += 1
        raise error

    async with asyncio.timeout(60):
        with pytest.raises(StorageError):
            await RetryPolicy(1, time.monotonic()).run(attempt)
    assert attempts == 1


@pytest.mark.parametrize("host", ["http://127.0.0.1:1", "http://nosuch.invalid"])
async def test_failure_after_the_expiry_of_the_url_is_final(
    host: str, client: ObjectClient, waits: list[float]
) -> None:
    failed = await failure(client, f"{host}/x?X-Amz-Date=20200101T000000Z&X-Amz-Expires=60")
    assert (waits, failed.retryable) == ([], False)
    assert failed.message.endswith("; its URL has expired")
    assert (await failure(client, f"{host}/x?X-Amz-Date=90200101T000000Z&X-Amz-Expires=60")).retryable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://s3/x?X-Amz-Date=20260101T000000Z&X-Amz-Expires=60", datetime(2026, 1, 1, 0, 1, tzinfo=UTC)),
        ("http://s3/x?x-amz-expires=0&x-amz-date=20260101T000000Z", datetime(2026, 1, 1, tzinfo=UTC)),
        ("http://s3/x", None),
        ("http://s3/x?X-Amz-Date=yesterday&X-Amz-Expires=60", None),
        ("http://s3/x?X-Amz-Date=20260101T000000Z&X-Amz-Expires=-1", None),
        ("http://s3/x?X-Amz-Date=99991231T235959Z&X-Amz-Expires=999999999", None),
    ],
)
def test_the_expiry_of_a_url_is_read_where_it_says_so(text: str, expected: datetime | None) -> None:
    assert expiry_of(text) == expected
