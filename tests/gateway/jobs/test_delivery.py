"""Results are published in order, survive an outage of the storage, and are never reported without being there."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tornado.ioloop import IOLoop

from gateway.core.cancellation import StopSignal
from gateway.core.errors import FailureCode
from gateway.core.events import EventLog
from gateway.core.job import Job, KeptDelivery, OutputFacts, UrlDelivery, Verdict
from gateway.core.settings import Settings
from gateway.jobs.delivery import Deliverer, JobOutputs
from gateway.jobs.delivery import deliverer as module
from gateway.storage import KeptResultStore, ObjectClient, open_output
from gateway.storage.objects import retries
from gateway.storage.outputs.kept_results import KeptFiles
from tests.gateway.storage.faulty_server import Behave, Conversation, FaultyServer, answer
from tests.support.s3 import S3Server

ROWS, MANIFEST = b'{"n":1}\n', b'{"fields":[]}'
OK = Verdict(None, "", 0, output=OutputFacts(1, 1, len(ROWS), None, "jsonl"))
FAILED = Verdict(FailureCode.USER_ERROR, "no luck", 1)


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


class Bench:
    """A deliverer with one job's outputs."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.settings = dataclasses.replace(Settings(state_dir=directory / "state"), **settings)
        self.store = KeptResultStore(self.settings)
        self.client = ObjectClient(stall_seconds=60.0)
        self.retries = 0
        self.deliverer = Deliverer(self.settings, self.store, self.client, self._count)
        self.stop = StopSignal()
        self.log = EventLog()
        (directory / "output").write_bytes(ROWS)
        self.outputs = JobOutputs(open_output(directory / "output", owner_uid=None, max_bytes=1 << 30), MANIFEST)

    async def deliver(self, to: UrlDelivery | KeptDelivery, verdict: Verdict = OK) -> Verdict:
        outputs = self.outputs if verdict.ok else None
        return await self.deliverer.deliver(Job(1, "", 30, to), verdict, outputs, self.log, self.stop, "job")

    async def aclose(self) -> None:
        self.outputs.close()
        await self.deliverer.aclose()
        await self.client.aclose()
        self.store.close()

    def messages(self) -> list[str]:
        return [line.message for line in self.log.lines()]

    def _count(self) -> None:
        self.retries += 1


