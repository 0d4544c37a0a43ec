"""Which role may do what at the broker: the configuration of ``deploy/nats``, and a real server with certificates."""

from __future__ import annotations

import asyncio
import itertools
import re
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import nats
import pytest

from gateway.cluster.broker import Broker
from gateway.cluster.wire import LeaseRecord, Phase, encode
from gateway.core.errors import ConfigurationError
from tests.support.nats_server import ROLES, NatsServer

LEASE = encode(LeaseRecord(Phase.QUEUED, 1, "front"))
STREAMS = ("TG1_JOBS", "KV_TG1_LEASES", "KV_TG1_CLAIMS", "KV_TG1_OWNERS", "KV_TG1_MEMBERS")

#: What a client sends, and the roles that may. A payload, or None for a subscription.
RIGHTS: list[tuple[str, str, bytes | None, set[str]]] = [
    ("queue a job", "tg.v1.jobs.new", b"{}", {"member", "acceptor"}),
    ("take a job", "$JS.API.CONSUMER.MSG.NEXT.TG1_JOBS.hosts", b"1", {"member", "host"}),
    ("remove a job that it took", "$JS.ACK.TG1_JOBS.hosts.1.1.1.1.0", b"+ACK", {"member", "host"}),
    ("read jobs as they are queued", "tg.v1.jobs.*", None, {"member"}),
    ("write a lease", "$KV.TG1_LEASES.job", LEASE, {"member", "acceptor", "host"}),
    ("read a lease", "$JS.API.STREAM.MSG.GET.KV_TG1_LEASES", b"{}", {"member", "acceptor", "host"}),
    ("claim a request id", "$KV.TG1_CLAIMS.id", b"{}", {"member", "acceptor"}),
    ("note whose a request id is", "$KV.TG1_OWNERS.id", b"{}", {"member", "acceptor"}),
    ("tell the name of a member", "$KV.TG1_MEMBERS.tag", b"{}", {"member", "acceptor"}),
    ("ask a member in the name of a caller", "tg.v1.ask.other", b"{}", {"member", "acceptor"}),
    ("answer in the name of a member", "tg.v1.ask.*", None, {"member", "acceptor"}),
    ("read the events of jobs", "tg.v1.ev.*", None, {"member", "acceptor"}),
    ("tell events", "tg.v1.ev.front", b"{}", {"member", "acceptor", "host"}),
    ("ask another host for events", "tg.v1.log.other", b"{}", {"member", "acceptor"}),
    ("cancel a job", "tg.v1.cancel.other", b"{}", {"member", "acceptor"}),
    ("beat", "tg.v1.beat.me", b"{}", {"member", "acceptor", "host"}),
    ("hear of members", "tg.v1.beat.*", None, {"member", "acceptor"}),
    ("hear who cancels a job", "tg.v1.cancel.*", None, {"member", "acceptor", "host"}),
    ("answer a member", "_INBOX.member.x", b"{}", {"member", "acceptor"}),
    ("answer a host", "_INBOX.host.x", b"{}", set()),
    ("read answers to hosts", "_INBOX.host.>", None, {"member", "host"}),
    ("read answers to members", "_INBOX.member.>", None, {"member"}),
    ("read answers to acceptors", "_INBOX.acceptor.>", None, {"member", "acceptor"}),
    ("read all", ">", None, set()),
    ("read what others ask of the streams", "$JS.API.>", None, set()),
    ("read the jobs in the stream", "$JS.API.STREAM.MSG.GET.TG1_JOBS", b'{"seq": 1}', set()),
    ("make another consumer", "$JS.API.CONSUMER.CREATE.TG1_JOBS.mine", b"{}", set()),
    ("remove the consumer", "$JS.API.CONSUMER.DELETE.TG1_JOBS.hosts", b"", set()),
    ("make another stream", "$JS.API.STREAM.CREATE.MINE", b"{}", set()),
    *(
        (f"make the stream {stream}", f"$JS.API.STREAM.CREATE.{stream}", b"{}", {"member", "acceptor"})
        for stream in STREAMS
    ),
    *(
        (f"{verb.lower()} the stream {stream}", f"$JS.API.STREAM.{verb}.{stream}", b"{}", set[str]())
        for stream in STREAMS
        for verb in ("DELETE", "PURGE", "UPDATE", "MSG.DELETE", "SNAPSHOT")
    ),
]


