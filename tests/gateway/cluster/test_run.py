"""One job as the member sees it that accepted it, with a broker that does what a test says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import pytest

from gateway.cluster.member import Member
from gateway.cluster.runner.parcels import JobParcels
from gateway.cluster.runner.run import ClusterRun
from gateway.cluster.runner.shared import Cluster
from gateway.cluster.wire import EventBatch, LeaseRecord, Phase, encode
from gateway.core.async_files import SMALL_BYTES
from gateway.core.cancellation import StopSignal
from gateway.core.errors import FailureCode
from gateway.core.events import EventLog, LogLine
from gateway.core.job import Job, KeptDelivery, ParcelDelivery, UrlDelivery, Verdict
from gateway.core.settings import Settings
from gateway.core.wire import decode_job
from gateway.jobs.delivery import Deliverer
from gateway.storage import KeptResultStore, ObjectClient
from gateway.storage.parcels import Parcels

# so large that its delivery waits for a thread, in which a stop can come
OUTPUT, MANIFEST = b'{"x":1}\n' * SMALL_BYTES, b'{"schema_version":1,"fields":[]}'


def lines(*texts: str) -> tuple[LogLine, ...]:
    return tuple(LogLine(0.0, "stdout", text) for text in texts)


async def test_an_answer_of_a_host_that_was_replaced_meanwhile_is_not_of_the_next_attempt(tmp_path: Path) -> None:
    class Broker:
        async def ask(self, subject: str, data: bytes) -> bytes | None:
            if run._events.attempt == 2:
                return None
            run._next_attempt(2, "The host was lost")
            return encode(EventBatch("id", 1, 0, lines("1", "2", "3")))

    settings, log = Settings(state_dir=tmp_path), EventLog()
    cluster = Cluster(settings, Member("front", "boot"), cast("Any", Broker()), cast("Any", None), cast("Any", None))
    job = Job("job", "ok", 30.0, UrlDelivery("http://127.0.0.1:9/o"))
    run = ClusterRun(cluster, job, log, StopSignal(), "id", known_attempt=1)
    run._events.place("host")
    run.take(EventBatch("id", 1, 3, lines("4")))
    assert run._events._repairing is not None
    await run._events._repairing
    run.take(EventBatch("id", 2, 0, lines("again 1", "again 2")))
    assert [line.message for line in log.lines()] == ["again 1", "again 2"]


async def test_a_verdict_that_comes_while_a_lost_record_is_replaced_ends_the_job(tmp_path: Path) -> None:
    published: list[str] = []
    verdict = Verdict(None, "", 0)

    class Broker:
        async def get(self, execution_id: str) -> None:
            """Return nothing: the record is lost."""

        async def create(self, execution_id: str, data: bytes) -> int:
            run.take(EventBatch("id", 1, 0, lease=LeaseRecord(Phase.DONE, 1, "front", "host", verdict=verdict)))
            return 1

        async def publish_job(self, execution_id: str, number: str, data: bytes) -> None:
            published.append(execution_id)

    broker: Any = Broker()
    broker.leases = broker
    settings = Settings(state_dir=tmp_path)
    cluster = Cluster(settings, Member("front", "boot"), broker, cast("Any", None), cast("Any", None))
    job = Job("job", "ok", 30.0, UrlDelivery("http://127.0.0.1:9/o"))
    run = ClusterRun(cluster, job, EventLog(), StopSignal(), "id", known_attempt=1)
    run._events.place("host")
    run._observation.seconds = 0.0
    await run._look()
    assert await run.deliver() == verdict
    assert published == []


def bring(parcels: Parcels, url: str, content: bytes) -> None:
    """Do what a host does with a result."""
    parcel = parcels.expected(url.rpartition("/")[2])
    draft, fd = parcel.draft()
    os.write(fd, content)
    os.close(fd)
    parcel.take(draft, len(content))


@pytest.mark.parametrize("is_late", [False, True], ids=["within the delivery", "before the delivery"])
async def test_a_result_whose_delivery_a_stop_ended_is_delivered_by_the_next_process(
    is_late: bool, tmp_path: Path
) -> None:
    removed: list[str] = []

    class Leases:
        async def remove(self, execution_id: str) -> bool:
            removed.append(execution_id)
            return True

    class Broker:
        leases = Leases()

        async def send(self, subject: str, data: bytes) -> None:
            pass

    settings = Settings(state_dir=tmp_path)
    (tmp_path / "store").mkdir()
    results, client, parcels = KeptResultStore(settings), ObjectClient(5), Parcels("http://127.0.0.1:9", tmp_path)
    cluster = Cluster(
        settings,
        Member("front", "boot"),
        cast("Any", Broker()),
        cast("Any", None),
        Deliverer(settings, results, client),
    )
    job = Job("job", "ok", 30.0, KeptDelivery())

    def opened() -> tuple[ClusterRun, JobParcels, StopSignal]:
        own, stop = JobParcels(parcels, settings, job, "id", None), StopSignal()
        return ClusterRun(cluster, job, EventLog(), stop, "id", own, known_attempt=1), own, stop

    done = LeaseRecord(Phase.DONE, 1, "front", "host", "boot", 1, Verdict(None, "", 0))
    run, own, stop = opened()
    expected = decode_job(bytes(own.assigned(1)[0])).delivery
    assert isinstance(expected, ParcelDelivery)
    bring(parcels, expected.output_url, OUTPUT)
    bring(parcels, expected.manifest_url, MANIFEST)
    run.take(EventBatch("id", 1, 0, lease=done))
    stop.request(FailureCode.SHUTTING_DOWN)
    if not is_late:
        assert (await run.deliver()).code is FailureCode.SHUTTING_DOWN
    await run.close()
    assert removed == []

    again, _, _ = opened()
    again.take(EventBatch("id", 1, 0, lease=done))
    assert (await again.deliver()).ok
    kept = results.get("id")
    assert kept is not None
    assert (kept.part_bytes["output"], kept.part_bytes["manifest"]) == (len(OUTPUT), len(MANIFEST))
    await again.close()
    assert removed == ["id"]
    assert list((tmp_path / "parcels").iterdir()) == []
    results.close()
    await client.aclose()
