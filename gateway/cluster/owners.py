"""The member that accepted a job and keeps its record, found by the job's own id or by the caller's.

The execution id of a job begins with a tag of its member, so it needs no entry that would have to outlive the history.
The broker has an entry for the newest job of each caller's id, and for the job of each ``Idempotency-Key``.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import uuid
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from gateway.cluster.broker import Broker, Bucket, NoReply, Refused
from gateway.cluster.member import Member
from gateway.cluster.wire import Owner, decode, encode
from gateway.core.errors import MemberDown
from gateway.core.job import RequestId, Scope
from gateway.jobs.peers import KeyEntry

TAG_LENGTH = 8

#: Entries that are written at the same time after the broker has lost them.
KEYS_AT_A_TIME = 100


class Owners:
    """Writes and reads which member a job belongs to.

    Parameters
    ----------
    me : Member
    broker : Broker
    """

    def __init__(self, me: Member, broker: Broker) -> None:
        self._me = me
        self._broker = broker
        self._names = {tag_of(me.name): me.name}
        #: Returns each `IdempotencyKey.key` in the job store of this member.
        self.known_keys: Callable[[], Awaitable[Sequence[bytes]]] = _none
        #: Those of them that the broker has lost and does not have again.
        self._lost_keys: list[bytes] = []

    async def register(self) -> None:
        """Store the name of this member under its tag.

        Where the tag has no entry, the broker is new or has lost its data: the known keys are stored again first.

        Raises
        ------
        NoReply
        """
        tag, data = tag_of(self._me.name), encode(Owner(self._me.name))
        if await self._broker.members.get(tag) is None:
            # when the time is up, the next call goes on where this one ended
            self._lost_keys = self._lost_keys or list(await self.known_keys())
            while self._lost_keys:
                await asyncio.gather(*map(self._take_key_again, self._lost_keys[-KEYS_AT_A_TIME:]))
                del self._lost_keys[-KEYS_AT_A_TIME:]
        await self._broker.members.put(tag, data)

    async def _take_key_again(self, key: bytes) -> None:
        with contextlib.suppress(Refused):  # another member has taken it meanwhile
            await self.take_idempotency_key(key)

    def new_id(self) -> str:
        """Return an execution id for a job of this member."""
        return tag_of(self._me.name) + uuid.uuid4().hex[TAG_LENGTH:]

    async def note(self, request_id: RequestId, token_name: str | None) -> None:
        """Store that the newest job of an id is this member's.

        Raises
        ------
        NoReply
        """
        data, keys = encode(Owner(self._me.name)), [key_of(request_id)]
        if token_name is not None:  # a caller whose token has no name sees the jobs of all
            keys.append(key_of(request_id, token_name))
        await asyncio.gather(*(self._broker.owners.put(key, data) for key in keys))

    async def take_idempotency_key(self, key: bytes) -> int:
        """Store this member as the owner of an ``Idempotency-Key``; return the revision of the entry.

        Raises
        ------
        Refused
            Another request has the key.
        NoReply
        """
        return await self._broker.owners.create(_name_of(key), encode(Owner(self._me.name)))

    async def forget_idempotency_key(self, key: bytes, revision: int) -> None:
        """Remove the entry of a key if it has this revision. An entry that stays names a member without the job."""
        await self._broker.owners.remove(_name_of(key), revision)

    async def of_idempotency_key(self, key: bytes) -> KeyEntry | None:
        """Return the entry of an ``Idempotency-Key``: the member, perhaps this one, that accepted its job.

        Raises
        ------
        MemberDown
            The broker does not answer.
        """
        return await self._entry(self._broker.owners, _name_of(key))

    async def of_job(self, execution_id: str) -> str | None:
        """Return the other member that accepted a job, or None.

        Raises
        ------
        MemberDown
            The broker does not answer.
        """
        tag = execution_id[:TAG_LENGTH]
        if len(execution_id) != 32 or not all(letter in "0123456789abcdef" for letter in tag):
            return None
        if tag not in self._names:
            entry = await self._entry(self._broker.members, tag)
            if entry is None:
                return None
            self._names[tag] = entry.owner
        name = self._names[tag]
        return name if name != self._me.name else None

    async def of_request(self, request_ids: Sequence[RequestId], scope: Scope) -> str | None:
        """Return the other member that accepted the newest job of a caller's id, or None.

        Raises
        ------
        MemberDown
            The broker does not answer.
        """
        for request_id in request_ids:
            key = key_of(request_id) if scope.sees_all else key_of(request_id, scope.token_name)
            entry = await self._entry(self._broker.owners, key)
            if entry is not None:
                return entry.owner if entry.owner != self._me.name else None
        return None

    async def _entry(self, bucket: Bucket, key: str) -> KeyEntry | None:
        try:
            stored = await bucket.get(key)
            return None if stored is None else KeyEntry(decode(Owner, stored.data).member, stored.revision)
        except NoReply:
            raise MemberDown("the broker of the cluster does not answer, so it is unknown who has the job") from None


async def _none() -> Sequence[bytes]:
    return ()


def tag_of(name: str) -> str:
    """Return the tag with which the execution ids of a member's jobs begin."""
    return hashlib.sha256(name.encode()).hexdigest()[:TAG_LENGTH]


def _name_of(key: bytes) -> str:
    """Return the name of the entry of an `IdempotencyKey.key`; a caller's id never has the same."""
    return hashlib.sha256(b"Idempotency-Key " + key).hexdigest()


def key_of(request_id: RequestId, *token_name: str | None) -> str:
    """Return the key of a caller's id; without the name of a token, the key for all callers."""
    return hashlib.sha256(msgspec.json.encode([request_id, *token_name])).hexdigest()
