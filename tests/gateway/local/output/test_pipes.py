"""Three pipes become one ordered log, whatever is written to them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.core.events import Event, LogLine, Progress
from gateway.local.output.pipes import FLOOD_LINES, TURN_ITEMS, OutputPipes


class Collected:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)

    @property
    def lines(self) -> list[tuple[str, str]]:
        return [(e.stream, e.message) for e in self.events if isinstance(e, LogLine)]


def frame(tag: str, payload: bytes) -> bytes:
    return struct.pack("<cI", tag.encode(), len(payload)) + payload


class Echo(Collected):
    """For each line that is read there is another to read: a writer that is always as fast as the reader."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.descriptor = descriptor

    def emit(self, event: Event) -> None:
        super().emit(event)
        assert len(self.events) < 10_000, "it reads for ever"
        os.write(self.descriptor, b"more\n")


@pytest.fixture
def pipes() -> Iterator[OutputPipes]:
    made = OutputPipes(line_cap_bytes=1000)
    yield made
    made.close()


async def test_the_last_word_of_the_shim_is_heard_after_all_lines_before_it(pipes: OutputPipes) -> None:
    sink = Collected()
    pipes.start(sink)
    _, _, log = pipes.write_fds
    done = asyncio.ensure_future(pipes.done())
    os.write(log, frame("o", b"d") + frame("p", b"{}"))
    await asyncio.sleep(0.05)
    assert not done.done()
    os.write(log, frame("o", b"one\n") + frame("d", b"") + frame("d", b""))
    async with asyncio.timeout(60):
        await done
    assert sink.lines == [("stdout", "done")]


async def test_frames_keep_the_order_of_both_streams(pipes: OutputPipes) -> None:
    sink = Collected()
    pipes.start(sink)
    _, _, log = pipes.write_fds
    os.write(log, frame("o", b"out 1\n") + frame("e", b"err 1\n") + frame("o", "half \u00e9".encode()[:-1]))
    os.write(log, frame("o", "\u00e9".encode()[-1:] + b"\n"))
    pipes.close_write_ends()
    await pipes.read_to_eof()
    assert sink.lines == [("stdout", "out 1"), ("stderr", "err 1"), ("stdout", "half \u00e9")]


async def test_text_of_a_display_is_marked_where_a_line_has_nothing_else(pipes: OutputPipes) -> None:
    sink = Collected()
    pipes.start(sink)
    _, _, log = pipes.write_fds
    long = b"x" * 999
    os.write(log, frame("o", b"1\n") + frame("i", b"2\n\n" + long[:500]) + frame("i", long[500:] + b"\n"))
    os.write(log, frame("o", b"half a line ") + frame("i", b"and a display\n2\n") + frame("o", b"1\n1"))
    pipes.close_write_ends()
    await pipes.read_to_eof()
    marked = [event.message for event in sink.events if isinstance(event, LogLine) and event.display]
    assert marked == ["2", "", long.decode(), "2"]
    assert [text for _, text in sink.lines if text not in marked] == ["1", "half a line and a display", "1", "1"]


async def test_frames_come_before_later_output_of_children(pipes: OutputPipes) -> None:
    sink = Collected()
    pipes.start(sink)
    stdout, _, log = pipes.write_fds
    os.write(log, frame("o", b"before\n"))
    os.write(stdout, b"child\n")
    pipes.close_write_ends()
    await pipes.read_to_eof()
    assert sink.lines == [("stdout", "before"), ("stdout", "child")]


async def test_truncated_output_of_a_killed_writer_is_shown(pipes: OutputPipes) -> None:
    sink = Collected()
    pipes.start(sink)
    _, stderr, log = pipes.write_fds
    os.write(stderr, b"no newline")
    os.write(log, frame("o", b"whole\n") + frame("o", b"a piece of a frame")[:12])
    pipes.close_write_ends()
    await pipes.read_to_eof()
    assert ("stderr", "no newline") in sink.lines
    assert ("stdout", "whole") in sink.lines
    assert ("stdout", "a piece") in sink.lines


@pytest.mark.parametrize(
    "junk", [b"plain text\n", b"x\xff\xff\xff\xff\n", b"o\xff\xff\xff\xff\n", b"\x00" * 50 + b"\n"]
)
async def test_junk_on_the_log_pipe_is_shown_and_spoils_nothing(pipes: OutputPipes, junk: bytes) -> None:
    sink = Collected()
    pipes.start(sink)
    _, _, log = pipes.write_fds
    os.write(log, junk)
    pipes.close_write_ends()
    await pipes.read_to_eof()
    assert len(sink.lines) == 1


