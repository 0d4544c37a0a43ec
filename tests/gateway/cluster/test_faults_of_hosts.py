"""A host whose machine fails: another one gives the answer, and a host that would fail every job takes none."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path
from typing import Any, cast

import pytest

from gateway.cluster.broker import Taking
from gateway.cluster.host import host as cluster_host
from gateway.core.errors import ConfigurationError, DiskFull, FailureCode
from gateway.core.job import Verdict
from tests.gateway.cluster.test_runner import InProcess, cluster, until
from tests.gateway.http.harness import ScriptedRun
from tests.support.nats_server import NatsServer

LOST = Verdict(FailureCode.GATEWAY_DISK_FAILED, "its disk failed", 1)


def fail_machine(host: InProcess, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Let the machine of a host fail below its first jobs."""
    opened, runs = host.machine.open, []

    def failing(*args: Any) -> ScriptedRun:
        run = opened(*args)
        runs.append(run)
        if len(runs) <= times:
            run.lost_verdict = LOST
        return run

    monkeypatch.setattr(host.machine, "open", failing)


async def test_a_job_runs_again_after_a_fault_of_the_machine(
    nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(nats_server, tmp_path, 0, 1) as (front, host):
        fail_machine(host, monkeypatch, 1)
        *_, log, _, verdict = front.start("ok")
        assert (await verdict).ok
        shown = [line.message for line in log.lines()]
        name = host.runner.peers.name
        again = f"The host {name} failed: its disk failed: this job runs again (attempt 2)"
        assert shown == ["begin", "end", again, "begin", "end"]
        assert host.machine.delivered == 1


async def test_the_second_attempt_goes_to_another_host(
    nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_host, "AVOIDED_SECONDS", 50.0)
    async with cluster(nats_server, tmp_path, 0, 1) as (front, sound):
        *_, first = front.start("hold", "first")
        await until(sound.machine.begun.is_set)
        async with cluster(nats_server, tmp_path / "more", 1) as (broken,):
            fail_machine(broken, monkeypatch, 1000)
            settle, given_back = broken.broker.settle, asyncio.Event()

            async def watched(taking: Taking, *, is_taken: bool = True) -> None:
                await settle(taking, is_taken=is_taken)
                if not is_taken:
                    given_back.set()

            monkeypatch.setattr(broken.broker, "settle", watched)
            *_, second = front.start("ok", "second")
            async with asyncio.timeout(55):
                await given_back.wait()
            sound.machine.release.set()
            assert (await first).ok
            assert (await second).ok
            assert len(broken.machine.jobs) == 1


async def test_a_job_that_meets_two_faults_ends_and_its_log_is_uploaded(
    nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(nats_server, tmp_path, 0, 1) as (front, host):
        fail_machine(host, monkeypatch, 2)
        deliverer = front.runner._cluster.deliverer
        deliver, delivered = deliverer.deliver, []

        async def counted(*args: Any) -> Verdict:
            delivered.append(args[1].code)
            return await deliver(*args)

        monkeypatch.setattr(deliverer, "deliver", counted)
        *_, verdict = front.start("ok")
        ended = await verdict
        assert ended.code is FailureCode.GATEWAY_DISK_FAILED
        assert "its disk failed; the job does not run again: it has begun 2 times" in ended.message
        assert delivered == [FailureCode.GATEWAY_DISK_FAILED]
        assert not hasattr(host.machine, "delivered")  # the host uploaded nothing


async def test_a_host_that_can_run_nothing_takes_no_job(nats_server: NatsServer, tmp_path: Path) -> None:
    async with cluster(nats_server, tmp_path, 0, 1, 1) as (front, full, other):
        looked = asyncio.Event()

        def check() -> None:
            raise DiskFull("the disk is full")

        able = full.runner._host.is_able

        def seen() -> bool:
            looked.set()
            return able()

        full.runner._check_machine = check
        full.runner._host.is_able = seen
        async with asyncio.timeout(55):
            await looked.wait()  # its question of before has no answer any more
        for number in range(4):
            *_, verdict = front.start("ok", f"job-{number}")
            assert (await verdict).ok
        assert (len(full.machine.jobs), len(other.machine.jobs)) == (0, 4)
        await until(lambda: full.runner.slots().total == 1)  # of the other


async def test_a_refused_member_of_the_same_name_leaves_the_other_its_jobs(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with cluster(nats_server, tmp_path, 0, 1) as (front, host):
        await host.runner.peers.serve(cast("Any", None))
        shutil.copytree(tmp_path / "1", tmp_path / "copy/0")
        with pytest.raises(ConfigurationError, match="already: one has a copy"):
            async with cluster(nats_server, tmp_path / "copy", 1):
                pass
        name, roster, refused_at = host.runner.peers.name, front.runner._roster, time.monotonic()
        await until(lambda: name in roster._beats and roster._beats[name][1] > refused_at)
        assert not roster._ended, "it said that the name leaves"


async def test_two_hosts_of_one_name_end_their_jobs(
    nats_server: NatsServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with cluster(nats_server, tmp_path, 0, 1) as (front, host):
        shutil.copytree(tmp_path / "1", tmp_path / "copy/0")
        async with cluster(nats_server, tmp_path / "copy", 1) as (copy,):
            name = host.runner.peers.name
            await until(lambda: (name, host.runner._me.boot) in front.runner._roster._ended)
            *_, log, _, verdict = front.start("hold")
            await until(lambda: host.machine.begun.is_set() or copy.machine.begun.is_set())
            busy = host if host.machine.begun.is_set() else copy
            lease = busy.runner._host._attempts["job"].keeper.lease
            await until(lambda: lease._writes > 2 or not lease.may_run())  # the front has seen beats of both meanwhile
            host.machine.release.set()
            copy.machine.release.set()
            assert (await verdict).ok
            assert [line.message for line in log.lines()] == ["begin", "end"]
    assert f"two members of the cluster have the name {name}" in caplog.text
