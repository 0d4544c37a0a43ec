"""``GET /v1/stream``, read as a browser reads it: over one connection that stays open."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest

from gateway.http import server
from gateway.http.handlers import stream
from gateway.jobs import feed
from gateway.jobs.service import JobService
from tests.gateway.http.harness import FETCHED, TOKEN, Caller, ScriptedRunner, body, eventually, head, raw

NO_TOKEN = pytest.mark.parametrize("settings", [{"auth_token": ""}], indirect=True)


class Message(NamedTuple):
    """One event of the stream."""

    name: str
    id: str
    data: dict[str, Any]


class Stream:
    """Reads an open stream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._buffer = b""

    async def status(self) -> int:
        start = await self._reader.readuntil(b"\r\n\r\n")
        return int(start.split(b" ", 2)[1])

    async def next(self) -> Message:
        """Return the next event; comments are skipped."""
        while True:
            while b"\n\n" not in self._buffer:
                size = int(await self._reader.readline(), 16)  # chunked transfer coding
                assert size, "the stream has ended"
                self._buffer += (await self._reader.readexactly(size + 2))[:-2]
            text, _, self._buffer = self._buffer.partition(b"\n\n")
            fields = dict(line.split(": ", 1) for line in text.decode().split("\n") if not line.startswith(":"))
            if fields:
                return Message(fields["event"], fields["id"], json.loads(fields["data"]))

    async def until(self, name: str, **members: Any) -> Message:
        """Return the next event of this name that has a job with these members."""
        while True:
            message = await self.next()
            if message.name != name:
                continue
            if not members or any(members.items() <= each.items() for each in message.data.get("jobs", [])):
                return message

    def close(self) -> None:
        self._writer.transport.abort()


