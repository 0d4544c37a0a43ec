"""The log of a job: an earlier reading is a prefix of a later one, and a flood loses the middle, visibly."""

from __future__ import annotations

import itertools
import tracemalloc

import orjson
import pytest

from gateway.core.displays import (
    MOST_DISPLAY_BYTES,
    MOST_DISPLAYS,
    MOST_IMAGE_BYTES,
    DisplayedImage,
    DisplayedTable,
)
from gateway.core.events import MOST_PROGRESS, Displayed, EventLog, LogLine, Progress, StateChanged
from gateway.core.job import JobState, Verdict
from gateway.jobs.delivery import job_delivery
from gateway.storage.outputs.log_objects import events_object


def texts(log: EventLog) -> list[str]:
    return [line.message for line in log.lines()]


def test_early_log_is_a_prefix_of_the_late_one() -> None:
    log = EventLog(cap_bytes=100_000)
    seen: list[list[str]] = []
    for number in range(100):
        log.line("stdout", f"line {number}")
        seen.append(texts(log))
    assert all(later[: len(early)] == early for early, later in itertools.pairwise(seen))


def test_flood_keeps_head_and_tail_with_a_marker_between() -> None:
    log = EventLog(cap_bytes=10_000)
    for number in range(10_000):
        log.line("stdout", f"line {number}")
    lines = texts(log)
    assert lines[0] == "line 0"
    assert lines[-1] == "line 9999"
    [marker] = [line for line in lines if "dropped" in line]
    shown = len(lines) - 1
    assert marker.startswith(f"... {10_000 - shown} lines")


def test_the_cap_holds_for_the_encoded_object() -> None:
    log = EventLog(cap_bytes=50_000, line_cap_bytes=5_000)
    for _ in range(1_000):
        log.line("stderr", "\x00" * 3_000)
    encoded = b"\n".join(orjson.dumps({"message": line}) for line in texts(log))
    assert len(encoded) <= 50_000 + 1_000


def test_a_flood_takes_no_more_memory_than_the_cap() -> None:
    log = EventLog(cap_bytes=100_000)
    tracemalloc.start()
    try:
        for number in range(50_000):
            log.line("stdout", f"line {number}")
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert log.kept_bytes <= 100_000
    assert used < 300_000
    assert log.json_lines()[1] == 50_000


def test_each_change_has_a_version_of_its_own() -> None:
    log = EventLog()
    seen = {log.version}
    for change in (LogLine(1.0, "stdout", "x"), Progress("read"), StateChanged(JobState.RUNNING), Progress("read")):
        log.emit(change)
        seen.add(log.version)
    assert len(seen) == 5


def test_kept_bytes_equal_the_size_of_the_events_object() -> None:
    log = EventLog()
    for text in ("", "plain", "\x00", "\udfff", "\N{SNOWMAN}"):
        log.line("stderr", text)
    assert log.kept_bytes == len(events_object(log))
    assert [line.message for line in log.lines()] == ["", "plain", "\x00", "?", "\N{SNOWMAN}"]


def test_displays_are_kept_within_their_bounds_and_come_back() -> None:
    log = EventLog()
    for _ in range(MOST_DISPLAYS):
        log.emit(Displayed(DisplayedImage("image/png", bytes(MOST_IMAGE_BYTES))))
    assert (len(log.displays), log.kept_bytes) == (4, MOST_DISPLAY_BYTES)
    for _ in range(MOST_DISPLAYS):
        log.emit(Displayed(DisplayedTable((), ())))
    assert len(log.displays) == MOST_DISPLAYS
    again = EventLog.restored(log.snapshot(), Verdict(None, "", 0))
    assert (again.displays, again.kept_bytes) == (log.displays, log.kept_bytes)


def test_empty_lines_are_not_free() -> None:
    log = EventLog(cap_bytes=10_000)
    for _ in range(100_000):
        log.line("stdout", "")
    assert len(texts(log)) < 1_000


def test_progress_that_a_job_makes_up_is_bounded() -> None:
    log = EventLog()
    for number in range(10 * MOST_PROGRESS):
        log.emit(Progress(f"stage {number}", f"table {number}", 1, 1))
    log.emit(Progress("stage 0", "table 0", 2, 2))
    assert len(log.progress) == MOST_PROGRESS
    assert log.progress["stage 0", "table 0"].rows == 2


def test_followers_and_readers_see_the_same_lines() -> None:
    log, seen = EventLog(), []
    end = log.follow(seen.append)
    log.line("stdout", "one")
    end()
    log.line("stdout", "two")
    assert [event.message for event in seen if isinstance(event, LogLine)] == ["one"]
    assert texts(log) == ["one", "two"]


def test_upload_of_the_output_reports_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    log = EventLog(cap_bytes=10_000)
    report = job_delivery._reporter(log)
    report(1)
    assert not log.progress, "a short upload leaves nothing"
    monkeypatch.setattr(job_delivery, "PROGRESS_SECONDS", 0.0)
    report = job_delivery._reporter(log)
    for sent_bytes in (10, 20):
        report(sent_bytes)
    assert log.progress == {("deliver", "output"): Progress("deliver", "output", bytes=20)}
