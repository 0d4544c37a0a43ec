"""The interface to other gateways that accept jobs: which one keeps a job, and its answers about it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gateway.core.job import RequestId, Scope
from gateway.storage.parcels import Parcels


@dataclass(frozen=True, slots=True)
class PeerRequest:
    """An HTTP request that a peer answers on behalf of its caller, whose token this gateway has checked.

    Attributes
    ----------
    method, uri : str
    headers : dict
        Those that matter for the answer.
    body : bytes
    token_name : str or None
        Name of the caller's token.
    token_kind : int
        Permissions of this token.
    asker : str
        Name of this gateway.
    """

    method: str
    uri: str
    headers: dict[str, str]
    body: bytes
    token_name: str | None
    token_kind: int
    asker: str = ""


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """The gateway that accepted the job of an ``Idempotency-Key``; it may have deleted the job since.

    Attributes
    ----------
    owner : str
        Name of this gateway or of another one.
    revision : int
        Revision of the entry at the broker.
    """

    owner: str
    revision: int


@dataclass(frozen=True, slots=True)
class PeerPart:
    """A part of an answer; the first one has status and headers.

    Attributes
    ----------
    data : bytes
    is_last : bool
    status : int
    headers : sequence of pairs
        Name and value.
    """

    data: bytes
    is_last: bool
    status: int = 200
    headers: Sequence[tuple[str, str]] = field(default=())


class PeerAnswer(Protocol):
    """An answer that is being made for a peer."""

    async def next_part(self) -> PeerPart:
        """Return the next part; called again only if it was not the last."""

    def close(self) -> None:
        """End the answer. It may be called twice."""


class Peers(Protocol):
    """The other gateways of a cluster. Every call raises `gateway.core.errors.MemberDown` without an answer."""

    @property
    def name(self) -> str:
        """Name of this gateway."""

    @property
    def parcels(self) -> Parcels | None:
        """Files of this gateway's jobs that others fetch and upload; None if they do not have its address."""

    def others(self) -> list[str]:
        """Return the names of the others that accept jobs and are live now."""

    def silent(self) -> list[str]:
        """Return the names of those that have been live and are not now."""

    async def owner_of_job(self, job_id: str) -> str | None:
        """Return the other gateway that keeps a job, by the gateway's own id of it; None if no other does."""

    async def owner_of_request(self, request_ids: Sequence[RequestId], scope: Scope) -> str | None:
        """Return the other gateway that accepted the newest job of a caller's id; None if no other did."""

    async def entry_of_key(self, key: bytes) -> KeyEntry | None:
        """Return the gateway that accepted the job of an `IdempotencyKey.key`; None if there is none."""

    async def forget_key(self, key: bytes, entry: KeyEntry) -> None:
        """Remove an entry whose gateway has no such job any more, unless the entry has changed meanwhile."""

    def ask(self, peer: str, request: PeerRequest) -> AsyncGenerator[PeerPart]:
        """Yield the parts of a peer's answer."""

    async def serve(self, answer: Callable[[PeerRequest], PeerAnswer]) -> None:
        """Answer the others from now on."""