async def test_a_line_without_end_is_cut_visibly(pipes: OutputPipes) -> None:
    sink = Collected()
    pipes.start(sink)
    stdout, _, _ = pipes.write_fds
    os.write(stdout, b"y" * 5000 + b"\nnext\n")
    pipes.close_write_ends()
    await pipes.read_to_eof()
    [(_, long), (_, following)] = sink.lines
    assert long.startswith("y" * 1000 + "...")
    assert "4000 characters" in long
    assert following == "next"


async def test_progress_frames_become_events_and_malformed_ones_nothing(pipes: OutputPipes) -> None:
    sink = Collected()
    pipes.start(sink)
    _, _, log = pipes.write_fds
    os.write(log, frame("p", b'{"stage": "read", "table": "orders", "rows": 5}') + frame("p", b"[]") + frame("p", b"{"))
    pipes.close_write_ends()
    await pipes.read_to_eof()
    assert sink.events == [Progress("read", "orders", 5, None)]


@pytest.mark.parametrize(
    ("said", "event"),
    [
        ({"bar": 0, "description": "fit", "done": 1.5, "total": 3}, Progress("transform", bar=0, description="fit", done=1.5, total=3)),
        ({"bar": 4, "description": "\x1b[2J\n"}, Progress("transform", bar=4, description="?[2J?")),
        ({"stage": "read", "table": "a\x1b", "rows": 1}, Progress("read", "a?", 1)),
        ({"bar": 0, "description": "x" * 201}, None),
        ({"bar": 0, "description": 5}, None),
        ({"bar": 0, "done": True}, None),
        ({"bar": 0, "done": -1}, None),
        ({"bar": 0, "total": 10**300}, None),
        ({"stage": "read", "rows": -1}, None),
        ({"bar": 5, "done": 1}, None),
        ({"bar": -1}, None),
        ({"bar": True}, None),
        ({"stage": "deliver", "bytes": 1}, None),
        ({"stage": "[/]"}, None),
        ({"stage": ["read"]}, None),
    ],
)  # fmt: skip
async def test_a_job_cannot_report_just_anything(
    said: dict[str, Any], event: Progress | None, pipes: OutputPipes
) -> None:
    sink = Collected()
    pipes.start(sink)
    os.write(pipes.write_fds[2], frame("p", json.dumps({"stage": "transform", **said}).encode()))
    pipes.close_write_ends()
    await pipes.read_to_eof()
    assert sink.events == ([] if event is None else [event])


async def test_output_before_a_job_is_not_the_jobs(pipes: OutputPipes) -> None:
    sink = Collected()
    stdout, _, _ = pipes.write_fds
    os.write(stdout, b"boot chatter\n")
    pipes.start(sink)
    os.write(stdout, b"the job\n")
    pipes.close_write_ends()
    await pipes.read_to_eof()
    assert sink.lines == [("stdout", "the job")]


