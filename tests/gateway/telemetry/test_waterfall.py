"""The stages of a job lie in time as they ran."""

from __future__ import annotations

from gateway.telemetry.waterfall import StageSpan, lay_out


def test_stages_are_laid_out_one_after_another() -> None:
    stages = {"queue": 2.0, "fetch": 3.0, "claim": 1.0, "execute": 4.0, "read": 1.0, "write": 2.0, "deliver": 0.5}
    assert lay_out(stages, 100.0, 102.0, 110.0) == [
        StageSpan("queue", 100.0, 102.0),
        StageSpan("fetch", 100.0, 103.0),
        StageSpan("claim", 103.0, 104.0),
        StageSpan("execute", 104.0, 108.0),
        StageSpan("read", 105.0, 106.0, "execute"),
        StageSpan("write", 106.0, 108.0, "execute"),
        StageSpan("deliver", 109.5, 110.0),
    ]


def test_job_that_never_got_a_slot_has_its_wait() -> None:
    assert lay_out({"queue": 60.0}, 100.0, None, 160.1) == [StageSpan("queue", 100.0, 160.0)]


def test_delivery_follows_where_the_end_of_the_job_is_not_known() -> None:
    stages = {"queue": 1.0, "execute": 2.0, "hold": 0.5, "deliver": 0.25}
    assert [(span.name, span.begin, span.end) for span in lay_out(stages)] == [
        ("queue", 0.0, 1.0),
        ("execute", 1.0, 3.0),
        ("hold", 3.0, 3.5),
        ("deliver", 3.5, 3.75),
    ]


def test_parts_of_execute_come_in_their_order() -> None:
    stages = {"execute": 5.0, "write": 1.0, "profile": 1.0, "import": 1.0, "read": 1.0, "transform": 1.0}
    inner = [span.name for span in lay_out(stages) if span.parent == "execute"]
    assert inner == ["import", "read", "transform", "write", "profile"]
