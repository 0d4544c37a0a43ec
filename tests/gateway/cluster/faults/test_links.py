"""Links of a cluster that are cut, deaf or bad: each job has one answer, and its results are uploaded once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.gateway.cluster.faults.network import Network, why_not
from tests.gateway.cluster.faults.site import SCRIPT, Site, counted, site, until


@pytest.fixture(scope="module")
def network(nats_installed: None) -> Iterator[Network]:
    if reason := why_not():
        pytest.skip(reason)
    with Network() as made:
        yield made


@pytest.fixture(scope="module")
def cluster(network: Network) -> Iterator[Site]:
    with site(network) as started:
        yield started


@pytest.mark.parametrize("links", [("broker", "storage"), ("broker",)], ids=["from all", "from the broker"])
def test_a_host_is_cut_off(cluster: Site, links: tuple[str, ...]) -> None:
    """It would end its job in time for an upload of its own, were it not for the lease."""
    prefix = f"cut-{len(links)}"
    job = cluster.send(prefix, seconds=7)
    before = counted("fenced", job.host)
    cluster.tell(prefix, attempt=2, seconds=4)
    with job.host.machine.without(*links):
        until(lambda: counted("fenced", job.host) == before + 1, "the host ends its job by itself")
        job.was_delivered_once(attempt=2)
    cluster.run_on_both()
    cluster.shows_once(prefix, attempt=2)


def test_a_host_hears_no_confirmations(cluster: Site) -> None:
    """Its renewals arrive, and it cannot know."""
    job = cluster.send("deaf", seconds=50)
    before = counted("fenced", job.host)
    cluster.tell("deaf", attempt=2)
    with cluster.server.machine.mute_towards(job.host.machine):
        until(lambda: counted("fenced", job.host) == before + 1, "the host ends its job by itself")
        job.was_delivered_once(attempt=2)
    cluster.run_on_both()
    cluster.shows_once("deaf", attempt=2)


def test_a_host_is_cut_off_from_the_storage_for_a_while(cluster: Site) -> None:
    """No other host would have it better: the job waits for its storage."""
    job = cluster.send("full", seconds=6)  # the cable is pulled before it ends
    with job.host.machine.without("storage"):
        cluster.front.wait_for_stage("full", "deliver")
    job.was_delivered_once(attempt=1)


def test_the_accepting_member_is_cut_off_from_the_broker(cluster: Site) -> None:
    """Its host goes on; what it cannot bring to the broker it refuses."""
    job = cluster.send("mine", seconds=8)
    with cluster.front.machine.without("broker"):
        cluster.tell("new")
        refused = cluster.front.execute(SCRIPT, "new", **cluster.request("new"))
        assert (refused.status, refused.body["code"], refused.body["retryable"]) == (503, "broker_down", True)
        until(lambda: cluster.storage.bodies("mine/events"), "the host delivers")
    job.was_delivered_once(attempt=1)
    cluster.run_on_both()
    assert cluster.storage.accepted("new") == {"events": 1}  # the refusal


def test_every_link_is_slow_and_loses_frames(network: Network) -> None:
    """As with netem, 100 ms +- 30 ms from end to end and back, and 5 % of the frames lost."""
    with site(network, is_bad=True) as cluster:
        prefixes = [f"job-{number}" for number in range(10)]
        ids = [cluster.accept(prefix) for prefix in prefixes]
        for prefix, job_id in zip(prefixes, ids, strict=True):
            job = cluster.front.wait_for_end(job_id)
            assert job["code"] == "ok", job
            cluster.shows_once(prefix, attempt=1)
