"""Messages keep every value through their JSON form, and foreign or newer ones are refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given
from msgspec import Raw

from gateway.cluster.wire import EventBatch, decode, encode
from gateway.core.displays import DisplayedImage, DisplayedTable
from gateway.core.errors import FailureCode
from gateway.core.events import Displayed, Event, Finished, LogLine, LogSnapshot, Progress, StateChanged
from gateway.core.formats import FORMATS
from gateway.core.job import (
    DirectoryDelivery,
    FileSource,
    HeldKernel,
    InputTable,
    Job,
    JobState,
    KeptDelivery,
    LibraryModule,
    MetabaseSource,
    OutputFacts,
    UploadSource,
    UrlDelivery,
    UrlSource,
    Verdict,
)
from gateway.core.log_json import encode_line
from gateway.core.wire import (
    WireError,
    decode_job,
    decode_log,
    decode_verdict,
    encode_job,
    encode_log,
    encode_verdict,
)

TEXT = st.text(max_size=20)
OPTIONAL = st.none() | TEXT
PATHS = TEXT.filter(lambda text: "\0" not in text).map(lambda text: Path("/", text))
IDS = st.integers() | TEXT
SECONDS = st.floats(0, 1e9)
COUNTS = st.integers(0, 1 << 62)
FORMAT_NAMES = st.sampled_from(tuple(FORMATS))
SOURCES = (
    st.builds(UrlSource, TEXT)
    | st.builds(FileSource, PATHS)
    | st.builds(UploadSource, TEXT)
    | st.builds(MetabaseSource, TEXT, TEXT, COUNTS)
)
DELIVERIES = (
    st.builds(UrlDelivery, TEXT, OPTIONAL, OPTIONAL, OPTIONAL, OPTIONAL)
    | st.builds(DirectoryDelivery, PATHS)
    | st.builds(KeptDelivery, st.booleans())
)
TABLES = st.builds(InputTable, TEXT, SOURCES, st.none() | SOURCES, FORMAT_NAMES)
JOBS = st.builds(
    Job,
    request_id=IDS,
    code=st.text(),
    timeout_seconds=SECONDS,
    delivery=DELIVERIES,
    library=st.lists(st.builds(LibraryModule, TEXT, TEXT), max_size=3).map(tuple),
    tables=st.lists(TABLES, max_size=3).map(tuple),
    output_format=FORMAT_NAMES,
    form=st.sampled_from(("v1", "first")),
    trace_parent=OPTIONAL,
    hold_seconds=SECONDS,
    label=OPTIONAL,
    output_schema=OPTIONAL,
)
VERDICTS = st.builds(
    Verdict,
    code=st.none() | st.sampled_from(FailureCode),
    message=TEXT,
    exit_code=st.integers(-255, 255),
    execution_seconds=SECONDS,
    stages_seconds=st.dictionaries(TEXT, SECONDS, max_size=3),
    output=st.none() | st.builds(OutputFacts, COUNTS, COUNTS, COUNTS, OPTIONAL, FORMAT_NAMES),
    peak_memory_bytes=st.none() | COUNTS,
    bytes_in=COUNTS,
    held=st.none()
    | st.builds(HeldKernel, TEXT, st.none() | IDS, OPTIONAL, SECONDS, SECONDS, st.dictionaries(TEXT, TEXT, max_size=2)),
    not_held=TEXT,
)
CELLS = st.lists(st.lists(TEXT, max_size=3).map(tuple), max_size=3).map(tuple)
DISPLAYS = st.builds(
    DisplayedImage, st.sampled_from(("image/png", "image/svg+xml")), st.binary(max_size=20), TEXT
) | st.builds(DisplayedTable, CELLS, CELLS, st.integers(0, 3))
EVENTS = (
    st.builds(StateChanged, st.sampled_from(JobState), TEXT)
    | st.builds(LogLine, SECONDS, st.sampled_from(("stdout", "stderr")), TEXT)
    | st.builds(Progress, TEXT, OPTIONAL, st.none() | COUNTS, st.none() | COUNTS)
    | st.builds(Displayed, DISPLAYS)
    | st.builds(Finished, VERDICTS)
)


@given(JOBS)
def test_a_job_comes_back_as_it_was(job: Job) -> None:
    again = decode_job(encode_job(job))
    assert again == job
    assert type(again.request_id) is type(job.request_id), '7 and "7" are two ids'


@given(EVENTS)
def test_an_event_comes_back_as_it_was(event: Event) -> None:
    batch = EventBatch("ab", 1, 0, (event,))
    assert decode(EventBatch, encode(batch)) == batch


@given(VERDICTS)
def test_a_verdict_comes_back_as_it_was(verdict: Verdict) -> None:
    assert decode_verdict(encode_verdict(verdict)) == verdict


LINES = st.lists(st.builds(encode_line, SECONDS, st.sampled_from(("stdout", "stderr")), TEXT).map(Raw), max_size=5)


@given(st.builds(LogSnapshot, LINES, LINES, COUNTS, COUNTS, st.lists(DISPLAYS, max_size=3).map(tuple)))
def test_a_log_comes_back_as_it_was(log: LogSnapshot) -> None:
    assert decode_log(encode_log(log)) == log


def test_a_message_with_half_a_character_is_kept_as_text() -> None:
    verdict = decode_verdict(
        encode_verdict(Verdict(FailureCode.USER_ERROR, "half: \ud83d", 1, stages_seconds={"q": 1}))
    )
    assert (verdict.message, verdict.stages_seconds) == ("half: \\ud83d", {"q": 1})


JOB = json.loads(encode_job(Job(1, "x", 30.0, UrlDelivery("u"), tables=(InputTable("t", UrlSource("d")),))))
VERDICT = json.loads(encode_verdict(Verdict(FailureCode.TIMEOUT, "late", -1)))


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        (("type",), "event", "expected a message of type 'job', not 'event'"),
        (("version",), 2, "the job is of version 2; only version 1"),
        (("priority",), 1, "unknown field `priority`"),
        (("job", "retries"), 1, "unknown field `retries`"),
        (("job", "delivery", "type"), "ftp", "Invalid value 'ftp'"),
        (("job", "delivery", "bucket"), "b", "unknown field `bucket`"),
        (("job", "tables", 0, "data", "owned"), True, "unknown field `owned`"),
        (("job", "timeout_seconds"), "30", "job.timeout_seconds"),
        (("job", "runtime"), "r", "job.runtime"),
        (("job", "request_id"), None, "job.request_id"),
    ],
)
def test_a_job_that_is_not_understood_is_refused_by_name(path: tuple[Any, ...], value: object, text: str) -> None:
    check_refused(decode_job, JOB, path, value, text)


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        (("type",), "job", "expected a message of type 'verdict', not 'job'"),
        (("version",), 0, "the verdict is of version 0; only version 1"),
        (("verdict", "code"), "all_is_well", "verdict.code"),
    ],
)
def test_a_verdict_that_is_not_understood_is_refused_by_name(path: tuple[Any, ...], value: object, text: str) -> None:
    check_refused(decode_verdict, VERDICT, path, value, text)


def test_members_of_a_verdict_that_a_later_version_added_are_ignored() -> None:
    later = json.loads(json.dumps(VERDICT))
    later["verdict"]["mood"] = "good"
    assert decode_verdict(json.dumps(later).encode()) == decode_verdict(json.dumps(VERDICT).encode())


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b"[" * 100_000, b'{"type": "job"}', b'{"version": 1}'])
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        decode_job(data)


def check_refused(
    decode: Callable[[bytes], object], message: dict[str, Any], path: tuple[Any, ...], value: object, text: str
) -> None:
    changed = json.loads(json.dumps(message))
    place = changed
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(WireError, match=text):
        decode(json.dumps(changed).encode())