@pytest.fixture
def bench(io_loop: IOLoop, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    bench = Bench(tmp_path, **getattr(request, "param", {}))
    yield bench
    io_loop.run_sync(bench.aclose, timeout=60)


def urls(server: FaultyServer) -> UrlDelivery:
    return UrlDelivery(server.url("/output"), server.url("/manifest"), server.url("/events"))


def paths(server: FaultyServer) -> list[str]:
    return [request.target.partition("?")[0] for request in server.received]


def by_path(**behaviours: Behave) -> Behave:
    """Behave as the last part of the path says, and answer 200 where it says nothing."""

    def behave(conversation: Conversation) -> None:
        name = conversation.request.target.partition("?")[0].rpartition("/")[2]
        behaviours.get(name, answer(200))(conversation)

    return behave


async def test_output_manifest_and_log_arrive_at_a_real_server(s3: S3Server, bench: Bench) -> None:
    key = s3.new_prefix()
    to = UrlDelivery(*(s3.put_url(f"{key}/{name}") for name in ("output", "manifest", "events")))
    assert (await bench.deliver(to)).ok
    assert (s3.get(f"{key}/output"), s3.get(f"{key}/manifest")) == (ROWS, MANIFEST)
    assert b"Successfully saved 1 rows to S3" in (s3.get(f"{key}/events") or b"")


async def test_each_object_is_confirmed_before_the_next_is_begun(bench: Bench) -> None:
    with FaultyServer([answer(200, headers="Connection: close\r\n")]) as server:
        assert (await bench.deliver(urls(server))).ok
    assert paths(server) == ["/output", "/manifest", "/events"]


async def test_a_granted_cancel_before_the_delivery_keeps_no_result(bench: Bench) -> None:
    assert bench.stop.request(FailureCode.CANCELLED)
    verdict = await bench.deliver(KeptDelivery())
    assert verdict.code is FailureCode.CANCELLED
    kept = bench.store.get("job")
    assert kept is not None
    assert set(kept.part_bytes) == {"events"}


async def test_no_cancel_is_granted_once_the_result_is_kept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    keep, granted = bench.store.keep, []

    async def keep_then_cancel(*arguments: Any) -> KeptFiles:
        kept = await keep(*arguments)
        # runs after this task, and before the one that waits for it
        asyncio.get_running_loop().call_soon(lambda: granted.append(bench.stop.request(FailureCode.CANCELLED)))
        return kept

    monkeypatch.setattr(bench.store, "keep", keep_then_cancel)
    assert (await bench.deliver(KeptDelivery())).ok
    assert granted == [False]


async def test_no_manifest_is_published_without_its_output(bench: Bench) -> None:
    with FaultyServer([by_path(output=answer(403))]) as server:
        verdict = await bench.deliver(urls(server))
    assert (verdict.code, verdict.may_retry, verdict.output) == (FailureCode.OUTPUT_UPLOAD_FAILED, False, None)
    assert paths(server) == ["/output", "/events"]
    assert "answered 403" in bench.messages()[-1]


async def test_manifest_that_is_refused_fails_the_job(bench: Bench) -> None:
    with FaultyServer([by_path(manifest=answer(403))]) as server:
        assert (await bench.deliver(urls(server))).code is FailureCode.OUTPUT_UPLOAD_FAILED
        await bench.client.aclose()
    assert not any("Successfully" in message for message in bench.messages())


async def test_outage_longer_than_a_few_attempts_is_survived(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "RETRY_DELAYS_SECONDS", (0.01,))
    monkeypatch.setattr(retries, "LATER_DELAY_SECONDS", 0.01)
    with FaultyServer([*[answer(503)] * 25, answer(200)]) as server:
        assert (await bench.deliver(urls(server))).ok
    assert bench.retries == 25


@pytest.mark.parametrize("bench", [{"delivery_retry_seconds": 0}], indirect=True)
async def test_delivery_is_given_up_when_its_time_is_over(bench: Bench) -> None:
    with FaultyServer([answer(503)]) as server:
        verdict = await bench.deliver(urls(server))
    assert (verdict.code, verdict.may_retry, bench.retries) == (FailureCode.OUTPUT_UPLOAD_FAILED, True, 0)


async def test_delivery_is_given_up_when_the_url_has_expired(bench: Bench) -> None:
    with FaultyServer([answer(503)]) as server:
        url = f"{server.url('/output')}&X-Amz-Date=20200101T000000Z&X-Amz-Expires=60"
        assert (await bench.deliver(UrlDelivery(url))).code is FailureCode.OUTPUT_UPLOAD_FAILED
    assert paths(server) == ["/output"]


@pytest.mark.parametrize("stage", ["output", "manifest"])
async def test_cancel_ends_the_delivery_and_only_the_log_follows(bench: Bench, stage: str) -> None:
    begun = threading.Event()

    def hang(conversation: Conversation) -> None:
        begun.set()
        conversation.wait_for_close()

    with FaultyServer([by_path(**{stage: hang})]) as server:
        delivering = asyncio.create_task(bench.deliver(urls(server)))
        assert await asyncio.to_thread(begun.wait, 60)
        assert bench.stop.request(FailureCode.CANCELLED)
        verdict = await delivering
        await bench.client.aclose()
    assert verdict.code is FailureCode.CANCELLED
    seen = [request.target.partition("?")[0].strip("/") for request in server.received]
    assert stage in seen
    assert ("manifest" in seen) == (stage == "manifest")
    assert bench.messages() == ["ERROR: The job was cancelled"]


@pytest.mark.parametrize("verdict", [OK, FAILED], ids=["success", "failure"])
async def test_log_that_hangs_delays_the_verdict_for_a_bounded_time_and_follows_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, verdict: Verdict
) -> None:
    monkeypatch.setattr(module, "LOG_WAIT_SECONDS", 0.05)
    begun, release, arrived = threading.Event(), threading.Event(), threading.Event()

    def hang(conversation: Conversation) -> None:
        begun.set()
        release.wait(60)
        answer(200)(conversation)
        arrived.set()

    with FaultyServer([by_path(events=hang)]) as server:
        found = await bench.deliver(urls(server), verdict)
        assert found.code == verdict.code
        assert not bench.stop.request(FailureCode.CANCELLED), "a verdict that is known cannot be cancelled"
        assert await asyncio.to_thread(begun.wait, 60)
        release.set()
        assert await asyncio.to_thread(arrived.wait, 60)
        await bench.client.aclose()
    assert paths(server)[-1] == "/events"


