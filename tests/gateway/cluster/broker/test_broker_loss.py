"""A broker that is away, or comes back without its data: every job still has one verdict, and is still found."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from nats.js import JetStreamContext

from gateway.cluster import claims
from gateway.cluster.broker import NoReply, Refused, subjects
from gateway.cluster.member import Member
from gateway.cluster.owners import key_of
from gateway.cluster.runner import publication
from gateway.cluster.runner import run as cluster_run
from gateway.cluster.runner.run import ClusterRun
from gateway.cluster.wire import encode
from gateway.core.cancellation import StopSignal
from gateway.core.errors import BrokerDown, Conflict, FailureCode, JobFailed, MemberDown
from gateway.core.events import EventLog
from gateway.core.job import Job, Scope, UrlDelivery
from tests.gateway.cluster.broker.test_broker import QUEUED, connected, keeper_of
from tests.gateway.cluster.test_runner import cluster, until
from tests.gateway.http.harness import ScriptedRun
from tests.support.nats_server import NatsServer


def lose_data(server: NatsServer) -> None:
    server.kill()
    shutil.rmtree(server.directory / "data")
    server.start()


async def until_answers(ask: Callable[[], Awaitable[str | None]], wanted: str) -> None:
    """Ask until the answer is the wanted one; while the broker is made ready there is none."""
    async with asyncio.timeout(55):
        while True:
            with contextlib.suppress(MemberDown):
                if await ask() == wanted:
                    return
            await asyncio.sleep(0.05)


async def test_jobs_go_on_when_the_broker_has_lost_its_data(nats_server: NatsServer, tmp_path: Path) -> None:
    async with cluster(nats_server, tmp_path, 0, 1, 0) as (front, host, other):
        own_id = front.runner.claims.new_id()
        await front.runner.claims.claim("mine", None, own_id, b"live")
        await front.runner.claims.announce("mine", None)

        async def known_keys() -> list[bytes]:
            return [b"live", b"ended"]

        front.runner._owners.known_keys = known_keys
        run, log, _, running = front.start("hold", "a")
        await until(lambda: run.has_begun)
        lose_data(nats_server)
        host.machine.release.set()
        *_, second = front.start("ok", "b")
        assert (await running).ok
        assert (await second).ok
        # the lines of the second run are not taken for those of the first one
        texts = [line.message for line in log.lines()]
        assert sum("runs again (attempt 2)" in text for text in texts) == 1
        assert texts.count("begin") == 2
        # another member still knows where the jobs are, also one that has to ask the broker
        other.runner._owners._names.clear()
        peers, name = other.runner.peers, front.runner.peers.name
        await until_answers(lambda: peers.owner_of_job(own_id), name)
        await until_answers(lambda: peers.owner_of_request(("mine",), Scope()), name)
        for key in await known_keys():
            entry = await peers.entry_of_key(key)
            assert entry is not None
            assert entry.owner == name
        with pytest.raises(Conflict):
            await other.runner.claims.claim("mine", None, "another")


async def test_a_job_with_network_does_not_run_again_when_the_broker_has_lost_its_data(
    nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(nats_server, tmp_path, 0, 1) as (front, host):
        front.runner._cluster.settings = dataclasses.replace(front.runner._cluster.settings, allow_network=True)
        run, *_, running = front.start("hold")
        await until(lambda: run.has_begun)
        lose_data(nats_server)
        verdict = await running
        assert verdict.code is FailureCode.HOST_LOST
        assert "lost its record" in verdict.message
        assert "access to the network" in verdict.message
        assert len(host.machine.jobs) == 1


async def test_a_job_that_was_answered_without_the_broker_never_runs(
    nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_run, "END_SECONDS", 1.0)
    async with cluster(nats_server, tmp_path, 0) as (front,):
        job, stop = Job("waits", "ok", 30.0, UrlDelivery("http://127.0.0.1:9/o")), StopSignal()
        run = cast("ClusterRun", front.runner.open(job, EventLog(), stop, "waits", None))
        run.take_slot()
        await until(lambda: run._publication.count)
        nats_server.kill()

        async def never_arrives(*args: Any) -> bool:
            raise TimeoutError

        # the client may still send it to the broker that is back, or not
        monkeypatch.setattr(front.broker.leases._values, "delete", never_arrives)
        stop.request(FailureCode.CANCELLED)
        assert (await run.deliver()).code is FailureCode.CANCELLED
        await run.close()
        nats_server.start()
        await until(lambda: not front.runner._cluster.leftovers)
        assert await front.broker.leases.get("waits") is None
        async with cluster(nats_server, tmp_path / "more", 1) as (host,):
            *_, verdict = front.start("ok", "after")  # its message is behind the other one
            assert (await verdict).ok
            assert host.runner._host.attempts == 1  # the tables of the other one were fetched at most


async def test_a_lost_host_is_replaced_although_the_reply_to_that_was_lost(
    nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(nats_server, tmp_path, 0, 1, 1) as (front, *hosts):
        update, lost = front.broker.leases.update, []

        async def without_reply(key: str, data: bytes, revision: int) -> int:
            written = await update(key, data, revision)
            if not lost:
                lost.append(key)
                raise NoReply
            return written

        monkeypatch.setattr(front.broker.leases, "update", without_reply)
        run, log, _, verdict = front.start("hold")
        await until(lambda: any(host.machine.begun.is_set() for host in hosts))
        await until(lambda: run.has_begun)
        run._queued_at -= 100_000  # it has run for longer than a job may wait in the queue
        first = next(host for host in hosts if host.machine.begun.is_set())
        second = next(host for host in hosts if host is not first)
        await first.runner.aclose()
        await until(second.machine.begun.is_set)
        second.machine.release.set()
        assert (await verdict).ok
        assert lost == ["job"]
        assert sum("runs again (attempt 2)" in line.message for line in log.lines()) == 1


async def test_a_second_attempt_on_a_host_begins_after_the_end_of_the_first(
    nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(nats_server, tmp_path, 0, 2) as (front, host):
        seen, gate, opened = [], asyncio.Event(), host.machine.open

        def watched(*args: Any) -> ScriptedRun:
            seen.append("opened")
            run = opened(*args)
            close = run.close

            async def late() -> None:
                await gate.wait()
                seen.append("closed")
                await close()

            run.close = late  # type: ignore[method-assign]
            return run

        monkeypatch.setattr(host.machine, "open", watched)
        run, *_, verdict = front.start("hold")
        await until(host.machine.begun.is_set)
        await front.broker.leases.remove("job")  # the host ends the job, and the front queues it again
        await until(lambda: run._publication.count == 2)
        await until(lambda: len(host.runner._host._tasks) == 2)
        for _ in range(20):  # time for the second attempt to be too early
            await front.broker.leases.get("job")
        gate.set()
        host.machine.release.set()
        assert (await verdict).ok
        await until(lambda: len(seen) == 4)
        assert seen == ["opened", "closed"] * 2


async def test_a_job_that_waits_for_a_day_leaves_few_messages(
    nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(nats_server, tmp_path, 0) as (front,):
        job = Job("waits", "ok", 30.0, UrlDelivery("http://127.0.0.1:9/o"))
        run = cast("ClusterRun", front.runner.open(job, EventLog(), StopSignal(), "waits", None))
        clock = [1000.0]
        monkeypatch.setattr(publication, "time", SimpleNamespace(monotonic=lambda: clock[0]))
        for _ in range(2880):
            await run._publication.publish(1, 1)
            clock[0] += publication.REPUBLISH_SECONDS
        queue = await front.broker._js.stream_info(subjects.JOBS_STREAM)
        assert 10 < queue.state.messages < 60


async def test_a_host_whose_record_is_lost_asks_the_broker_a_few_times_a_second(nats_server: NatsServer) -> None:
    async with connected(nats_server) as broker:
        await broker.leases.put("another", b"")  # revisions begin anew with the data
        await broker.leases.create("job", encode(QUEUED))
        keeper = await keeper_of(broker, "a")
        assert await keeper.claim()
        await asyncio.to_thread(lose_data, nats_server)
        async with asyncio.timeout(55):
            while True:
                with contextlib.suppress(NoReply, Refused):
                    await broker.leases.create("job", encode(QUEUED))
                    break
        with pytest.raises(JobFailed):
            await keeper.begin_delivery()
        assert keeper.lease._writes < 60


async def test_many_ids_are_claimed_again_although_each_write_takes_long(
    nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(nats_server, tmp_path, 0) as (front,):
        for number in range(100):
            await front.runner.claims.claim(f"id {number}", None, f"job {number}")
        publish = JetStreamContext.publish

        async def slow(*args: Any, **options: Any) -> Any:
            await asyncio.sleep(0.1)  # as on a disk that many share
            return await publish(*args, **options)

        monkeypatch.setattr(JetStreamContext, "publish", slow)
        await asyncio.to_thread(lose_data, nats_server)
        await until(lambda: front.broker._preparing is not None and front.broker._preparing.done())
        assert (await front.broker._js.stream_info("KV_TG1_CLAIMS")).state.messages == 100


@pytest.mark.parametrize("lost", ["create", "remove"])
async def test_an_id_is_free_for_the_caller_that_tries_again(
    lost: str, nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(nats_server, tmp_path, 0, 0) as (one, two):
        bucket, mine = one.broker.claims, one.runner.claims
        create = bucket.create

        async def without_reply(key: str, data: bytes) -> int:
            await create(key, data)
            raise NoReply

        async def without_effect(key: str, revision: int | None = None) -> bool:
            return False

        if lost == "create":
            monkeypatch.setattr(bucket, "create", without_reply)
            with pytest.raises(BrokerDown):
                await mine.claim("id", None, "refused")
        else:
            monkeypatch.setattr(bucket, "remove", without_effect)
            await mine.claim("id", None, "ended")
            await mine.release("ended")
        monkeypatch.undo()
        with pytest.raises(Conflict):  # it cannot know
            await two.runner.claims.claim("id", None, "other")
        await mine.claim("id", None, "again")
        with pytest.raises(Conflict):
            await mine.claim("id", None, "twice")


def test_an_empty_name_of_a_member_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    path = tmp_path / "store" / "cluster-name"
    path.touch()
    name = Member.of(tmp_path).name
    assert name
    assert path.read_text() == f"{name}\n"
    assert Member.of(tmp_path).name == name


@pytest.mark.parametrize("loss", ["reply", "claim"])
async def test_a_claim_is_renewed_after_a_loss(
    loss: str, nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "RENEW_SECONDS", 0.05)
    async with cluster(nats_server, tmp_path, 0, 0) as (one, two):
        await one.runner.claims.claim("id", None, "job")
        key, bucket = key_of("id", None), one.broker.claims
        async with asyncio.timeout(55):
            while True:  # a renewal may come between look and write
                stored = await bucket.get(key)
                assert stored is not None
                with contextlib.suppress(Refused):
                    if loss == "claim":
                        await bucket.remove(key)
                    else:
                        await bucket.update(key, stored.data, stored.revision)
                    break
        held = one.runner.claims._held["job"]
        for _ in range(2):  # the second revision is that of a renewal that was confirmed
            before = held.revision
            await until(lambda before=before: held.revision != before)
        with pytest.raises(Conflict):
            await two.runner.claims.claim("id", None, "another")
        await one.runner.claims.release("job")
        async with asyncio.timeout(55):
            while True:  # a renewal may be on its way, and is removed by the member itself
                with contextlib.suppress(Conflict):
                    await two.runner.claims.claim("id", None, "another")
                    break
                await asyncio.sleep(0.02)
