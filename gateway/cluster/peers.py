"""Requests of one member to another about jobs that the other one keeps.

An answer has parts; the asking member fetches each part after it has forwarded the one before. So an answer of any size
needs the memory of one part, and a part whose message was lost can be fetched again.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass

from gateway.cluster.broker import Broker, subjects
from gateway.cluster.member import COPIED, Member, Roster
from gateway.cluster.owners import Owners
from gateway.cluster.wire import Part, PartWanted, Question, decode, encode
from gateway.core.errors import ConfigurationError, MemberDown, TooLarge
from gateway.core.job import RequestId, Scope
from gateway.core.wire import WireError
from gateway.jobs.peers import KeyEntry, PeerAnswer, PeerPart, PeerRequest
from gateway.storage.parcels import Parcels

log = logging.getLogger(__name__)

#: Largest body of a request.
BODY_BYTES = 500_000

#: Time for a member to make the next part of an answer.
ANSWER_SECONDS = 10.0

#: How long an answer waits until its next part is fetched: a caller may read slowly.
IDLE_SECONDS = 60.0

#: Number of open answers of a member, including those whose last part is kept.
MOST_ANSWERS = 200


@dataclass(slots=True, eq=False)
class _Open:
    answer: PeerAnswer
    lock: asyncio.Lock
    number: int = -1
    part: bytes = b""
    is_ended: bool = False
    timer: asyncio.TimerHandle | None = None


class ClusterPeers:
    """The `gateway.jobs.peers.Peers` of a cluster.

    Parameters
    ----------
    me : Member
    broker : Broker
    roster : Roster
    owners : Owners
    parcels : Parcels or None
    """

    def __init__(
        self, me: Member, broker: Broker, roster: Roster, owners: Owners, parcels: Parcels | None = None
    ) -> None:
        self.parcels = parcels
        self._me = me
        self._broker = broker
        self._roster = roster
        self._owners = owners
        self._open: dict[str, _Open] = {}
        self._make: Callable[[PeerRequest], PeerAnswer] | None = None

    @property
    def name(self) -> str:
        return self._me.name

    async def refuse_a_double(self) -> None:
        """Fail if another process answers under the name of this member: each would deny the jobs of the other.

        Raises
        ------
        ConfigurationError
        """
        if await self._broker.ask(subjects.part(self._me.name), encode(PartWanted("", 0))) is not None:
            raise ConfigurationError(f"the cluster has a member {self._me.name} already: {COPIED}")

    def others(self) -> list[str]:
        return [each.name for each in self._roster.members() if each.accepts and each.name != self._me.name]

    def silent(self) -> list[str]:
        return [each.name for each in self._roster.silent() if each.accepts]

    async def owner_of_job(self, job_id: str) -> str | None:
        return await self._owners.of_job(job_id)

    async def owner_of_request(self, request_ids: Sequence[RequestId], scope: Scope) -> str | None:
        return await self._owners.of_request(request_ids, scope)

    async def entry_of_key(self, key: bytes) -> KeyEntry | None:
        return await self._owners.of_idempotency_key(key)

    async def forget_key(self, key: bytes, entry: KeyEntry) -> None:
        await self._owners.forget_idempotency_key(key, entry.revision)

    async def ask(self, peer: str, request: PeerRequest) -> AsyncGenerator[PeerPart]:
        if len(request.body) > BODY_BYTES:
            raise TooLarge(f"the body is larger than the {BODY_BYTES} bytes that another member accepts")
        id, number, is_last = uuid.uuid4().hex, 0, False
        question = Question(
            id,
            self._me.name,
            request.method,
            request.uri,
            request.headers,
            request.body,
            request.token_name,
            request.token_kind,
        )
        subject, data = subjects.ask(peer), encode(question)
        try:
            while not is_last:
                reply = await self._broker.ask(subject, data, ANSWER_SECONDS)
                part = None if reply is None else _readable(reply)
                if part is None or part.number != number or not part.status:
                    raise MemberDown(f"the member {peer} accepted the job, and does not answer now")
                is_last = part.is_last
                yield PeerPart(part.data, is_last, part.status, part.headers)
                number += 1
                subject, data = subjects.part(peer), encode(PartWanted(id, number))
        finally:
            if not is_last and number:
                await self._broker.send(subjects.part(peer), encode(PartWanted(id, -1)))

    async def serve(self, answer: Callable[[PeerRequest], PeerAnswer]) -> None:
        self._make = answer
        await self._broker.serve(subjects.ask(self._me.name), self._answer)
        await self._broker.serve(subjects.part(self._me.name), self._more)

    def close(self) -> None:
        """Make no more answers."""
        for id in tuple(self._open):
            self._drop(id)

    async def _answer(self, data: bytes) -> bytes | None:
        question = decode(Question, data)
        if len(self._open) >= MOST_ANSWERS:
            self._make_room()
        if self._make is None or len(self._open) >= MOST_ANSWERS or question.id in self._open:
            return encode(Part(question.id, 0, is_last=True, status=0))
        request = PeerRequest(
            question.method,
            question.uri,
            question.headers,
            question.body,
            question.token_name,
            question.token_kind,
            question.asker,
        )
        self._open[question.id] = _Open(self._make(request), asyncio.Lock())
        return await self._part(question.id, 0)

    async def _more(self, data: bytes) -> bytes | None:
        wanted = decode(PartWanted, data)
        if wanted.number < 0:
            self._drop(wanted.id)
            return None
        return await self._part(wanted.id, wanted.number)

    async def _part(self, id: str, number: int) -> bytes:
        opened = self._open.get(id)
        if opened is None:
            return encode(Part(id, number, is_last=True, status=0))
        async with opened.lock:
            if number == opened.number + 1:
                self._keep(id, opened, ANSWER_SECONDS + IDLE_SECONDS)
                made = await opened.answer.next_part()
                opened.part = encode(Part(id, number, made.is_last, made.status, tuple(made.headers), made.data))
                opened.number, opened.is_ended = number, made.is_last
                # the last part stays for a moment: its message may be lost
                self._keep(id, opened, ANSWER_SECONDS if made.is_last else IDLE_SECONDS)
            return opened.part

    def _make_room(self) -> None:
        """Drop an answer whose last part was sent: a stream of other members' jobs asks ten times a second."""
        ended = next((id for id, opened in self._open.items() if opened.is_ended), None)
        if ended is not None:
            self._drop(ended)

    def _keep(self, id: str, opened: _Open, seconds: float) -> None:
        if opened.timer is not None:
            opened.timer.cancel()
        opened.timer = asyncio.get_running_loop().call_later(seconds, self._drop, id)

    def _drop(self, id: str) -> None:
        opened = self._open.pop(id, None)
        if opened is not None:
            if opened.timer is not None:
                opened.timer.cancel()
            opened.answer.close()


def _readable(reply: bytes) -> Part | None:
    try:
        return decode(Part, reply)
    except WireError as error:
        log.warning("the answer of another member cannot be read: %s", error)
        return None
