"""The member that accepted a job and keeps its record, found by the job's own id or by the caller's.

The execution id of a job begins with a tag of its member, so it needs no entry that would have to outlive the history.
The newest job of a caller's id has an entry at the broker.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Sequence

import msgspec

from gateway.cluster.broker import Broker, Bucket, NoReply
from gateway.cluster.member import Member
from gateway.cluster.wire import Owner, decode, encode
from gateway.core.errors import MemberDown
from gateway.core.job import RequestId, Scope

TAG_LENGTH = 8


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

    async def register(self) -> None:
        """Store the name of this member under its tag.

        Raises
        ------
        NoReply
        """
        await self._broker.members.put(tag_of(self._me.name), encode(Owner(self._me.name)))

    def new_id(self) -> str:
        """Return an execution id for a job of this member."""
        return tag_of(self._me.name) + uuid.uuid4().hex[TAG_LENGTH:]

    async def note(self, request_id: RequestId, token_name: str | None) -> None:
        """Store that the newest job of an id is this member's.

        Raises
        ------
        NoReply
        """
        data = encode(Owner(self._me.name))
        await asyncio.gather(
            *(self._broker.owners.put(key, data) for key in {key_of(request_id, token_name), key_of(request_id)})
        )

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
            owner = await self._read(self._broker.members, tag)
            if owner is None:
                return None
            self._names[tag] = owner
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
            name = await self._read(self._broker.owners, key)
            if name is not None:
                return name if name != self._me.name else None
        return None

    async def _read(self, bucket: Bucket, key: str) -> str | None:
        try:
            stored = await bucket.get(key)
            return None if stored is None else decode(Owner, stored.data).member
        except NoReply:
            raise MemberDown("the broker of the cluster does not answer, so it is unknown who has the job") from None


def tag_of(name: str) -> str:
    """Return the tag with which the execution ids of a member's jobs begin."""
    return hashlib.sha256(name.encode()).hexdigest()[:TAG_LENGTH]


def key_of(request_id: RequestId, *token_name: str | None) -> str:
    """Return the key of a caller's id; without the name of a token, the key for all callers."""
    return hashlib.sha256(msgspec.json.encode([request_id, *token_name])).hexdigest()
