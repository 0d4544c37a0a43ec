"""The members that one member knows of, by their beats."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.cluster import member
from gateway.cluster.member import Member, Roster
from gateway.cluster.wire import Beat, encode
from gateway.jobs.runner import RunnerStatus, SlotCount


def test_a_member_that_is_silent_for_long_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(member, "SILENT_SECONDS", 0.0)
    roster = Roster(Member("own", "1"), cast("Any", None), lambda: RunnerStatus(True, SlotCount(1, 0)))
    roster._take(encode(Beat("host-1", "1", "0.1", "A", 1, 0, healthy=True)))
    roster._take(encode(Beat("host-2", "1", "0.1", "A", 1, 0, healthy=True)))
    assert [beat.name for beat in roster.silent()] == ["host-1", "host-2"]
    monkeypatch.setattr(member, "FORGET_SECONDS", 0.0)
    roster._take(encode(Beat("host-3", "1", "0.1", "A", 1, 0, healthy=True)))
    assert [beat.name for beat in roster.silent()] == ["host-3"]


def test_a_host_is_busy_with_a_job_that_its_last_beat_does_not_know() -> None:
    roster = Roster(Member("own", "1"), cast("Any", None), lambda: RunnerStatus(True, SlotCount(0)))
    roster._take(encode(Beat("host-1", "1", "0.1", "A", 2, 0, healthy=True)))
    roster._take(encode(Beat("host-2", "1", "0.1", "A", 2, 1, healthy=True)))
    assert roster.slots().busy == 1
    roster.busy_hosts = lambda: ["host-1", "host-2", "host-that-left"]
    assert (roster.slots().total, roster.slots().busy) == (4, 2)


def test_two_hosts_of_one_name_are_told_apart_again_once_one_has_ended(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(member, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    roster = Roster(Member("own", "1"), cast("Any", None), lambda: RunnerStatus(True, SlotCount(0)))

    def hear(*boots: str) -> None:
        for boot in boots:
            clock[0] += 1.0
            roster._take(encode(Beat("host", boot, "0.1", "A", 1, 0, healthy=True)))

    hear("1", "2")
    assert roster.is_gone("host", "1"), "as after a restart"
    hear("1", "2", "1", "2")
    assert not roster.is_gone("host", "1")
    assert not roster.is_gone("host", "2")
    hear(*"1111111")
    assert roster.is_gone("host", "2")
    assert not roster.is_gone("host", "1")
    assert caplog.text.count("two members of the cluster have the name host") == 1