@pytest.mark.parametrize("bench", [{"max_deliveries": 1}], indirect=True)
async def test_number_of_logs_that_are_uploaded_after_the_verdict_is_bounded(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "LOG_WAIT_SECONDS", 0.05)
    begun, given_up = threading.Event(), threading.Event()

    def hang(conversation: Conversation) -> None:
        begun.set()
        conversation.wait_for_close()
        given_up.set()

    with FaultyServer([hang]) as server:
        await bench.deliver(urls(server), FAILED)
        assert await asyncio.to_thread(begun.wait, 60)
        assert not given_up.is_set()
        await bench.deliver(urls(server), FAILED)
        assert await asyncio.to_thread(given_up.wait, 60)
        await bench.deliverer.aclose()
        await bench.client.aclose()
    assert [record.getMessage() for record in caplog.records].count(
        "job job: its log could not be delivered: too many logs wait (MAX_DELIVERIES)"
    ) == 1


@pytest.mark.parametrize("bench", [{"max_deliveries": 1}], indirect=True)
async def test_log_that_a_verdict_waits_for_is_not_given_up(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOG_WAIT_SECONDS", 60.0)
    begun, release, is_late = threading.Semaphore(0), threading.Event(), threading.Event()

    def hang_at_first(conversation: Conversation) -> None:
        if not is_late.is_set():
            begun.release()
            release.wait(60)
        answer(200)(conversation)

    with FaultyServer([hang_at_first]) as server:
        delivering = [asyncio.create_task(bench.deliver(urls(server), FAILED)) for _ in range(3)]
        for _ in delivering:
            assert await asyncio.to_thread(begun.acquire, timeout=60)
        is_late.set()
        await bench.deliver(urls(server), FAILED)  # looks for logs to give up
        release.set()
        await asyncio.wait_for(asyncio.gather(*delivering), 60)
        await bench.deliverer.aclose()
        await bench.client.aclose()
    assert "too many logs wait" not in caplog.text


async def test_stop_of_the_gateway_waits_for_no_log(bench: Bench) -> None:
    begun, release = threading.Event(), threading.Event()

    def hang(conversation: Conversation) -> None:
        begun.set()
        release.wait(60)

    with FaultyServer([by_path(events=hang)]) as server:
        delivering = asyncio.create_task(bench.deliver(urls(server)))
        assert await asyncio.to_thread(begun.wait, 60)
        bench.stop.request(FailureCode.SHUTTING_DOWN)
        assert (await delivering).ok
        release.set()


async def test_failure_publishes_its_log_alone(bench: Bench) -> None:
    with FaultyServer([answer(200)]) as server:
        await bench.deliver(urls(server), FAILED)
    assert paths(server) == ["/events"]


async def test_kept_result_has_the_whole_log(bench: Bench) -> None:
    bench.log.line("stdout", "printed")
    assert (await bench.deliver(KeptDelivery())).ok
    kept = bench.store.get("job")
    assert kept is not None
    async with kept.open("output") as output, kept.open("events") as log:
        assert output is not None
        assert log is not None
        assert [block async for block in output.blocks()] == [ROWS]
        (events,) = [block async for block in log.blocks()]
    assert events.index(b"printed") < events.index(b"Successfully saved 1 rows")


@pytest.mark.parametrize("bench", [{"result_keep_bytes": 5}], indirect=True)
async def test_result_that_is_too_large_to_keep_is_no_success(bench: Bench) -> None:
    verdict = await bench.deliver(KeptDelivery())
    assert (verdict.code, verdict.may_retry, verdict.output) == (FailureCode.RESULT_NOT_KEPT, False, None)
    assert "RESULT_KEEP_BYTES" in bench.messages()[-1]
    assert not any("Successfully" in message for message in bench.messages())


async def test_result_that_the_disk_does_not_take_is_no_success(bench: Bench) -> None:
    results = bench.settings.state_dir / "results"
    results.rmdir()
    results.write_bytes(b"")  # no directory can be made here, not even by root
    verdict = await bench.deliver(KeptDelivery())
    assert (verdict.code, verdict.may_retry) == (FailureCode.RESULT_NOT_KEPT, True)
    results.unlink()


async def test_directory_of_results_that_was_removed_is_made_again(bench: Bench) -> None:
    (bench.settings.state_dir / "results").rmdir()
    assert (await bench.deliver(KeptDelivery())).ok
    assert bench.store.get("job") is not None


async def test_time_for_the_delivery_counts_from_the_end_of_the_computation(bench: Bench) -> None:
    bench.outputs.computed_at = time.monotonic() - bench.settings.delivery_retry_seconds
    with FaultyServer([answer(503)]) as server:
        assert not (await bench.deliver(urls(server))).ok
    assert bench.retries == 0