@pytest.fixture(scope="module")
def server(nats_installed: None) -> Iterator[NatsServer]:
    with NatsServer(tls=True) as server:
        yield server


def context_of(server: NatsServer, role: str) -> ssl.SSLContext:
    folder = server.directory / role
    context = ssl.create_default_context(cafile=folder / "ca.crt")
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    return context


@asynccontextmanager
async def broker_of(server: NatsServer, role: str) -> AsyncIterator[Broker]:
    broker = await Broker.connect(server.url, role, role=role, tls=context_of(server, role))
    try:
        yield broker
    finally:
        await broker.aclose()


class Intruder:
    """A client without any manners, and what the server says against it."""

    def __init__(self, server: NatsServer, role: str) -> None:
        self._server = server
        self._role = role
        self._heard: asyncio.Queue[str] = asyncio.Queue()
        self._marks = itertools.count()

    async def __aenter__(self) -> Intruder:
        async def hear(error: Exception) -> None:
            self._heard.put_nowait(str(error).lower())

        tls = context_of(self._server, self._role)
        self._client = await nats.connect(self._server.url, tls=tls, error_cb=hear)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def send_itself(self, pattern: str, reply: str) -> None:
        """Subscribe to a pattern, and publish what asks for an answer on a subject of it."""
        await self._client.subscribe(pattern)
        await self._client.publish(pattern.replace("*", "x").replace(">", "x"), b"{}", reply=reply)

    async def is_refused(self, subject: str, data: bytes | None) -> bool:
        """Send a message, or subscribe, and return whether the server refused it."""
        if data is None:
            subscription = await self._client.subscribe(subject)
        else:
            await self._client.publish(subject, data, reply=f"_INBOX.{self._role}.x")
        mark = f"nobody.may.{next(self._marks)}"  # its refusal comes after the one in question
        await self._client.publish(mark)
        said = []
        async with asyncio.timeout(60):
            while not said or mark not in said[-1]:
                said.append(await self._heard.get())
        if data is None:
            await subscription.unsubscribe()
        kind = "subscription" if data is None else "publish"
        return f'nats: permissions violation for {kind} to "{subject.lower()}"' in said


@pytest.mark.parametrize("role", ROLES)
async def test_a_role_may_do_what_it_needs_and_nothing_else(server: NatsServer, role: str) -> None:
    async with broker_of(server, "member") as broker, Intruder(server, role) as intruder:
        await broker.next_job(0.1)  # makes the consumer
        for action, subject, data, allowed in RIGHTS:
            assert await intruder.is_refused(subject, data) is (role not in allowed), action
        for stream in STREAMS:
            assert (await broker._js.stream_info(stream)).config.name == stream


@pytest.mark.parametrize("role", ROLES)
async def test_no_role_can_ask_itself_for_an_answer_that_it_may_not_send(server: NatsServer, role: str) -> None:
    patterns = [subject for _, subject, data, _ in RIGHTS if data is None]
    forbidden = [subject for _, subject, data, allowed in RIGHTS if data is not None and role not in allowed]
    async with broker_of(server, "member") as broker, Intruder(server, role) as intruder:
        for subject in forbidden:
            for pattern in patterns:
                await intruder.send_itself(pattern, reply=subject)
            assert await intruder.is_refused(subject, b"{}"), subject
        for stream in STREAMS:
            assert (await broker._js.stream_info(stream)).config.name == stream