@asynccontextmanager
async def opened(port: int, query: str = "", *lines: str, token: str | None = TOKEN) -> AsyncIterator[Stream]:
    """Open a stream; the status must be 200."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head("GET", f"/v1/stream{query}", *lines, token=token))
    found = Stream(reader, writer)
    try:
        assert await found.status() == 200
        yield found
    finally:
        found.close()


async def test_a_job_is_seen_from_its_acceptance_to_its_end(port: int, call: Caller, runner: ScriptedRunner) -> None:
    async with opened(port) as watched:
        first = await watched.next()
        assert (first.name, first.data["jobs"]) == ("snapshot", [])
        assert (first.data["gateway"]["slots"], first.data["gateway"]["busy_slots"]) == (1, 0)
        running = asyncio.ensure_future(call.execute("hold", "one", label="daily"))
        await runner.begun.wait()
        await watched.until("changes", request_id="one", state="running", label="daily")
        waiting = asyncio.ensure_future(call.execute("user_error", "two"))
        queued = await watched.until("changes", request_id="two", state="queued")
        assert "one" not in {job["request_id"] for job in queued.data["jobs"]}, "only what has changed"
        runner.release.set()
        ended = await watched.until("changes", request_id="two", state="finished", code="user_error")
        assert next(job["error"] for job in ended.data["jobs"] if job["request_id"] == "two")
        await asyncio.gather(running, waiting)


async def test_a_stream_that_begins_late_has_the_live_jobs(port: int, call: Caller, runner: ScriptedRunner) -> None:
    running = asyncio.ensure_future(call.execute("hold", 1))
    await runner.begun.wait()
    async with opened(port) as watched:
        (job,) = (await watched.next()).data["jobs"]
        assert (job["request_id"], job["state"]) == (1, "running")
        assert job["progress"] == [FETCHED]
    runner.release.set()
    await running


async def test_lines_come_only_of_the_job_that_is_looked_at(
    port: int, call: Caller, runner: ScriptedRunner, service: JobService
) -> None:
    running = asyncio.ensure_future(call.execute("hold", 1))
    await runner.begun.wait()
    record = service.running()[0]
    async with opened(port, f"?job={record.execution_id}") as looking, opened(port) as watching:
        begin = await looking.until("log")
        assert [line["message"] for line in begin.data["events"]] == ["begin"]
        record.log.line("stderr", "a warning")
        more = await looking.until("log")
        assert (more.data["offset"], more.data["next_offset"]) == (1, 2)
        assert [(line["stream"], line["message"]) for line in more.data["events"]] == [("stderr", "a warning")]
        runner.release.set()
        await running
        names = []
        message = await watching.next()
        while not any(job["state"] == "finished" for job in message.data.get("jobs", [])):
            names.append(message.name)
            message = await watching.next()
        assert "log" not in names


async def test_the_log_of_a_finished_job_is_streamed_as_well(port: int, call: Caller) -> None:
    job_id = body(await call.execute("ok", 1))["execution_id"]
    async with opened(port, f"?job={job_id}") as looking:
        assert [line["message"] for line in (await looking.until("log")).data["events"]] == ["begin", "end"]


async def test_a_lost_connection_continues_where_it_was(
    port: int, call: Caller, runner: ScriptedRunner, service: JobService
) -> None:
    running = asyncio.ensure_future(call.execute("hold", 1))
    await runner.begun.wait()
    record = service.running()[0]
    query = f"?job={record.execution_id}"
    async with opened(port, query) as looking:
        last = await looking.until("log")
    assert await eventually(lambda: not service.feed.watchers)
    record.log.line("stdout", "missed")
    runner.release.set()
    await running
    async with opened(port, query, f"Last-Event-ID: {last.id}") as again:
        changes = await again.next()
        assert (changes.name, [job["state"] for job in changes.data["jobs"]]) == ("changes", ["finished"])
        assert [line["message"] for line in (await again.until("log")).data["events"]] == ["missed", "end"]


@pytest.mark.parametrize("last", ["0123456789ab-3-0", "nonsense", "-1-1-1"])
async def test_a_place_of_another_process_is_the_beginning(port: int, call: Caller, last: str) -> None:
    job_id = body(await call.execute("ok", 1))["execution_id"]
    async with opened(port, f"?job={job_id}", f"Last-Event-ID: {last}") as watched:
        assert (await watched.next()).name == "snapshot"
        assert len((await watched.until("log")).data["events"]) == 2


async def test_a_client_that_missed_too_much_begins_anew(
    port: int, call: Caller, service: JobService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "KEPT_FINISHED", 2)
    async with opened(port) as watched:
        last = await watched.next()
    for number in range(4):
        await call.execute("ok", number)
    async with opened(port, "", f"Last-Event-ID: {last.id}") as watched:
        assert (await watched.next()).name == "snapshot"


async def test_a_reader_that_stops_reading_holds_no_growing_memory_and_is_dropped(
    port: int, call: Caller, runner: ScriptedRunner, service: JobService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "STALL_SECONDS", 0.3)
    running = asyncio.ensure_future(call.execute("hold", 1))
    await runner.begun.wait()
    record = service.running()[0]
    record.log.cap_bytes = 64 << 20
    async with opened(port, f"?job={record.execution_id}"):
        for _ in range(400):
            record.log.line("stdout", "x" * 60_000)
        assert await eventually(lambda: not service.feed.watchers)
    runner.release.set()
    await running


async def test_nothing_is_followed_when_no_page_is_open(
    port: int, call: Caller, service: JobService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "LINGER_SECONDS", 0.05)
    await call.execute("ok", 1)
    assert service.feed.number == 0
    async with opened(port) as watched:
        await watched.next()
        await call.execute("ok", 2)
        await watched.until("changes", request_id=2, state="finished")
    followed, before = service.feed, service.feed.number
    assert await eventually(lambda: not followed._is_on)
    await call.execute("ok", 3)
    assert (service.feed.number, service.feed._followed) == (before, {})


async def test_streams_are_bounded(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MAX_STREAMS", 1)
    async with opened(port) as first:
        await first.next()
        refused = await raw(port, head("GET", "/v1/stream", "Connection: close"))
    assert (refused.status, refused.body["code"], refused.body["retryable"]) == (503, "too_many_connections", True)


async def test_streams_that_find_their_job_at_the_same_time_are_bounded(
    port: int, call: Caller, service: JobService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "MAX_STREAMS", 1)
    job_id = body(await call.execute("ok", 1))["execution_id"]
    find, both = service.get, asyncio.Barrier(2)

    async def get(*asked: Any) -> Any:
        await both.wait()
        return await find(*asked)

    monkeypatch.setattr(service, "get", get)
    connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
    for _, writer in connections:
        writer.write(head("GET", f"/v1/stream?job={job_id}"))
    async with asyncio.timeout(60):
        statuses = [await Stream(*connection).status() for connection in connections]
    for _, writer in connections:
        writer.transport.abort()
    assert sorted(statuses) == [200, 503]


async def test_a_stream_needs_the_token(port: int) -> None:
    assert (await raw(port, head("GET", "/v1/stream", "Connection: close", token=None))).status == 401
    assert (await raw(port, head("GET", "/v1/stream", "Connection: close", token="wrong"))).status == 401
    assert (await raw(port, head("GET", "/v1/stream?job=nosuch", "Connection: close"))).status == 404


@NO_TOKEN
async def test_without_a_token_other_pages_get_no_stream(port: int) -> None:
    for lines in (("Sec-Fetch-Site: cross-site",), ("Sec-Fetch-Site: same-site",)):
        assert (await raw(port, head("GET", "/v1/stream", "Connection: close", *lines, token=None))).status == 403
    rebound = head("GET", "/v1/stream", "Connection: close", token=None).replace(
        b"Host: 127.0.0.1", b"Host: evil.example"
    )
    assert (await raw(port, rebound)).status == 403
    async with opened(port, "", "Sec-Fetch-Site: same-origin", token=None) as own:
        assert (await own.next()).name == "snapshot"
