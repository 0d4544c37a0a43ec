"""Other members are asked for their jobs while somebody watches, and not longer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
from tornado.testing import bind_unused_port
from tornado.web import Application

from gateway.core.errors import MemberDown
from gateway.core.job import Job, KeptDelivery
from gateway.core.settings import Settings
from gateway.http.access.peer_connection import answer_peer
from gateway.http.application import make_app
from gateway.http.server import make_server
from gateway.http.streams import other_members, stream_batches
from gateway.http.streams.other_members import OtherLog, OtherMembers
from gateway.jobs.feed import JobFeed, OtherJob
from gateway.jobs.peers import PeerPart, PeerRequest
from gateway.jobs.service import JobService
from gateway.storage.outputs.kept_results import KeptResultStore
from gateway.telemetry.metrics import Metrics
from tests.gateway.http.harness import ScriptedRunner, eventually, head, raw

JOB = {"job_id": "a" * 32, "token_name": None, "state": "running"}


class FakePeers:
    """Another member, ``b``, that answers each question with the next of some texts, and then not any more.

    The third question waits until `goes_on` is set.
    """

    name = "a"
    parcels = None

    def __init__(self, *answers: bytes) -> None:
        self.answers: Iterator[bytes] = iter(answers)
        self.asked = 0
        self.is_waiting = asyncio.Event()
        self.goes_on = asyncio.Event()

    def others(self) -> list[str]:
        return ["b"]

    def silent(self) -> list[str]:
        return ["gone"]

    async def ask(self, peer: str, request: PeerRequest) -> AsyncGenerator[PeerPart]:
        self.asked += 1
        if self.asked == 3:
            await self.goes_on.wait()
        answer = next(self.answers, None)
        if answer is None:
            self.is_waiting.set()
            await asyncio.Event().wait()
        elif not answer:
            raise MemberDown("no answer")
        yield PeerPart(answer or b"", is_last=True)

    async def owner_of_job(self, job_id: str) -> None: ...
    async def owner_of_request(self, *job: object) -> None: ...
    async def serve(self, answer: object) -> None: ...


def told(*jobs: dict[str, object], event: str = "snapshot") -> bytes:
    return json.dumps({"id": "0123456789ab-1-0", "event": event, "jobs": jobs}).encode()


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PACE_SECONDS", "RETRY_SECONDS", "LINGER_SECONDS"):
        monkeypatch.setattr(other_members, name, 0.0)


async def test_nobody_is_asked_before_and_after_somebody_watches() -> None:
    feed, peers = JobFeed(list), FakePeers(told(JOB))
    peers.goes_on.set()
    others = OtherMembers(feed, peers)
    await asyncio.sleep(0)
    assert peers.asked == 0
    with feed.watch(), others.watched():
        await peers.is_waiting.wait()
        assert [job.token_name for job in feed.live()] == [None]
        assert others.missing() == ["gone"]
    assert await eventually(lambda: not feed.live())
    asked, tasks = peers.asked, [task.get_name() for task in asyncio.all_tasks()]
    assert not [name for name in tasks if name in ("look for members", "jobs of b")]
    await asyncio.sleep(0.05)
    assert peers.asked == asked


@pytest.mark.parametrize(
    "answer", [b"", b"no json", b"[]", b"{}", b'{"jobs": []}', told({"job_id": 1}), b" " * 2_000_000]
)
async def test_a_member_without_an_answer_is_named_until_it_has_one(
    answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(other_members, "ANSWER_BYTES", 1_000_000)
    feed, peers = JobFeed(list), FakePeers(told(JOB), answer, told(JOB, event="changes"))
    others = OtherMembers(feed, peers)
    with feed.watch(), others.watched():
        assert await eventually(lambda: others.missing() == ["b", "gone"])
        assert feed.live() == []
        peers.goes_on.set()
        assert await eventually(lambda: others.missing() == ["gone"])
        assert len(feed.live()) == 1


async def test_a_snapshot_replaces_what_a_member_told_before() -> None:
    feed, peers = JobFeed(list), FakePeers(told(JOB), told(JOB | {"job_id": "b" * 32}))
    peers.goes_on.set()
    with feed.watch(), OtherMembers(feed, peers).watched():
        await peers.is_waiting.wait()
        assert [job.job_id for job in feed.live()] == ["b" * 32]  # type: ignore[union-attr]


async def test_lines_are_asked_for_until_the_job_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_members, "LINES_SECONDS", 0.0)
    lines, asked, woken = iter("abc"), list[int](), asyncio.Event()

    async def ask(first: int) -> AsyncGenerator[PeerPart]:
        asked.append(first)
        if first == 1 and asked.count(first) == 1:
            raise MemberDown("no answer")
        if first == 1 and asked.count(first) == 2:
            yield PeerPart(b'{"code": "internal"}', is_last=True, status=500)
            return
        state = "finished" if first == 2 else "running"
        answer = {"events": [{"message": next(lines)}], "next_offset": first + 1, "state": state}
        yield PeerPart(json.dumps(answer).encode(), is_last=True)

    log = OtherLog(0, ask)
    assert await log.look()
    following = asyncio.create_task(log.follow(woken.set))
    seen = []
    while len(seen) < 3:
        found, count = log.json_lines()
        seen += [json.loads(line)["message"] for line in found]
        assert count == len(seen)
        if not found:
            async with asyncio.timeout(60):
                await woken.wait()
            woken.clear()
    async with asyncio.timeout(60):
        await following
    assert (seen, asked) == (["a", "b", "c"], [0, 1, 1, 1, 2])


async def test_a_log_that_the_member_does_not_know_is_over() -> None:
    async def ask(first: int) -> AsyncGenerator[PeerPart]:
        yield PeerPart(b"{}", is_last=True, status=404)

    log = OtherLog(0, ask)
    assert not await log.look()
    async with asyncio.timeout(60):
        await log.follow(lambda: None)


class Linked:
    """The others of a member: one in this process, and ``third`` while `has_third`, which has one job and no news."""

    parcels = None

    def __init__(self, name: str, other: str) -> None:
        self.name, self.other = name, other
        self.app: Application
        self.has_third = True
        self.has_told = False
        self.events: list[str] = []

    def others(self) -> list[str]:
        return [self.other, *(["third"] if self.has_third else [])]

    def silent(self) -> list[str]:
        return []

    async def ask(self, peer: str, request: PeerRequest) -> AsyncGenerator[PeerPart]:
        if peer == "third":
            if self.has_told:
                await asyncio.Event().wait()
            self.has_told = True
            yield PeerPart(told(JOB), is_last=True)
            return
        answer = answer_peer(self.app, request)
        try:
            part = await answer.next_part()
        finally:
            answer.close()
        if request.uri == "/v1/stream":
            self.events.append(json.loads(part.data)["event"])
        yield part

    async def owner_of_job(self, job_id: str) -> None: ...
    async def owner_of_request(self, *job: object) -> None: ...
    async def serve(self, answer: object) -> None: ...


def member(directory: Path, peers: FakePeers | Linked) -> JobService:
    directory.mkdir()
    settings = Settings(state_dir=directory)
    return JobService(settings, ScriptedRunner(directory, KeptResultStore(settings), 2), peers=peers)


async def hold(service: JobService, request_id: str = "one") -> str:
    """Return the id of a job that runs until its service is closed."""
    return (await service.submit(Job(request_id, "hold", 60, KeptDelivery()))).execution_id


async def test_two_members_that_watch_each_other_go_on_when_a_third_one_vanishes(tmp_path: Path) -> None:
    links = Linked("a", "b"), Linked("b", "a")

    def seen(service: JobService) -> set[str]:
        return {job.job_id if isinstance(job, OtherJob) else job.execution_id for job in service.feed.live()}

    async with aclosing(member(tmp_path / "a", links[0])) as a, aclosing(member(tmp_path / "b", links[1])) as b:
        links[0].app, links[1].app = make_app(b, b.settings), make_app(a, a.settings)
        others = [OtherMembers(service.feed, link) for service, link in zip((a, b), links, strict=True)]
        with a.feed.watch(), b.feed.watch(), others[0].watched(), others[1].watched():
            known = {"a" * 32}
            for service in (a, b):
                known.add(await hold(service))
            assert await eventually(lambda: seen(a) == seen(b) == known)
            before = [len(link.events) for link in links]
            for link in links:
                link.has_third = False
            known.remove("a" * 32)
            assert await eventually(lambda: seen(a) == seen(b) == known)
            for service in (a, b):
                known.add(await hold(service, "more"))
                assert await eventually(lambda: seen(a) == seen(b) == known)
        for link, count in zip(links, before, strict=True):
            assert set(link.events[count:]) == {"changes"}


async def test_a_member_with_more_jobs_than_an_answer_has_room_for_is_not_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = Linked("a", "b"), Linked("b", "a")
    links[0].has_third = False
    async with aclosing(member(tmp_path / "a", links[0])) as a, aclosing(member(tmp_path / "b", links[1])) as b:
        links[0].app = make_app(b, b.settings)
        ids = [await hold(b, f"{number}") for number in range(4)]
        monkeypatch.setattr(stream_batches, "MEMBER_BYTES", 1500)
        others = OtherMembers(a.feed, links[0])

        def seen() -> list[str]:
            return [job.job_id for job in a.feed.live() if isinstance(job, OtherJob)]

        with a.feed.watch(), others.watched():
            assert await eventually(seen)
            assert seen() == ids[: len(seen())]
            assert len(seen()) < len(ids)
            assert others.missing() == []
            assert (a.feed.watchers, b.feed.watchers) == (1, 0)  # questions take no place of a client


@asynccontextmanager
async def served(service: JobService) -> AsyncIterator[int]:
    """Yield the port at which a member answers over HTTP."""
    metrics = Metrics()
    server = make_server(make_app(service, service.settings, metrics), service.settings, metrics)
    listener, port = bind_unused_port()
    server.add_socket(listener)
    try:
        yield port
    finally:
        server.stop()
        await server.close_all_connections()


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/logs", "/logs"])
async def test_head_asks_the_other_members_as_get_does(path: str, tmp_path: Path) -> None:
    links = Linked("a", "b"), Linked("b", "a")
    async with aclosing(member(tmp_path / "a", links[0])) as a, aclosing(member(tmp_path / "b", links[1])) as b:
        links[0].has_third = False
        links[0].app = make_app(b, b.settings)
        await hold(b)
        async with served(a) as port:
            answers = [await raw(port, head(m, path, "Connection: close", token=None)) for m in ("GET", "HEAD")]
        assert [answer.status for answer in answers] == [200, 200]
        assert b'"one"' in answers[0].data


@pytest.mark.parametrize("answer", [b"", b"no json", b"[]", b"{}", b"[" * 100_000], ids=len)
async def test_a_member_that_lists_no_jobs_is_missing_in_the_history(answer: bytes, tmp_path: Path) -> None:
    peers = FakePeers(answer)
    async with aclosing(member(tmp_path / "a", peers)) as a, served(a) as port:
        listed = await raw(port, head("GET", "/v1/jobs", "Connection: close", token=None))
    assert (listed.status, listed.body) == (200, {"jobs": [], "cursor": None, "missing_members": ["b", "gone"]})
