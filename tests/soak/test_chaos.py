"""The run of `tests.end_to_end.faults.test_chaos` at full length: 2,000 jobs under 50 kills, ten of each kind of process."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.end_to_end.faults.chaos import run_chaos
from tests.support.gateway_process import GatewayProcess


@pytest.mark.soak
def test_two_thousand_jobs_survive_fifty_kills(start_gateway: Callable[..., GatewayProcess]) -> None:
    jobs, kills = int(os.environ.get("CHAOS_JOBS", "2000")), int(os.environ.get("CHAOS_KILLS", "50"))
    outcome = run_chaos(start_gateway, jobs, kills)
    print(
        f"\naccepted {len(outcome.accepted)} of {jobs}, killed {outcome.killed}, unanswered {outcome.unknown}, "
        f"refused {outcome.refused}; codes {outcome.codes}, attempts {dict(sorted(outcome.attempts.items()))}, "
        f"uploads of an output {dict(sorted(outcome.uploads.items()))}"
    )
    assert (outcome.lost, outcome.wrong, outcome.twice) == ([], [], [])
    assert outcome.codes.pop("killed", 0) <= outcome.killed["kernel"]
    assert set(outcome.codes) == {"ok"}, outcome.errors
