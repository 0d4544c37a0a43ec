"""Processes of a cluster that are killed or frozen: each job has one answer, and its results are uploaded once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.end_to_end.faults.chaos import find
from tests.gateway.cluster.faults.site import Site, counted, frozen, site, until
from tests.gateway.cluster.members import cluster_of


@pytest.fixture(scope="module")
def cluster(nats_installed: None) -> Iterator[Site]:
    with site() as started:
        yield started


def test_a_host_is_killed(cluster: Site) -> None:
    job = cluster.send("killed", seconds=50)
    before = cluster_of(cluster.front)["hosts_lost"]
    cluster.tell("killed", attempt=2)
    job.host.kill()
    job.was_delivered_once(attempt=2)
    assert cluster_of(cluster.front)["hosts_lost"] == before + 1
    cluster.hosts.remove(job.host)
    cluster.hosts.append(cluster.start_again(job.host))
    cluster.run_on_both()


def test_the_launcher_of_a_host_is_killed(cluster: Site) -> None:
    job = cluster.send("launcher", seconds=50)
    launcher = find("launcher", job.host)
    assert launcher is not None
    cluster.tell("launcher", attempt=2)
    os.kill(launcher, signal.SIGKILL)
    job.was_delivered_once(attempt=2)
    cluster.run_on_both()


def test_a_host_is_frozen_while_its_job_ends(cluster: Site) -> None:
    job = cluster.send("frozen", seconds=6)
    before = counted("fenced", job.host)
    cluster.tell("frozen", attempt=2)
    with frozen(job.host):  # its kernel is not, so the first result is ready when it wakes
        job.was_delivered_once(attempt=2)
    until(lambda: counted("fenced", job.host) == before + 1, "the woken host ends its job")
    cluster.run_on_both()
    cluster.shows_once("frozen", attempt=2)


def test_a_host_is_frozen_within_an_upload(cluster: Site) -> None:
    pause = cluster.storage.pause("upload/output")
    job = cluster.send("upload", kilobytes=16_000)
    assert pause.reached.wait(60)
    cluster.tell("upload", attempt=2)
    with frozen(job.host):
        job.was_delivered_once(attempt=2)
        pause.goes_on.set()  # the storage would take the rest now
    until(lambda: cluster.storage.incomplete, "the upload of the woken host breaks off")
    cluster.run_on_both()
    cluster.shows_once("upload", attempt=2)
    assert cluster.storage.incomplete == ["upload/output"]


def test_the_broker_is_back_within_a_lease(cluster: Site) -> None:
    job = cluster.send("short", seconds=4)
    cluster.tell("short", attempt=2)
    before = sum(counted("fenced", host) for host in cluster.hosts)
    cluster.server.kill()
    cluster.server.start()
    job.wait()
    # a slow machine may need longer than a lease to start the broker
    job.was_delivered_once(attempt=1 + sum(counted("fenced", host) for host in cluster.hosts) - before)


def test_the_broker_is_away_for_longer_than_a_lease(cluster: Site) -> None:
    job = cluster.send("long", seconds=50)
    before = counted("fenced", job.host)
    cluster.server.kill()
    until(lambda: counted("fenced", job.host) == before + 1, "the host ends its job by itself")
    cluster.tell("long", attempt=2)
    cluster.server.start()
    job.was_delivered_once(attempt=2)


def test_the_accepting_member_is_killed(cluster: Site) -> None:
    jobs = {f"job-{number}": cluster.accept(f"job-{number}", seconds=2) for number in range(3)}
    for prefix in ("job-0", "job-1"):  # the third one waits for a slot
        cluster.front.wait_for_line(prefix, "attempt 1 runs")
    cluster.front.kill()
    until(lambda: all(cluster.storage.bodies(f"job-{number}/events") for number in range(2)), "the hosts go on")
    cluster.front = cluster.start_again(cluster.front)
    for prefix, job_id in jobs.items():
        job = cluster.front.wait_for_end(job_id)
        assert job["code"] == "ok", job
        cluster.shows_once(prefix, attempt=1)
