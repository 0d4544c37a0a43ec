"""Records and queue at a real NATS server."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal

import nats.errors
import pytest
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from gateway.cluster.broker import Broker, NoReply, Refused, Stored, streams, subjects
from gateway.cluster.claims import RequestClaims
from gateway.cluster.keeper import LeaseKeeper
from gateway.cluster.lease import LEASE_SECONDS, Hold, Lease, boottime
from gateway.cluster.member import Member
from gateway.cluster.owners import KEYS_AT_A_TIME, Owners, tag_of
from gateway.cluster.wire import LeaseRecord, Phase, decode, encode
from gateway.core.errors import BrokerDown, ConfigurationError, FailureCode, JobFailed
from gateway.core.job import Verdict
from gateway.core.tasks import started
from tests.support.nats_server import NatsServer

QUEUED = LeaseRecord(Phase.QUEUED, 1, "front")
OK = Verdict(None, "", 0)


@asynccontextmanager
async def connected(server: NatsServer) -> AsyncIterator[Broker]:
    broker = await Broker.connect(server.url, "test")
    try:
        yield broker
    finally:
        await broker.aclose()


class Clock:
    """Stands still until a test sets it: a lease is neither renewed nor lost because the machine is slow."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


async def keeper_of(broker: Broker, host: str, clock: Callable[[], float] = boottime) -> LeaseKeeper:
    stored = await broker.leases.get("job")
    assert stored is not None
    lease = Lease(decode(LeaseRecord, stored.data), stored.revision, host, "boot", clock)
    return LeaseKeeper(lease, broker.leases, "job")


async def test_a_record_changes_only_at_its_revision(nats_server: NatsServer) -> None:
    async with connected(nats_server) as broker:
        assert await broker.leases.get("job") is None
        first = await broker.leases.create("job", b"1")
        with pytest.raises(Refused):
            await broker.leases.create("job", b"other")
        second = await broker.leases.update("job", b"2", first)
        with pytest.raises(Refused):
            await broker.leases.update("job", b"3", first)
        stored = await broker.leases.get("job")
        assert stored is not None
        assert (stored.data, stored.revision) == (b"2", second)
        await broker.leases.remove("job")
        assert await broker.leases.get("job") is None
        await broker.leases.create("job", b"again")


