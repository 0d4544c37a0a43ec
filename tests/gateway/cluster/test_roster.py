"""The members that one member knows of, by their beats."""

from __future__ import annotations

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
