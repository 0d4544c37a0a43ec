"""Messages between members: what is written is read again, and nothing else is taken for a message."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.cluster import wire
from gateway.cluster.host import relay
from gateway.cluster.wire import Assignment, Beat, EventBatch, LeaseRecord, Phase, batches, decode, encode
from gateway.core.displays import DisplayedTable
from gateway.core.errors import FailureCode
from gateway.core.events import Displayed, Event, LogLine, Progress
from gateway.core.job import Job, UrlDelivery, Verdict
from gateway.core.wire import WireError, decode_job, encode_job

JOB = Job("7", "def transform(): ...", 5.0, UrlDelivery("http://s/o"))


def test_an_assignment_brings_the_job_as_it_was() -> None:
    sent = Assignment("ab", 2, "m1", "1.0", msgspec.Raw(encode_job(JOB)))
    got = decode(Assignment, encode(sent))
    assert decode_job(bytes(got.job)) == JOB
    assert (got.id, got.attempt, got.owner) == ("ab", 2, "m1")


def test_a_record_keeps_its_verdict() -> None:
    verdict = Verdict(FailureCode.USER_ERROR, "ValueError: no", 1)
    record = LeaseRecord(Phase.DONE, 1, "m1", "m2", "b", 4, verdict, 17)
    assert decode(LeaseRecord, encode(record)) == record


def test_progress_in_whole_numbers_stays_so() -> None:
    bar = Progress("transform", bar=0, done=2, total=8)
    (read,) = decode(EventBatch, encode(EventBatch("ab", 1, 0, (bar,)))).events
    assert repr(read) == repr(bar)


def test_what_a_newer_member_adds_is_ignored() -> None:
    message = msgspec.json.decode(encode(LeaseRecord(Phase.QUEUED, 1, "m1")))
    assert decode(LeaseRecord, msgspec.json.encode(message | {"colour": "red"})).owner == "m1"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"version": 2}, "version 2; this member reads version 1"),
        ({"type": "claim"}, "expected a message of type 'lease'"),
        ({"phase": "dancing"}, "cannot be read"),
        ({"attempt": "one"}, "cannot be read"),
    ],
)
def test_another_message_is_refused_and_the_text_says_why(change: dict[str, object], text: str) -> None:
    message = msgspec.json.decode(encode(LeaseRecord(Phase.QUEUED, 1, "m1")))
    with pytest.raises(WireError, match=text):
        decode(LeaseRecord, msgspec.json.encode(message | change))


def test_a_message_has_a_largest_size() -> None:
    with pytest.raises(WireError, match="at most"):
        encode(EventBatch("ab", 1, 0, (LogLine(0.0, "stdout", "x" * wire.MESSAGE_CAP_BYTES),)))
    with pytest.raises(WireError, match="at most"):
        decode(Beat, b" " * (wire.MESSAGE_CAP_BYTES + 1))


@given(st.binary(max_size=300))
@settings(derandomize=True)
def test_other_bytes_are_no_message(data: bytes) -> None:
    with pytest.raises(WireError):
        decode(LeaseRecord, data)


def test_a_long_log_becomes_several_messages_with_numbers() -> None:
    lines = [LogLine(float(number), "stdout", "x" * 9_000) for number in range(30)]
    made = batches("ab", 1, 100, list(lines))
    assert len(made) > 3
    assert all(len(encode(batch)) < wire.BATCH_BYTES + 1_000 for batch in made)
    assert [event for batch in made for event in batch.events] == lines
    number = 100
    for batch in made:
        assert batch.first == number
        number += len(batch.events)


class Sent:
    """A broker that keeps the messages."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []

    async def send(self, subject: str, data: bytes) -> None:
        self.messages.append(data)


async def test_events_that_come_together_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "BETWEEN_SECONDS", 1e6)
    broker = Sent()
    events, running = relay.Relay(broker, "front", "job", 1), LeaseRecord(Phase.RUNNING, 1, "front", "host", "boot")  # type: ignore[arg-type]
    await events.begin(running)
    for text in ("one", "two", "three"):
        events.take(LogLine(1.0, "stdout", text))
        await asyncio.sleep(0)
    done = LeaseRecord(Phase.DONE, 1, "front", "host", "boot", 2, Verdict(None, "", 0), 3)
    await events.tell(done)  # a verdict waits for nothing
    got = [decode(EventBatch, data) for data in broker.messages]
    assert [(each.first, len(each.events), each.lease) for each in got] == [(0, 0, running), (0, 3, None), (3, 0, done)]


@pytest.mark.parametrize(
    "event",
    [
        # quotes and line ends take two bytes each: 910,010 bytes of text become 1.3 million
        Displayed(DisplayedTable((("c",) * 10,), tuple(('"name": "x",\n' * 70,) * 10 for _ in range(100)))),
        LogLine(1.0, "stdout", '"' * 600_000),
    ],
    ids=["table", "line"],
)
async def test_an_event_that_is_too_large_as_json_is_told_in_one_line(event: Event) -> None:
    broker = Sent()
    events = relay.Relay(broker, "front", "job", 1)  # type: ignore[arg-type]
    for each in (LogLine(1.0, "stdout", "before"), event, LogLine(1.0, "stdout", "after")):
        events.take(each)
    await events.begin(LeaseRecord(Phase.RUNNING, 1, "front", "host", "boot"))
    got = [event for data in broker.messages for event in decode(EventBatch, data).events]
    assert [each.message for each in got if isinstance(each, LogLine)] == ["before", relay.TOO_LARGE, "after"]