@pytest.mark.parametrize("role", ["member", "host"])
async def test_a_job_goes_from_the_queue_to_its_verdict(server: NatsServer, role: str) -> None:
    async with broker_of(server, "acceptor") as front, broker_of(server, role) as host:
        heard: asyncio.Queue[bytes] = asyncio.Queue()
        await front.listen("tg.v1.ev.front", heard.put_nowait)
        await host.listen(f"tg.v1.cancel.{role}", lambda data: b"taken " + data)
        assert await front.claims.create(f"id-{role}", b"{}") > 0
        revision = await front.leases.create(f"job-{role}", LEASE)
        await front.publish_job(f"job-{role}", "1", b"body")
        taking = None
        async with asyncio.timeout(60):
            while taking is None or taking.execution_id != f"job-{role}":  # others of this module are in the queue
                taking = await host.next_job(30)
                assert taking is not None
                await host.settle(taking)
        assert await host.leases.update(f"job-{role}", LEASE, revision) > revision
        await host.send("tg.v1.ev.front", b"line")
        async with asyncio.timeout(60):
            assert await heard.get() == b"line"
        assert await front.ask(f"tg.v1.cancel.{role}", b"it") == b"taken it"


async def test_a_host_answers_whoever_asked_it_and_nobody_else(server: NatsServer) -> None:
    async with Intruder(server, "host") as intruder:
        assert await intruder.is_refused("_INBOX.member.forged", b"{}")


async def refusal(monkeypatch: pytest.MonkeyPatch, text: str, url: str, **options: Any) -> None:
    """Return when a connection is refused with a text; a slow machine may need longer until the server has said why."""
    for seconds in (2.0, 8.0, 50.0):
        monkeypatch.setattr("gateway.cluster.broker.connection.CONNECT_SECONDS", seconds)
        with pytest.raises(ConfigurationError) as refused:
            await Broker.connect(url, "test", **options)
        if re.search(text, str(refused.value)):
            return
    raise AssertionError(str(refused.value))


@pytest.mark.parametrize("is_shown", [False, True], ids=["none", "of another authority"])
async def test_without_a_certificate_of_the_authority_nobody_gets_in(
    server: NatsServer, is_shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = ssl.create_default_context(cafile=server.directory / "broker/ca.crt")
    if is_shown:
        with NatsServer(tls=True) as other:
            tls.load_cert_chain(other.directory / "member/tls.crt", other.directory / "member/tls.key")
    await refusal(
        monkeypatch,
        r"CLUSTER_URL: no broker at .*localhost:\d+ can be used: .*(certificate|unknown ca)",
        server.url,
        tls=tls,
    )


async def test_the_broker_itself_is_verified(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    await refusal(monkeypatch, "certificate verify failed", server.url, tls=ssl.create_default_context())
    by_address = server.url.replace("localhost", "127.0.0.1")  # not in the certificate
    await refusal(monkeypatch, "not valid for '127.0.0.1'", by_address, tls=context_of(server, "member"))


async def test_a_role_that_the_certificate_does_not_give_is_refused_with_the_reason(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await refusal(monkeypatch, r"(?i)permissions violation", server.url, tls=context_of(server, "host"))


async def test_a_host_waits_until_a_member_has_made_the_streams(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "it has no streams yet, and a host makes none: start a member"
    await refusal(monkeypatch, text, nats_server.url_of("host"), role="host")
    monkeypatch.setattr("gateway.cluster.broker.connection.CONNECT_SECONDS", 50.0)
    waiting = asyncio.create_task(Broker.connect(nats_server.url_of("host"), "host", role="host"))
    member = await Broker.connect(nats_server.url, "member")
    host = await waiting
    await member.aclose()
    await host.aclose()


async def test_a_wrong_password_is_not_shown(nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.cluster.broker.connection.CONNECT_SECONDS", 2.0)
    with pytest.raises(ConfigurationError) as refused:
        await Broker.connect(nats_server.url.replace(":member@", ":s3cret@"), "test")
    assert "s3cret" not in str(refused.value)
