"""Processes of a cluster are killed at random while it has jobs: none is lost, wrong or delivered twice."""

from __future__ import annotations

import pytest

from tests.gateway.cluster.faults.kills import Outcome, run_kills


def test_a_few_jobs_survive_kills(nats_installed: None) -> None:
    all_is_well(run_kills(jobs=60, kills=5, seconds=15))


@pytest.mark.soak
def test_five_hundred_jobs_survive_a_minute_of_kills(nats_installed: None) -> None:
    all_is_well(run_kills(jobs=500, kills=30, seconds=60))


def all_is_well(outcome: Outcome) -> None:
    killed, codes = outcome.killed, dict(outcome.codes)
    print(
        f"\naccepted {len(outcome.accepted)}, unanswered {outcome.unknown}, refused {outcome.refused}, killed "
        f"{dict(killed)}, codes {codes}, uploaded by two attempts {outcome.repeated}"
    )
    assert (outcome.lost, outcome.wrong, outcome.twice) == ([], [], [])
    # a kernel that is killed from outside is a failure of its job; a job begins twice at most
    assert codes.pop("killed", 0) <= killed["kernel"]
    assert codes.pop("host_lost", 0) <= killed["member"] + killed["host"]
    assert set(codes) == {"ok"}, outcome.errors
    assert len(outcome.repeated) <= killed["member"] + killed["host"]
