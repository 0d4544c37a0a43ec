"""Members in one process, over a real NATS server; their machines do what a job's code says, without kernels."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from nats.js.errors import NotFoundError

from gateway.cluster.broker import Broker, subjects
from gateway.cluster.claims import RequestClaims
from gateway.cluster.host import attempt as cluster_attempt
from gateway.cluster.member import Member
from gateway.cluster.owners import Owners
from gateway.cluster.runner import ClusterRunner
from gateway.cluster.runner import run as cluster_run
from gateway.cluster.runner.run import ClusterRun
from gateway.cluster.wire import Assignment, EventBatch, LeaseRecord, Phase, decode, encode
from gateway.core.cancellation import StopSignal
from gateway.core.errors import Conflict, FailureCode, MemberDown
from gateway.core.events import EventLog
from gateway.core.job import HeldKernel, Job, KeptDelivery, Scope, UrlDelivery, Verdict
from gateway.core.settings import Settings
from gateway.jobs.delivery import Deliverer
from gateway.jobs.peers import PeerRequest
from gateway.jobs.store import JobStore
from gateway.storage import KeptResultStore, ObjectClient
from tests.gateway.http.harness import ScriptedRun, ScriptedRunner
from tests.support.nats_server import NatsServer


class Machine(ScriptedRunner):
    """A machine whose uploads are counted."""

    def open(self, *args: Any) -> ScriptedRun:
        *others, permit = args
        run = super().open(*others)
        deliver = run.deliver

        async def counted() -> Verdict:
            if permit is not None:
                await permit()
            self.delivered = getattr(self, "delivered", 0) + 1
            return await deliver()

        run.deliver = counted  # type: ignore[method-assign]
        return run


@dataclass(eq=False)
class InProcess:
    """One member."""

    runner: ClusterRunner
    machine: Machine
    broker: Broker

    def start(self, code: str, job_id: str = "job") -> tuple[ClusterRun, EventLog, StopSignal, asyncio.Task[Verdict]]:
        """Bring a job from its acceptance to its verdict, as the job service does."""
        job, log, stop = Job(job_id, code, 30.0, UrlDelivery("http://127.0.0.1:9/o")), EventLog(), StopSignal()
        run = cast("ClusterRun", self.runner.open(job, log, stop, job_id, None))

        async def drive() -> Verdict:
            try:
                while not run.take_slot():  # noqa: ASYNC110 - the service has the queue for this
                    await asyncio.sleep(0.01)
                await run.execute()
                return await run.deliver()
            finally:
                await run.close()

        return run, log, stop, asyncio.create_task(drive())


@asynccontextmanager
async def cluster(server: NatsServer, tmp_path: Path, *slots: int) -> AsyncIterator[list[InProcess]]:
    async with AsyncExitStack() as stack:
        made = []
        for number, count in enumerate(slots):
            settings = Settings(state_dir=tmp_path / str(number), drain_seconds=0)
            (settings.state_dir / "store").mkdir(parents=True, exist_ok=True)
            results, client = KeptResultStore(settings), await stack.enter_async_context(ObjectClient(5))
            machine = Machine(settings.state_dir, results, count)
            me = Member.of(settings.state_dir)
            broker = await Broker.connect(server.url, me.name)
            runner = ClusterRunner(settings, me, machine, broker, Deliverer(settings, results, client), client)  # type: ignore[arg-type]
            runner.on_slot_free(lambda: None)
            stack.push_async_callback(runner.aclose)
            await runner.start((), lambda: False, JobStore(settings).known_keys)
            made.append(InProcess(runner, machine, broker))
        yield made


async def until(holds: Callable[[], Any]) -> None:
    async with asyncio.timeout(55):
        while not holds():  # noqa: ASYNC110 - the members have no event for this
            await asyncio.sleep(0.02)


async def test_a_job_runs_on_the_member_that_has_a_slot(
    nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_run, "LOOK_SECONDS", 1e6)
    async with cluster(nats_server, tmp_path, 0, 1) as (front, host):
        await until(lambda: front.runner.slots().total == 1)  # each news of a member would be a look
        look = front.broker.leases.get
        monkeypatch.setattr(front.broker.leases, "get", None)  # its host tells the member all that it must know
        *_, log, _, verdict = front.start("ok")
        assert (await verdict).ok
        monkeypatch.setattr(front.broker.leases, "get", look)
        assert [line.message for line in log.lines()] == ["begin", "end"]
        assert (len(front.machine.jobs), len(host.machine.jobs)) == (0, 1)
        assert await front.broker.leases.get("job") is None  # nothing is left at the broker


async def test_a_host_lets_the_answer_go_first(
    nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_attempt, "ANSWER_FIRST_SECONDS", 1e6)
    async with cluster(nats_server, tmp_path, 0, 1) as (front, host):
        log, stop = EventLog(), StopSignal()
        run = front.runner.open(Job("job", "ok", 30.0, UrlDelivery("http://127.0.0.1:9/o")), log, stop, "job", None)
        await until(run.take_slot)
        await run.execute()
        assert (await run.deliver()).ok
        assert host.machine.closed == []
        await run.close()  # the caller has the answer
        await until(lambda: len(host.machine.closed) == 1)


async def test_a_verdict_does_not_wait_for_its_record(
    nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with cluster(nats_server, tmp_path, 0, 1) as (front, host):
        update, answered = host.broker.leases.update, asyncio.Event()

        async def late(key: str, data: bytes, revision: int) -> int:
            if decode(LeaseRecord, data).phase is Phase.DONE:
                await answered.wait()
            return await update(key, data, revision)

        monkeypatch.setattr(host.broker.leases, "update", late)
        *_, log, _, verdict = front.start("ok")
        assert (await asyncio.wait_for(verdict, 55)).ok
        assert [line.message for line in log.lines()] == ["begin", "end"]
        answered.set()  # the record is removed already, and stays so
        await until(lambda: len(host.machine.closed) == 1)
        assert await front.broker.leases.get("job") is None
        assert [record.message for record in caplog.records if record.levelname == "WARNING"] == []


async def test_a_host_that_has_lost_its_lease_sends_no_verdict(
    nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(nats_server, tmp_path, 0, 1) as (front, host):
        sent: list[EventBatch] = []
        send = host.broker.send

        async def seen(subject: str, data: bytes) -> None:
            if subject.startswith("tg.v1.ev."):
                sent.append(decode(EventBatch, data))
            await send(subject, data)

        monkeypatch.setattr(host.broker, "send", seen)
        *_, verdict = front.start("hold")
        await until(host.machine.begun.is_set)
        attempt = host.runner._host._attempts["job"]
        whole = attempt.run.deliver

        async def long() -> Verdict:
            ended = await whole()
            stored = await front.broker.leases.get("job")
            assert stored is not None
            await front.broker.leases.update("job", encode(LeaseRecord(Phase.QUEUED, 2, "front")), stored.revision)
            attempt.keeper.lease._confirmed_at -= attempt.keeper.lease.seconds  # the upload took so long
            return ended

        monkeypatch.setattr(attempt.run, "deliver", long)
        host.machine.release.set()
        await until(lambda: len(host.machine.closed) == 1)
        assert [batch.lease.phase for batch in sent if batch.lease is not None] == [Phase.RUNNING]
        verdict.cancel()


async def test_a_job_does_not_wait_for_a_slot_that_was_taken_meanwhile(nats_server: NatsServer, tmp_path: Path) -> None:
    async with cluster(nats_server, tmp_path, 0, 1) as (front, host):
        jetstream = front.broker._js
        async with asyncio.timeout(55):
            while True:  # until the host, whose slot is free, has asked for a job
                with contextlib.suppress(NotFoundError):
                    asked = await jetstream.consumer_info(subjects.JOBS_STREAM, subjects.JOBS_CONSUMER)
                    if asked.num_waiting == 1:
                        break
                await asyncio.sleep(0.02)
        assert host.machine.pool.take()  # by a job that only this machine can run
        _, log, _, verdict = front.start("ok")
        async with cluster(nats_server, tmp_path / "more", 1) as (other,):
            assert (await verdict).ok
            await until(lambda: len(other.machine.closed) == 1)
        assert [line.message for line in log.lines()] == ["begin", "end"]


async def test_a_host_that_ends_hands_its_job_over(nats_server: NatsServer, tmp_path: Path) -> None:
    async with cluster(nats_server, tmp_path, 0, 1, 1) as (front, *hosts):
        *_, log, _, verdict = front.start("hold")
        await until(lambda: any(host.machine.begun.is_set() for host in hosts))
        first = next(host for host in hosts if host.machine.begun.is_set())
        second = next(host for host in hosts if host is not first)
        await first.runner.aclose()  # says that it leaves
        await until(second.machine.begun.is_set)
        second.machine.release.set()
        assert (await verdict).ok
        assert sum("runs again (attempt 2)" in line.message for line in log.lines()) == 1


async def test_a_host_that_vanishes_twice_ends_the_job(nats_server: NatsServer, tmp_path: Path) -> None:
    async with cluster(nats_server, tmp_path, 0, 1, 1) as (front, *hosts):
        *_, verdict = front.start("hold")
        for _ in range(2):
            await until(lambda: any(host.machine.begun.is_set() for host in hosts))
            busy = next(host for host in hosts if host.machine.begun.is_set())
            hosts.remove(busy)
            await busy.runner.aclose()
        ended = await verdict
        assert ended.code is FailureCode.HOST_LOST
        assert "at most 2 are allowed" in ended.message


async def test_events_that_were_lost_are_asked_for(
    nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(nats_server, tmp_path, 0, 1) as (front, host):
        send, dropped = host.broker.send, []

        async def lossy(subject: str, data: bytes) -> None:
            if subject.startswith("tg.v1.ev.") and b"begin" in data and not dropped:
                dropped.append(data)
                return
            await send(subject, data)

        monkeypatch.setattr(host.broker, "send", lossy)
        *_, log, _, verdict = front.start("ok")
        assert (await verdict).ok
        assert dropped
        assert [line.message for line in log.lines()] == ["begin", "end"]


async def test_events_that_cannot_be_read_leave_the_verdict(
    nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(nats_server, tmp_path, 0, 1) as (front, host):
        send, ask = host.broker.send, front.broker.ask

        async def without_events(subject: str, data: bytes) -> None:
            if not subject.startswith("tg.v1.ev."):
                await send(subject, data)

        async def of_another_version(subject: str, data: bytes, *seconds: float) -> bytes | None:
            return b"{}" if subject.startswith("tg.v1.log.") else await ask(subject, data, *seconds)

        monkeypatch.setattr(host.broker, "send", without_events)
        monkeypatch.setattr(front.broker, "ask", of_another_version)
        *_, log, _, verdict = front.start("ok")
        assert (await verdict).ok
        assert "lines were lost with the host" in [line.message for line in log.lines()][-1]


async def test_a_member_whose_answer_cannot_be_read_is_down(
    nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(nats_server, tmp_path, 0) as (one,):

        async def of_another_version(*_: object) -> bytes:
            return b"{}"

        monkeypatch.setattr(one.broker, "ask", of_another_version)
        with pytest.raises(MemberDown):
            await anext(one.runner.peers.ask("another", PeerRequest("GET", "/v1/logs", {}, b"", None, 0)))


async def test_a_cancel_reaches_the_host_and_a_waiting_job(nats_server: NatsServer, tmp_path: Path) -> None:
    async with cluster(nats_server, tmp_path, 0, 1) as (front, host):
        *_, stop, running = front.start("hold")
        await until(host.machine.begun.is_set)
        stop.request(FailureCode.CANCELLED)
        assert (await running).code is FailureCode.CANCELLED
        await until(lambda: [job.request_id for job in host.machine.closed] == ["job"])


async def test_a_job_that_no_host_can_read_ends_with_both_versions(nats_server: NatsServer, tmp_path: Path) -> None:
    async with cluster(nats_server, tmp_path, 0, 1) as (front, host):
        publish = front.broker.publish_job

        async def newer(execution_id: str, number: str, data: bytes) -> None:
            sent = decode(Assignment, data)
            job = msgspec.json.decode(bytes(sent.job)) | {"version": 2}
            await publish(
                execution_id,
                number,
                encode(msgspec.structs.replace(sent, software="9.9", job=msgspec.Raw(msgspec.json.encode(job)))),
            )

        front.broker.publish_job = newer  # type: ignore[method-assign]
        *_, verdict = front.start("ok")
        ended = await verdict
        assert ended.code is FailureCode.INTERNAL
        assert "(version 9.9)" in ended.message
        assert "version 0.1.0" in ended.message
        assert host.machine.jobs == []


async def test_a_message_that_is_no_assignment_does_no_harm(nats_server: NatsServer, tmp_path: Path) -> None:
    async with cluster(nats_server, tmp_path, 0, 1) as (front, _):
        await front.broker.publish_job("unknown", "1", b"\x00")
        for subject in (subjects.events("x"), subjects.cancel(front.runner._me.name), subjects.beat("x")):
            await front.broker.send(subject, b"{}")
        *_, verdict = front.start("ok")
        assert (await verdict).ok


async def test_a_request_id_is_claimed_once(nats_server: NatsServer, tmp_path: Path) -> None:
    async with cluster(nats_server, tmp_path, 0, 0) as (one, two):
        await one.runner.claims.claim(7, "etl", "a")
        with pytest.raises(Conflict, match="accepted by member"):
            await two.runner.claims.claim(7, "etl", "b")
        await two.runner.claims.claim("7", "etl", "c")  # its JSON type counts, and the token
        await two.runner.claims.claim(7, None, "d")
        await two.runner.claims.release("b")  # was never its own
        with pytest.raises(Conflict):
            await two.runner.claims.claim(7, "etl", "e")
        await one.runner.claims.release("a")
        await two.runner.claims.claim(7, "etl", "f")


async def test_a_host_that_does_not_answer_is_named_with_the_command_that_attaches(
    nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(nats_server, tmp_path, 0, 1) as (front, host):
        kernel = HeldKernel(
            "ab12", "job", "user_error", 1.0, 2.0, {"attach": "jupyter console --existing /s/ab12.json"}
        )
        host.runner._roster.held = lambda: [kernel]
        await until(front.runner.held_kernels)

        async def no_reply(*args: Any) -> None: ...

        monkeypatch.setattr(front.broker, "ask", no_reply)
        name = host.runner._me.name
        with pytest.raises(Conflict, match=f"the host {name} holds .* there: jupyter console --existing /s/ab12.json"):
            await front.runner.release("ab12")
        assert [each.access["host"] for each in front.runner.held_kernels()] == [name]


async def test_an_idempotency_key_is_claimed_once(nats_server: NatsServer, tmp_path: Path) -> None:
    async with cluster(nats_server, tmp_path, 0, 0) as (one, two):
        await one.runner.claims.claim(1, None, "a", b"key")
        with pytest.raises(Conflict, match="Idempotency-Key"):
            await two.runner.claims.claim(2, None, "b", b"key")
        await two.runner.claims.withdraw("b")
        await two.runner.claims.claim(2, None, "c")
        await one.runner.claims.release("a")  # the end of the job does not free its key
        stale = await two.runner.peers.entry_of_key(b"key")
        assert stale is not None
        assert stale.owner == one.runner.peers.name
        await one.runner.peers.forget_key(b"key", stale)
        await one.runner.claims.claim(3, None, "d", b"key")
        await two.runner.peers.forget_key(b"key", stale)  # that was before another job had it
        with pytest.raises(Conflict):
            await two.runner.claims.claim(4, None, "e", b"key")
        await one.runner.claims.withdraw("d")
        await two.runner.claims.claim(5, None, "f", b"key")


async def test_a_member_that_starts_again_takes_its_ids_back(nats_server: NatsServer, tmp_path: Path) -> None:
    async with cluster(nats_server, tmp_path, 0, 0) as (one, two):
        before, me = one.runner.claims, one.runner._me
        await before.claim(7, None, "left")
        await one.broker.leases.create("left", encode(LeaseRecord(Phase.RUNNING, 1, me.name, "host", "boot")))
        again = RequestClaims(Member(me.name, "another"), one.broker, Owners(me, one.broker), lambda job: None)
        with pytest.raises(Conflict):  # a host still runs the job
            await again.claim(7, None, "new")
        await again.claim_again(7, None, "left")
        with pytest.raises(Conflict):
            await two.runner.claims.claim(7, None, "other")
        await again.release("left")
        await two.runner.claims.claim(7, None, "other")


async def test_jobs_that_wait_anywhere_count_everywhere(nats_server: NatsServer, tmp_path: Path) -> None:
    async with cluster(nats_server, tmp_path, 0, 1) as (front, host):
        *_, running = front.start("hold", "runs")
        await until(host.machine.begun.is_set)
        *_, waiting = front.start("ok", "waits")
        await until(lambda: host.runner.slots().wanted == 1)
        assert front.runner.slots().wanted == 0  # its own are in its store
        await until(lambda: front.runner.slots().busy == 1)
        host.machine.release.set()
        assert (await running).ok
        assert (await waiting).ok
        await until(lambda: host.runner.slots().wanted == 0)


async def test_a_slot_that_is_taken_counts_at_once_everywhere(
    nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.cluster.member.SILENT_SECONDS", 1000.0)
    monkeypatch.setattr("gateway.cluster.member.BEAT_SECONDS", 1000.0)  # no beat without a change
    async with cluster(nats_server, tmp_path, 0, 0, 1) as (front, other, host):
        host.runner._roster.changed()
        await until(lambda: not host.runner._roster._changed.is_set())
        await until(lambda: (other.runner.slots().total, other.runner.slots().busy) == (1, 0))
        *_, verdict = front.start("hold")
        await until(lambda: other.runner.slots().busy)
        host.machine.release.set()
        assert (await verdict).ok
        await until(lambda: not other.runner.slots().busy)


async def test_the_newest_job_of_an_id_is_found_at_its_member(nats_server: NatsServer, tmp_path: Path) -> None:
    async with cluster(nats_server, tmp_path, 0, 0) as (one, two):
        names = {each: each.runner.peers.name for each in (one, two)}
        for member in (one, two):
            job_id = member.runner.claims.new_id()
            await member.runner.claims.claim("id", "etl", job_id)
            await member.runner.claims.announce("id", "etl")
            other = two if member is one else one
            assert await other.runner.peers.owner_of_job(job_id) == names[member]
            assert await member.runner.peers.owner_of_job(job_id) is None
            await member.runner.claims.release(job_id)
            for scope, owner in (
                (Scope("etl", sees_all=False), names[member]),
                (Scope("other", sees_all=False), None),
                (Scope(), names[member]),
            ):
                assert await other.runner.peers.owner_of_request(("id",), scope) == owner
                assert await member.runner.peers.owner_of_request(("id",), scope) is None
        await one.runner.claims.announce("without a name", None)  # is found by all, so by one entry
        assert await two.runner.peers.owner_of_request(("without a name",), Scope()) == names[one]
        assert (await one.broker._js.stream_info("KV_TG1_OWNERS")).state.messages == 3
        nats_server.kill()
        with pytest.raises(MemberDown):
            await one.runner.peers.owner_of_request(("id",), Scope())
        nats_server.start()


async def test_a_job_with_files_of_this_machine_stays_here(nats_server: NatsServer, tmp_path: Path) -> None:
    async with cluster(nats_server, tmp_path, 1, 1) as (one, two):
        job = Job("kept", "ok", 5.0, KeptDelivery())
        run = one.runner.open(job, EventLog(), StopSignal(), "kept", None)
        assert isinstance(run, ScriptedRun)
        await run.close()
        assert two.machine.jobs == []


def test_without_a_cluster_nothing_of_it_is_imported() -> None:
    modules = imported_by("gateway.process.serve")
    assert [name for name in modules if name == "nats" or name.startswith("gateway.cluster")] == []


def test_a_process_that_only_runs_jobs_imports_no_api() -> None:
    modules = imported_by("gateway.process.serve", "gateway.http.probes", "gateway.cluster.runner")
    assert [name for name in modules if name == "pydantic" or name.startswith("gateway.http.handlers")] == []


def imported_by(*names: str) -> list[str]:
    """Return the modules that a process has which imports some."""
    script = f"import sys, {', '.join(names)}\nprint(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    return ended.stdout.split()
