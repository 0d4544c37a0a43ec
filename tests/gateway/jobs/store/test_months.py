"""What a store keeps and bounds while months go by and clocks are set."""

from __future__ import annotations

import pytest

from gateway.telemetry.waterfall import lay_out
from tests.gateway.jobs.store.test_store import job, record_of


@pytest.mark.parametrize("hours", [-10, 10])
def test_a_jump_of_the_wall_clock_moves_no_stage_of_a_job(hours: int, monkeypatch: pytest.MonkeyPatch) -> None:
    record = record_of(job())
    monkeypatch.setattr("time.time", lambda: record.created_at + 3600 * hours)
    record.start()
    record.end()
    stages = {"queue": record.queue_seconds, "execute": 0.0, "deliver": 0.0}
    spans = lay_out(stages, record.created_at, record.started_at, record.finished_at)
    assert len(spans) == 3
    assert all(0 <= span.begin - record.created_at <= span.end - record.created_at < 3600 for span in spans), spans
