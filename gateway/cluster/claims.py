"""One request id, one job in the whole cluster: the member that accepts a job claims its id at the broker.

A claim that is not renewed expires, so the ids of a member that vanished are free again after a minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from gateway.cluster.broker import CLAIM_SECONDS, Broker, NoReply, Refused
from gateway.cluster.keeper import record_of
from gateway.cluster.member import Member
from gateway.cluster.owners import Owners, key_of
from gateway.cluster.wire import Claim, Phase, decode, encode
from gateway.core.errors import BrokerDown, Conflict
from gateway.core.job import Job, RequestId
from gateway.core.wire import WireError
from gateway.jobs.lookup import SAME_MOMENT

log = logging.getLogger(__name__)

RENEW_SECONDS = CLAIM_SECONDS / 4

#: Number of claims that are remembered because they could not be removed; the caller may then try again at once.
MOST_GIVEN_UP = 1000

#: Claims that are written at the same time after the broker has lost them.
CLAIMS_AT_A_TIME = 50

NOT_TAKEN = "the broker of the cluster did not take the job, so it was not accepted"


@dataclass(slots=True)
class _Held:
    request_id: RequestId
    token_name: str | None
    key: str
    revision: int
    #: The `IdempotencyKey.key` of the job and the revision of its entry, if it has one.
    idempotency: tuple[bytes, int] | None = None


class RequestClaims:
    """The ids of this member's live jobs.

    Parameters
    ----------
    me : Member
    broker : Broker
    owners : Owners
        Finds the member of a job, also after its end.
    check : callable
        Raises a refusal of a job that no machine could run.
    """

    def __init__(self, me: Member, broker: Broker, owners: Owners, check: Callable[[Job], None]) -> None:
        self.check = check
        self._me = me
        self._broker = broker
        self._owners = owners
        self._held: dict[str, _Held] = {}
        #: Jobs that are not ours, but whose claims may be at the broker, because it did not answer.
        self._given_up: deque[str] = deque(maxlen=MOST_GIVEN_UP)

    def new_id(self) -> str:
        """Return an execution id for a job of this member."""
        return self._owners.new_id()

    async def claim(
        self, request_id: RequestId, token_name: str | None, execution_id: str, idempotency_key: bytes | None = None
    ) -> None:
        """Claim an id for a job, and its ``Idempotency-Key``.

        Parameters
        ----------
        request_id : int or str
            The caller's id.
        token_name : str or None
            Name of the caller's token; each name has its own ids.
        execution_id : str
            The job.
        idempotency_key : bytes, optional
            `IdempotencyKey.key`.

        Raises
        ------
        Conflict
            The cluster has a job with this id, or another request came with this key at the same moment.
        BrokerDown
            The broker does not answer.
        """
        try:
            await self._take(request_id, token_name, execution_id)
            if idempotency_key is not None:
                revision = await self._owners.take_idempotency_key(idempotency_key)
                self._held[execution_id].idempotency = idempotency_key, revision
        except Refused:
            raise Conflict(SAME_MOMENT) from None
        except NoReply as error:
            self._given_up.append(execution_id)
            raise BrokerDown(f"{NOT_TAKEN}: {error}") from None

    async def announce(self, request_id: RequestId, token_name: str | None) -> None:
        """Let the other members find the newest job of a claimed id here.

        Raises
        ------
        BrokerDown
            The broker does not answer.
        """
        try:
            await self._owners.note(request_id, token_name)
        except NoReply as error:
            raise BrokerDown(f"{NOT_TAKEN}: {error}") from None

    async def claim_again(self, request_id: RequestId, token_name: str | None, execution_id: str) -> None:
        """Claim the id of a job that an earlier process of this member accepted, unless another job has it now."""
        try:
            await self._take(request_id, token_name, execution_id, is_own=True)
        except (Conflict, NoReply) as error:
            log.warning("job %s: its request_id could not be claimed again: %s", execution_id, error)

    async def _take(
        self, request_id: RequestId, token_name: str | None, execution_id: str, *, is_own: bool = False
    ) -> None:
        key, data = key_of(request_id, token_name), encode(Claim(self._me.name, self._me.boot, execution_id))
        try:
            revision = await self._broker.claims.create(key, data)
        except Refused:
            revision = await self._taken_over(key, data, request_id, execution_id if is_own else None)
        self._held[execution_id] = _Held(request_id, token_name, key, revision)

    async def _taken_over(self, key: str, data: bytes, request_id: RequestId, own: str | None) -> int:
        """Replace a claim of this member that no other job needs.

        Raises
        ------
        Conflict
            Another job has the id.
        NoReply
        """
        where = ""
        stored = await self._broker.claims.get(key)
        if stored is not None:
            with contextlib.suppress(WireError, Refused):
                other = decode(Claim, stored.data)
                where = f", accepted by member {other.member}"
                if other.member == self._me.name and await self._is_free(other, own):
                    return await self._broker.claims.update(key, data, stored.revision)
        text = f"a job with request_id {request_id!r} is in the cluster{where}; cancel it or wait for its end"
        raise Conflict(text)

    async def _is_free(self, claim: Claim, own: str | None) -> bool:
        """Return whether a claim of this member is for its own job `own`, or for a job that no host runs any more."""
        if claim.boot == self._me.boot:
            return claim.execution_id in self._given_up
        if claim.execution_id == own:
            return True
        record = record_of(await self._broker.leases.get(claim.execution_id))
        return record is None or record.phase is Phase.DONE

    async def release(self, execution_id: str) -> None:
        """Release the id of a job."""
        held = self._held.pop(execution_id, None)
        if held is not None and not await self._broker.claims.remove(held.key, held.revision):
            self._given_up.append(execution_id)

    async def withdraw(self, execution_id: str) -> None:
        """Release the id and the ``Idempotency-Key`` of a job that was not accepted."""
        held = self._held.get(execution_id)
        if held is not None and held.idempotency is not None:
            await self._owners.forget_idempotency_key(*held.idempotency)
        await self.release(execution_id)

    async def renew(self) -> None:
        """Renew all claims at intervals until cancelled."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            for execution_id, held in tuple(self._held.items()):
                try:
                    await self._renew(execution_id, held)
                except (Refused, NoReply, WireError) as error:
                    log.warning("the claim of job %s could not be renewed: %s", execution_id, error)

    async def restore(self) -> None:
        """Write the claims of this member's jobs again, because the broker may have lost them.

        Raises
        ------
        NoReply
        """
        held = list(self._held.items())
        while held:  # all of them have ten seconds, and a broker that syncs takes one hundredth for a write
            await asyncio.gather(*(self._restore(*each) for each in held[-CLAIMS_AT_A_TIME:]))
            del held[-CLAIMS_AT_A_TIME:]
        await self._owners.register()  # last, because it takes long with many Idempotency-Keys

    async def _restore(self, execution_id: str, held: _Held) -> None:
        with contextlib.suppress(Refused, WireError):
            await self._renew(execution_id, held)
        await self._owners.note(held.request_id, held.token_name)

    async def _renew(self, execution_id: str, held: _Held) -> None:
        """Renew a claim, also after a lost reply and after it has expired.

        Raises
        ------
        Refused
            Another job has the id.
        NoReply, WireError
        """
        data = encode(Claim(self._me.name, self._me.boot, execution_id))
        try:
            held.revision = await self._broker.claims.update(held.key, data, held.revision)
        except (Refused, NoReply):
            stored = await self._broker.claims.get(held.key)
            if stored is None:
                held.revision = await self._broker.claims.create(held.key, data)
            elif decode(Claim, stored.data).execution_id == execution_id:
                held.revision = stored.revision
            else:
                raise
        if execution_id not in self._held:  # released meanwhile, at the revision before
            await self._broker.claims.remove(held.key, held.revision)