@pytest.mark.parametrize("several_at_a_time", [False, True])
async def test_a_fault_with_one_message_is_logged_and_the_next_is_answered(
    several_at_a_time: bool, nats_server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(data: bytes) -> bytes:
        return {b"good": b"answered"}[data]

    async def answer_later(data: bytes) -> bytes:
        return answer(data)

    async with connected(nats_server) as one, connected(nats_server) as two:
        if several_at_a_time:
            await one.serve("tg.v1.test", answer_later)
        else:
            await one.listen("tg.v1.test", answer)
        while await two.ask("tg.v1.test", b"good") is None:  # until the server has both connections' subscriptions
            assert not caplog.records
        await two.send("tg.v1.test", b"bad")
        assert await two.ask("tg.v1.test", b"good", 60) == b"answered"
    told = [record for record in caplog.records if "a message on tg.v1.test was dropped" in record.message]
    assert [record.exc_info is not None for record in told] == [True]


async def test_an_attempt_is_queued_once_and_given_to_one_host(nats_server: NatsServer) -> None:
    async with connected(nats_server) as one, connected(nats_server) as two:
        for _ in range(2):
            await one.publish_job("job", "1", b"body")
        message = await one.next_job(30)
        assert message is not None
        assert (message.execution_id, message.data) == ("job", b"body")
        assert await two.next_job(0.3) is None
        await one.settle(message, is_taken=False)  # given back
        again = await two.next_job(30)
        assert again is not None
        await two.settle(again)
        assert await one.next_job(0.3) is None


async def test_a_host_asks_again_when_the_broker_is_back(nats_server: NatsServer) -> None:
    async with connected(nats_server) as broker:

        async def waiting() -> int | None:
            with contextlib.suppress(NotFoundError):
                return (await broker._js.consumer_info(subjects.JOBS_STREAM, subjects.JOBS_CONSUMER)).num_waiting
            return None

        asking = asyncio.create_task(broker.next_job(300))
        async with asyncio.timeout(60):
            while not await waiting():  # noqa: ASYNC110 - the server has no event for this
                await asyncio.sleep(0.02)
            nats_server.kill()
            nats_server.start()
            assert await asking is None
            await broker.publish_job("job", "1", b"body")
            assert await broker.next_job(300)


async def test_an_assignment_goes_to_another_host_unless_its_host_says_that_it_goes_on(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "ACK_WAIT_SECONDS", 0.4)
    async with connected(nats_server) as one, connected(nats_server) as two:
        await one.publish_job("job", "1", b"body")
        message = await one.next_job(30)
        assert message is not None
        async with started(one.keep(message)):
            assert await two.next_job(2) is None
        again = await two.next_job(30)
        assert again is not None
        assert again.deliveries == 2


@pytest.mark.parametrize("role", ["member", "host"])
async def test_the_queue_of_another_version_is_taken_over(
    role: str, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected(nats_server) as member:
        with monkeypatch.context() as earlier:
            earlier.setattr(streams, "ACK_WAIT_SECONDS", 500.0)
            await member.publish_job("job", "1", b"body")
            assert await member.next_job(30)
        other = await Broker.connect(nats_server.url_of(role), "other", role=role)
        try:
            again = await other.next_job(300)  # an assignment that nobody took is not kept back for 500 s
            assert again is not None
            await other.settle(again)
        finally:
            await other.aclose()


@pytest.mark.parametrize("loss", ["request", "replies for longer than the lease"])
async def test_a_claim_outlasts_a_loss(loss: str, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with connected(nats_server) as broker:
        await broker.leases.create("job", encode(QUEUED))
        clock = Clock()
        keeper = await keeper_of(broker, "a", clock)
        update, get, calls = broker.leases.update, broker.leases.get, []

        async def lossy_update(key: str, data: bytes, revision: int) -> int:
            calls.append("update")
            if loss == "request" and len(calls) == 1:
                raise NoReply
            written = await update(key, data, revision)
            if loss != "request" and len(calls) == 1:
                clock.now += LEASE_SECONDS
                raise NoReply
            return written

        async def lossy_get(key: str) -> Stored | None:
            calls.append("get")
            if loss != "request" and len(calls) == 2:
                raise NoReply
            return await get(key)

        monkeypatch.setattr(broker.leases, "update", lossy_update)
        monkeypatch.setattr(broker.leases, "get", lossy_get)
        assert await keeper.claim()
        stored = await get("job")
        assert stored is not None
        record = decode(LeaseRecord, stored.data)
        assert (record.phase, record.host, record.attempt) == (Phase.RUNNING, "a", 1)


async def test_of_two_hosts_one_gets_the_lease(nats_server: NatsServer) -> None:
    async with connected(nats_server) as broker:
        await broker.leases.create("job", encode(QUEUED))
        a, b = await keeper_of(broker, "a"), await keeper_of(broker, "b")
        assert sorted(await asyncio.gather(a.claim(), b.claim())) == [False, True]
        winner, loser = (a, b) if a.lease.may_run() else (b, a)
        assert loser.lease.hold is Hold.LOST
        await winner.begin_delivery()
        await winner()
        assert not await loser.finish(OK, 0)
        assert await winner.finish(OK, 3)
        stored = await broker.leases.get("job")
        assert stored is not None
        record = decode(LeaseRecord, stored.data)
        assert (record.phase, record.host, record.events) == (Phase.DONE, winner.lease.host, 3)


async def test_a_lease_is_renewed_and_one_that_was_taken_away_ends(nats_server: NatsServer) -> None:
    async with connected(nats_server) as broker:
        await broker.leases.create("job", encode(QUEUED))
        keeper = await keeper_of(broker, "a", clock := Clock())
        assert await keeper.claim()
        keeping = asyncio.create_task(keeper.keep())
        for _ in range(4):
            before, clock.now = keeper.lease.revision, keeper.lease.renew_at
            async with asyncio.timeout(60):
                while keeper.lease.revision == before:  # noqa: ASYNC110 - renewals have no event
                    await asyncio.sleep(0.01)
        assert keeper.lease.may_run()
        await broker.leases.update("job", encode(LeaseRecord(Phase.QUEUED, 2, "front")), keeper.lease.revision)
        clock.now = keeper.lease.renew_at
        async with asyncio.timeout(60):
            await keeping
        assert keeper.lease.hold is Hold.LOST
        with pytest.raises(JobFailed) as failed:
            await keeper.begin_delivery()
        assert failed.value.code is FailureCode.HOST_LOST


async def test_the_fence_of_a_job_that_has_ended_is_written_once(nats_server: NatsServer) -> None:
    async with connected(nats_server) as broker:
        await broker.leases.create("job", encode(QUEUED))
        keeper = await keeper_of(broker, "a", Clock())
        assert await keeper.claim()
        claimed = keeper.lease.revision
        keeping = asyncio.create_task(keeper.keep())
        keeper.prepare()
        async with asyncio.timeout(60):
            while keeper.lease.record.phase is not Phase.DELIVERING:  # noqa: ASYNC110 - a write has no event
                await asyncio.sleep(0.01)
        await keeper.begin_delivery()
        assert keeper.lease.revision == claimed + 1
        keeping.cancel()


async def test_uploads_begin_behind_the_fence_also_after_renewals_that_took_its_time(nats_server: NatsServer) -> None:
    async with connected(nats_server) as broker:
        await broker.leases.create("job", encode(QUEUED))
        keeper = await keeper_of(broker, "a", clock := Clock())
        assert await keeper.claim()
        within, is_over = keeper._within_lease, asyncio.Event()

        async def watched(what: Literal["renew", "deliver"]) -> None:
            await within(what)
            is_over.set()

        keeper._within_lease = watched  # type: ignore[method-assign]
        clock.now = keeper.lease.fence_at - 0.1
        async with asyncio.timeout(60):
            async with keeper._lock:
                beginning = asyncio.create_task(keeper.begin_delivery())
                await asyncio.sleep(0)  # it waits for the lock until the fence
                await keeper._write(Phase.RUNNING)  # moves the fence
                await is_over.wait()
            await beginning
        assert keeper.lease.record.phase is Phase.DELIVERING


async def test_records_are_written_again_also_after_a_fault_of_their_source(nats_server: NatsServer) -> None:
    async with connected(nats_server) as broker:
        faults, is_written = [OSError("disk"), RuntimeError("closed")], asyncio.Event()

        async def restore() -> None:
            if faults:
                raise faults.pop()
            is_written.set()

        broker.on_prepared = restore
        broker._prepare_again()
        async with asyncio.timeout(60):
            await is_written.wait()


async def test_lost_keys_are_restored_from_where_the_time_was_up(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected(nats_server) as broker:
        member = Owners(Member("one", "boot"), broker)
        keys, taken = [bytes([number]) * 32 for number in range(2 * KEYS_AT_A_TIME)], []

        async def known_keys() -> list[bytes]:
            return keys

        async def take(key: bytes) -> int:
            if len(taken) == KEYS_AT_A_TIME:
                monkeypatch.undo()
                raise NoReply
            taken.append(key)
            return 1

        member.known_keys = known_keys
        monkeypatch.setattr(member, "take_idempotency_key", take)
        with pytest.raises(NoReply):
            await member.register()
        monkeypatch.undo()
        await member.register()
        known = [key for key in keys if await member.of_idempotency_key(key) is not None]
        assert set(known) == set(keys) - set(taken)
        assert await broker.members.get(tag_of("one")) is not None


async def test_a_job_that_has_ended_uploads_nothing_for_another_host(nats_server: NatsServer) -> None:
    async with connected(nats_server) as broker:
        await broker.leases.create("job", encode(QUEUED))
        keeper = await keeper_of(broker, "a")
        assert await keeper.claim()
        await broker.leases.update("job", encode(LeaseRecord(Phase.QUEUED, 2, "front")), keeper.lease.revision)
        keeping = asyncio.create_task(keeper.keep())
        keeper.prepare()
        async with asyncio.timeout(60):
            await keeping
        with pytest.raises(JobFailed):
            await keeper.begin_delivery()


async def test_without_the_broker_a_holder_ends_before_the_lease_is_over(nats_server: NatsServer) -> None:
    async with connected(nats_server) as broker:
        await broker.leases.create("job", encode(QUEUED))
        keeper = await keeper_of(broker, "a")
        began = time.monotonic()
        assert await keeper.claim()
        nats_server.kill()
        async with asyncio.timeout(60):
            await keeper.keep()
        assert keeper.lease.hold is Hold.LOST
        assert keeper.lease.fence_at < keeper.lease.clock()
        assert time.monotonic() - began > 3  # it held on for most of the lease


async def test_a_verdict_outlasts_a_restart_of_the_broker(nats_server: NatsServer) -> None:
    async with connected(nats_server) as broker:
        await broker.leases.create("job", encode(QUEUED))
        keeper = await keeper_of(broker, "a")
        assert await keeper.claim()
        await keeper.begin_delivery()
        nats_server.kill()
        finishing = asyncio.create_task(keeper.finish(OK, 0))
        with pytest.raises(NoReply):
            await broker.leases.get("job")
        nats_server.start()
        async with asyncio.timeout(60):
            assert await finishing


async def test_a_member_connects_again_after_an_error_of_the_server(nats_server: NatsServer) -> None:
    configuration = nats_server.directory / "nats.conf"
    right = configuration.read_text()
    async with connected(nats_server) as broker:
        for is_connected, text in ((False, right.replace("password: member", "password: other")), (True, right)):
            configuration.write_text(text)
            nats_server.process.send_signal(signal.SIGHUP)
            async with asyncio.timeout(60):
                while broker.is_connected != is_connected:  # noqa: ASYNC110 - a connection has no event
                    await asyncio.sleep(0.02)
        assert await broker.leases.create("job", b"1")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (("jetstream {", "jetstream {\n enabled: false"), "it has no JetStream"),
        (("port:", "max_payload: 99999\nport:"), "its max_payload is 99999"),
    ],
)
async def test_a_server_that_takes_no_jobs_is_refused_and_makes_no_member_healthy(
    nats_server: NatsServer, change: tuple[str, str], text: str
) -> None:
    configuration = nats_server.directory / "nats.conf"
    right = configuration.read_text()
    async with connected(nats_server) as broker:
        for is_right in (False, True):
            configuration.write_text(right if is_right else right.replace(*change))
            nats_server.kill()
            nats_server.start()
            async with asyncio.timeout(60):
                while broker.is_connected != is_right or broker._client.is_reconnecting:  # noqa: ASYNC110 - no event
                    await asyncio.sleep(0.02)
            if not is_right:
                with pytest.raises(ConfigurationError, match=f"can be used: (nats: )?{text}"):
                    await Broker.connect(nats_server.url, "another")


async def test_without_a_server_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.cluster.broker.connection.CONNECT_SECONDS", 1.0)
    with pytest.raises(ConfigurationError, match=r"CLUSTER_URL: no broker at 127\.0\.0\.1:9 can be used"):
        await Broker.connect("nats://user:secret@127.0.0.1:9", "test")


async def test_a_member_starts_although_a_reply_is_lost(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, lost = JetStreamContext.add_stream, []

    async def without_reply(*args: Any) -> Any:
        answer = await made(*args)
        if not lost:
            lost.append(answer)
            raise nats.errors.TimeoutError
        return answer

    monkeypatch.setattr(JetStreamContext, "add_stream", without_reply)
    async with connected(nats_server) as broker:
        assert lost
        assert await broker.leases.create("job", b"1")


async def test_a_server_that_says_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.cluster.broker.connection.CONNECT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(ConfigurationError, match=r"can be used: \w"):
            await Broker.connect(f"nats://127.0.0.1:{port}", "test")


async def test_a_broker_without_room_is_told_to_caller_and_operator(
    nats_server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    configuration = nats_server.directory / "nats.conf"
    configuration.write_text(configuration.read_text().replace("jetstream {", "jetstream {\n  max_file_store: 20KB"))
    nats_server.kill()
    nats_server.start()

    async def fill() -> None:
        for number in range(1000):
            await broker.leases.create(f"job-{number}", bytes(1000))

    async with connected(nats_server) as broker:
        with pytest.raises(NoReply, match="its storage is full"):
            await fill()
        member = Member("one", "boot")
        claims = RequestClaims(member, broker, Owners(member, broker), lambda job: None)
        with pytest.raises(BrokerDown, match="did not take the job, so it was not accepted: its storage is full"):
            await claims.claim("id", None, "job")
    told = [record.message for record in caplog.records if "the broker takes no jobs" in record.message]
    assert len(told) == 1, "at most once a minute"
