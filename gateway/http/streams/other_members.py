"""Jobs of the other members of the cluster, and the log of a job that one of them keeps, for a stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from gateway.core.errors import MemberDown
from gateway.core.job import JobState
from gateway.http.access.tokens import TokenKind
from gateway.jobs.feed import LINGER_SECONDS, OtherJob
from gateway.jobs.peers import PeerPart, PeerRequest, Peers

if TYPE_CHECKING:
    from gateway.jobs.feed import JobFeed

#: Time between two events of one stream: changes in between are sent as one. With more streams it grows, up to twice
#: as long for `gateway.http.streams.stream_batches.MANY_STREAMS` and more.
PACE_SECONDS = 0.1

#: How long a member waits for a change of its jobs before it answers; shorter than its time for an answer.
WAIT_SECONDS = 5.0

#: Pause before a member that did not answer is asked again, and between two searches for new members.
RETRY_SECONDS = 1.0

#: Time between two requests for the lines of a log.
LINES_SECONDS = 0.3

#: Largest answer that is read: a live job takes about 1 kB, and a log is bounded by its member.
ANSWER_BYTES = 16_000_000


class OtherMembers:
    """Keeps the jobs of the other members in the feed of this one while a stream is open, and for a while after.

    Each member gets one request at a time, which it answers when a job of its own has changed.

    Parameters
    ----------
    feed : JobFeed
    peers : Peers or None
        None without a cluster.
    """

    def __init__(self, feed: JobFeed, peers: Peers | None) -> None:
        self._feed = feed
        self._peers = peers
        self._streams = 0
        self._ending: asyncio.TimerHandle | None = None
        self._looking: asyncio.Task[None] | None = None
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._missing: set[str] = set()

    def missing(self) -> list[str] | None:
        """Return the names of the members that do not answer; None without a cluster."""
        return None if self._peers is None else sorted(self._missing.union(self._peers.silent()))

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Ask the other members during a ``with`` statement."""
        if self._peers is None:
            yield
            return
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None
        self._streams += 1
        if self._looking is None:
            self._looking = asyncio.create_task(self._look(self._peers), name="look for members")
        try:
            yield
        finally:
            self._streams -= 1
            if not self._streams:
                self._ending = asyncio.get_running_loop().call_later(LINGER_SECONDS, self._stop)

    def _stop(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
        self._looking = self._ending = None
        for name in tuple(self._asking):
            self._leave(name)

    async def _look(self, peers: Peers) -> None:
        while True:
            there = set(peers.others())
            for name in self._asking.keys() - there:
                self._leave(name)
            for name in there - self._asking.keys():
                self._asking[name] = asyncio.create_task(self._follow(peers, name), name=f"jobs of {name}")
            await asyncio.sleep(RETRY_SECONDS)

    def _leave(self, name: str) -> None:
        self._asking.pop(name).cancel()
        self._missing.discard(name)
        self._feed.forget(name)

    async def _follow(self, peers: Peers, name: str) -> None:
        place = ""
        while True:
            headers = {"Last-Event-ID": place}
            asked = PeerRequest("GET", "/v1/stream", headers, b"", None, int(TokenKind.READ), peers.name)
            try:
                _, answer = await read_answer(peers.ask(name, asked), name)
                jobs = [_job(name, each) for each in answer["jobs"]]
                event, next_place = answer["event"], answer["id"]
            except (MemberDown, KeyError, TypeError):
                self._missing.add(name)
                self._feed.forget(name)
                place = ""
                await asyncio.sleep(RETRY_SECONDS)
                continue
            self._missing.discard(name)
            if event == "snapshot":
                self._feed.forget(name)
            for job in jobs:
                self._feed.put(job)
            place = next_place
            await asyncio.sleep(PACE_SECONDS)


class OtherLog:
    """The lines of a job that another member keeps, for one stream; it reads them before more are requested.

    Parameters
    ----------
    first : int
        Number of the first line that the stream does not have.
    ask : callable
        Asks the member for the lines from a number on.
    """

    def __init__(self, first: int, ask: Callable[[int], AsyncGenerator[PeerPart]]) -> None:
        self._next = first
        self._lines: list[bytes] = []
        self._ask = ask
        self._is_over = False

    def json_lines(self, offset: int = 0) -> tuple[list[bytes], int]:
        """Return the lines that were not returned yet, and the number of the next line to come."""
        lines, self._lines = self._lines, []
        return lines, self._next

    async def look(self) -> bool:
        """Ask once, and return whether the member has the job.

        Raises
        ------
        MemberDown
        """
        status, answer = await read_answer(self._ask(self._next), "that keeps the job")
        if status == HTTPStatus.NOT_FOUND:
            self._is_over = True
            return False
        try:
            lines, self._next, state = answer["events"], answer["next_offset"], answer["state"]
        except KeyError:
            raise MemberDown(f"the member that keeps the job did not send its log (status {status})") from None
        self._lines = [json.dumps(line).encode() for line in lines]
        self._is_over = state == JobState.FINISHED
        return True

    async def follow(self, wake: Callable[[], None]) -> None:
        """Ask until the job has ended; `wake` is called when there are lines."""
        while not self._is_over:
            await asyncio.sleep(LINES_SECONDS)
            if not self._lines:
                try:
                    await self.look()
                except MemberDown:
                    await asyncio.sleep(RETRY_SECONDS)
            if self._lines:
                wake()


async def read_answer(parts: AsyncGenerator[PeerPart], name: str) -> tuple[int, dict[str, Any]]:
    """Return the status and the JSON object of a member's answer.

    Raises
    ------
    MemberDown
        It does not answer, or not with a JSON object.
    """
    data, status = bytearray(), 0
    async with aclosing(parts) as given:
        async for part in given:
            data += part.data
            status = part.status
            if len(data) > ANSWER_BYTES:
                raise MemberDown(f"the answer of the member {name} is larger than {ANSWER_BYTES} bytes")
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise MemberDown(f"the member {name} does not answer with a JSON object")
    return status, answer


def _job(member: str, job: dict[str, Any]) -> OtherJob:
    body = json.dumps({**job, "member": member}, ensure_ascii=False).encode("utf-8", "backslashreplace")
    return OtherJob(str(job["job_id"]), job["token_name"], member, job["state"] != JobState.FINISHED, body)
