"""Questions of other members, and how many of them a member answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from gateway.cluster import peers
from gateway.cluster.broker import subjects
from gateway.cluster.member import Member
from gateway.cluster.peers import ClusterPeers
from gateway.cluster.wire import Part, PartWanted, Question, decode, encode
from gateway.jobs.peers import PeerPart, PeerRequest


class Answer:
    """Has one part; of the route ``/waits`` it does not come."""

    def __init__(self, request: PeerRequest) -> None:
        self._waits = request.uri == "/waits"

    async def next_part(self) -> PeerPart:
        if self._waits:
            await asyncio.Event().wait()
        return PeerPart(b"text", is_last=True)

    def close(self) -> None: ...


class Served:
    """Stands in for the broker: takes what is served, and asks it."""

    def __init__(self) -> None:
        self._answers: dict[str, Callable[[bytes], Awaitable[bytes | None]]] = {}

    async def serve(self, subject: str, answer: Callable[[bytes], Awaitable[bytes | None]]) -> None:
        self._answers[subject] = answer

    async def question(self, id: str, uri: str = "/v1/logs") -> Part:
        asked = Question(id, "other", "GET", uri, {}, b"", None, 1)
        reply = await self._answers[subjects.ask("me")](encode(asked))
        assert reply is not None
        return decode(Part, reply)

    async def part(self, id: str) -> Part:
        reply = await self._answers[subjects.part("me")](encode(PartWanted(id, 0)))
        assert reply is not None
        return decode(Part, reply)


async def test_answers_that_have_ended_keep_no_question_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "MOST_ANSWERS", 2)
    broker = Served()
    me = ClusterPeers(Member("me", "boot"), cast(Any, broker), cast(Any, None), cast(Any, None))
    await me.serve(Answer)
    waiting = asyncio.create_task(broker.question("0", "/waits"))
    await asyncio.sleep(0)
    for id in "123":
        assert (await broker.question(id)).status == 200
        assert (await broker.part(id)).data == b"text"  # its message may have been lost
    assert (await broker.part("1")).status == 0
    others = [waiting, asyncio.create_task(broker.question("4", "/waits"))]
    await asyncio.sleep(0)
    assert (await broker.question("5")).status == 0  # both are being made
    me.close()
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