def test_closing_twice_leaves_no_descriptor() -> None:
    before = len(os.listdir("/proc/self/fd"))
    pipes = OutputPipes(100)
    pipes.close()
    pipes.close()
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_frame_and_raw_output_that_come_while_frames_are_read_keep_their_order(
    pipes: OutputPipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = Collected()
    pipes.start(sink)
    stdout, _, log = pipes.write_fds
    take, late = pipes._take_frames, [frame("o", b"print\n")]

    def racing(data: bytes, into: Collected) -> None:
        take(data, into)
        if late:  # the writer is faster than the reader: both come between the drain and the look at the raw pipes
            os.write(log, late.pop())
            os.write(stdout, b"raw\n")

    monkeypatch.setattr(pipes, "_take_frames", racing)
    await pipes.read_to_eof()
    pipes.close_write_ends()
    await pipes.read_to_eof()
    assert sink.lines == [("stdout", "print"), ("stdout", "raw")]


async def test_output_of_a_living_kernel_is_read_until_it_is_discarded(pipes: OutputPipes) -> None:
    stdout, _, log = pipes.write_fds
    sink = Echo(stdout)
    pipes.start(sink)
    os.write(log, frame("o", b"said\nhalf a line"))
    await pipes.flush()
    assert sink.lines[0] == ("stdout", "said")
    assert ("stdout", "half a linemore") in sink.lines
    seen = len(sink.lines)
    pipes.discard()
    os.write(log, frame("o", b"to nobody\n"))
    await pipes.flush()
    assert len(sink.lines) == seen


FLOODS = {
    "short prints": [frame("o", b"%d\n")],
    "both streams in turn": [frame("o", b"%d\n"), frame("e", b"%d\n")],
    "frames full of lines": [frame("o", b"%d\n" * 1000)],
    "progress": [frame("p", b'{"stage": "read"}')],
}


def most_in_a_turn(counts: list[int]) -> int:
    return max(later - sooner for sooner, later in itertools.pairwise(counts))


@pytest.mark.parametrize("pieces", FLOODS.values(), ids=FLOODS)
async def test_a_flood_leaves_the_loop_its_turns_and_loses_no_line(pipes: OutputPipes, pieces: list[bytes]) -> None:
    sink = Collected()
    stdout, _, log = pipes.write_fds
    pipes.start(sink)
    os.set_blocking(log, False)
    written, texts = 0, []
    with contextlib.suppress(BlockingIOError):
        while True:
            piece = pieces[written % len(pieces)]
            text = piece[5:].replace(b"%d", b"%02d" % (written % 100)).decode()
            os.write(log, frame(piece[:1].decode(), text.encode()))
            written += 1
            texts += text.splitlines()
    os.write(stdout, b"raw\n")
    counts = [0]
    async with asyncio.timeout(60):
        while len(sink.events) <= len(texts):
            await asyncio.sleep(0)
            counts.append(len(sink.events))
    # one iteration of the loop may have a turn for what was left and one for what is new
    assert most_in_a_turn(counts) <= 2 * TURN_ITEMS < len(texts)
    assert sink.lines[-1] == ("stdout", "raw")
    if pieces != FLOODS["progress"]:
        assert [message for _, message in sink.lines[:-1]] == texts


@pytest.mark.parametrize("pause_seconds", [0.0, 3600.0])
async def test_writes_that_follow_a_flood_wait_for_the_next_turn_together(
    pipes: OutputPipes, monkeypatch: pytest.MonkeyPatch, pause_seconds: float
) -> None:
    monkeypatch.setattr("gateway.local.output.pipes.FLOOD_PAUSE_SECONDS", pause_seconds)
    sink = Collected()
    pipes.start(sink)
    _, _, log = pipes.write_fds
    for lines in (FLOOD_LINES - 1, FLOOD_LINES, 1, 1):
        read = len(sink.lines)
        os.write(log, frame("o", b"line\n" * lines))
        if lines > 1 or not pause_seconds:
            async with asyncio.timeout(60):
                while len(sink.lines) == read:  # noqa: ASYNC110 - a turn of the loop is what it waits for
                    await asyncio.sleep(0)
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(sink.lines) == 2 * FLOOD_LINES - 1 + (0 if pause_seconds else 2)
    await pipes.flush()
    assert len(sink.lines) == 2 * FLOOD_LINES + 1


@pytest.mark.parametrize("is_dead", [True, False])
async def test_the_rest_of_a_flood_is_read_to_the_end_and_leaves_the_loop_its_turns(
    pipes: OutputPipes, is_dead: bool
) -> None:
    sink = Collected()
    stdout, stderr, _ = pipes.write_fds
    pipes.start(sink)
    for raw in (stdout, stderr):
        os.set_blocking(raw, False)
        assert os.write(raw, b"\n" * 60_000 + b"last") == 60_004
    if is_dead:
        pipes.close_write_ends()
    reading = asyncio.ensure_future(pipes.read_to_eof() if is_dead else pipes.flush())
    counts = [0]
    async with asyncio.timeout(60):
        while not reading.done():
            await asyncio.sleep(0)
            counts.append(len(sink.events))
    await reading
    assert most_in_a_turn(counts) <= 4 * TURN_ITEMS  # the turns of the pipes, and those of the one who waits
    assert len(sink.lines) == 120_002
    assert {("stdout", "last"), ("stderr", "last")} <= set(sink.lines)


async def test_neighbours_of_each_stream_stay_in_order(pipes: OutputPipes) -> None:
    sink = Collected()
    pipes.start(sink)
    _, _, log = pipes.write_fds
    progress = frame("p", b'{"stage": "read"}')
    os.write(log, frame("o", b"1") + frame("o", b"2\n3\n4") + frame("e", b"err\n") + progress + frame("o", b"5\r\n"))
    os.write(log, frame("e", b"a\n") + frame("e", b"b\n") + frame("o", b"6\n") + b"junk\n")
    pipes.close_write_ends()
    await pipes.read_to_eof()
    assert [e.message if isinstance(e, LogLine) else e.stage for e in sink.events if isinstance(e, LogLine | Progress)] == [
        "12", "3", "err", "read", "45", "a", "b", "6", "junk"
    ]  # fmt: skip
