"""A host whose broker and members do what a test says."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec import Raw

from gateway.cluster.broker import Refused, Stored
from gateway.cluster.host import ClusterHost
from gateway.cluster.host import host as cluster_host
from gateway.cluster.member import Member
from gateway.cluster.wire import Assignment, LeaseRecord, Phase, encode
from gateway.core.settings import Settings
from gateway.storage import ObjectClient
from gateway.storage.objects.errors import StatusError

URL = f"http://127.0.0.1:9/v1/parcels/{'a' * 43}"


@dataclass
class Message:
    data: bytes
    deliveries: int = 1
    execution_id: str = "id"


class Leases:
    def __init__(self, record: LeaseRecord, revision: int) -> None:
        self.record, self.revision = record, revision
        self.written: list[bytes] = []

    async def get(self, key: str) -> Stored:
        return Stored(encode(self.record), self.revision)

    async def update(self, key: str, data: bytes, revision: int) -> int:
        if revision != self.revision:
            raise Refused
        self.written.append(data)
        return revision + 1


class Broker:
    def __init__(self, leases: Leases) -> None:
        self.leases = leases
        self.settled: list[tuple[bool, float | None]] = []

    async def settle(self, taking: Message, *, is_taken: bool = True, again_after_seconds: float | None = None) -> None:
        self.settled.append((is_taken, again_after_seconds))

    async def keep(self, taking: Message) -> None:
        await asyncio.Event().wait()

    async def send(self, subject: str, data: bytes) -> None:
        """Lose it."""


def host_of(broker: Broker, tmp_path: Path) -> ClusterHost:
    parts = (cast("Any", broker), cast("Any", None), Settings(state_dir=tmp_path), ObjectClient(5))
    return ClusterHost(Member("host", "boot"), *parts)


async def test_an_old_message_does_not_end_the_next_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code is withdrawn, as the job is queued again."""
    leases = Leases(LeaseRecord(Phase.QUEUED, 2, "front", avoided="lost"), 9)
    broker = Broker(leases)

    async def withdrawn(*args: Any) -> bytes:
        raise StatusError(404, "", "127.0.0.1:9")

    monkeypatch.setattr(cluster_host, "read_parcel", withdrawn)
    old = Assignment("id", 1, "front", "1.0", Raw(b"null"), job_url=URL, revision=5)
    await host_of(broker, tmp_path)._take(cast("Any", Message(encode(old))), asyncio.Event())
    assert leases.written == []
    assert broker.settled == [(True, None)]


async def test_a_member_that_does_not_answer_holds_up_a_host_ever_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = Broker(Leases(LeaseRecord(Phase.QUEUED, 1, "front"), 5))

    async def silent(*args: Any) -> bytes:
        await asyncio.Event().wait()
        return b""

    monkeypatch.setattr(cluster_host, "read_parcel", silent)
    monkeypatch.setattr(cluster_host, "CODE_SECONDS", 0.01)
    waits = Assignment("id", 1, "front", "1.0", Raw(b"null"), job_url=URL, revision=5)
    host = host_of(broker, tmp_path)
    for deliveries in (1, 2, 3, 100):
        await host._take(cast("Any", Message(encode(waits), deliveries)), asyncio.Event())
    assert broker.settled == [(False, 5.0), (False, 20.0), (False, 45.0), (False, 300.0)]
    assert broker.leases.written == []
