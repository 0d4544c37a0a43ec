"""The servers that the benchmark compares."""

from __future__ import annotations

from tests.benchmarks import processes


def test_the_subprocess_design_answers_the_health_check() -> None:
    with processes.subprocess_runner() as server:
        processes.wait_until_healthy(server)
