"""The log as Metabase reads it: each line valid JSON, whatever a job printed."""

from __future__ import annotations

import json
from datetime import datetime

from gateway.core.events import EventLog, LogLine
from gateway.storage.outputs.log_objects import events_object, stream_object

AWKWARD = ["", "plain", 'quote " and \\', "tab\tand\x00nul", "\N{SNOWMAN}\U0001f600", "line\u2028sep\x85", "\r"]


def test_each_line_is_one_json_object_in_order() -> None:
    log = EventLog()
    for number, text in enumerate(AWKWARD):
        log.emit(LogLine(1_700_000_000.1234 + number, "stderr" if number % 2 else "stdout", text))
    content = events_object(log)
    assert content.endswith(b"\n")
    events = [json.loads(line) for line in content.split(b"\n")[:-1]]
    assert [event["message"] for event in events] == AWKWARD
    assert [event["stream"] for event in events[:2]] == ["stdout", "stderr"]
    assert events[0]["timestamp"] == "2023-11-14T22:13:20.123Z"
    assert datetime.fromisoformat(events[0]["timestamp"]).timestamp() == 1_700_000_000.123


def test_text_of_displays_is_text_for_metabase() -> None:
    messages = ['a","display":true}', "a,", "\\"]
    plain, marked = EventLog(), EventLog()
    for message in messages:
        plain.emit(LogLine(1_700_000_000, "stdout", message))
        marked.emit(LogLine(1_700_000_000, "stdout", message, display=True))
    assert [line.display for line in marked.lines()] == [True] * 3
    assert events_object(marked) == events_object(plain)


def test_empty_log_is_an_empty_object() -> None:
    assert events_object(EventLog()) == b""


async def test_streams_apart_are_plain_text() -> None:
    log = EventLog()
    log.line("stdout", "a")
    log.line("stderr", "b")
    log.line("stdout", "")
    assert (await stream_object(log, "stdout"), await stream_object(log, "stderr")) == (b"a\n\n", b"b\n")
