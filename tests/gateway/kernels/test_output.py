"""Three pipes become one ordered log, whatever is written to them."""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Iterator

import pytest

from gateway.jobs.events import Event, LogLine, Progress
from gateway.kernels.output import OutputPipes


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
    pipes.attach(sink)
    _, _, log = pipes.write_fds
    done = asyncio.ensure_future(pipes.done())
    os.write(log, frame("o", b"d") + frame("p", b"{}"))
    await asyncio.sleep(0.05)
    assert not done.done()
    os.write(log, frame("o", b"one\n") + frame("d", b"") + frame("d", b""))
    async with asyncio.timeout(10):
        await done
    assert sink.lines == [("stdout", "done")]


async def test_frames_keep_the_order_of_both_streams(pipes: OutputPipes) -> None:
    sink = Collected()
    pipes.attach(sink)
    _, _, log = pipes.write_fds
    os.write(log, frame("o", b"out 1\n") + frame("e", b"err 1\n") + frame("o", "half \u00e9".encode()[:-1]))
    os.write(log, frame("o", "\u00e9".encode()[-1:] + b"\n"))
    pipes.kernel_has_them()
    pipes.drain()
    assert sink.lines == [("stdout", "out 1"), ("stderr", "err 1"), ("stdout", "half \u00e9")]


async def test_frames_come_before_what_children_wrote_after_them(pipes: OutputPipes) -> None:
    sink = Collected()
    pipes.attach(sink)
    stdout, _, log = pipes.write_fds
    os.write(log, frame("o", b"before\n"))
    os.write(stdout, b"child\n")
    pipes.kernel_has_them()
    pipes.drain()
    assert sink.lines == [("stdout", "before"), ("stdout", "child")]


async def test_what_a_killed_writer_left_is_shown(pipes: OutputPipes) -> None:
    sink = Collected()
    pipes.attach(sink)
    _, stderr, log = pipes.write_fds
    os.write(stderr, b"no newline")
    os.write(log, frame("o", b"whole\n") + frame("o", b"a piece of a frame")[:12])
    pipes.kernel_has_them()
    pipes.drain()
    assert ("stderr", "no newline") in sink.lines
    assert ("stdout", "whole") in sink.lines
    assert ("stdout", "a piece") in sink.lines


@pytest.mark.parametrize(
    "junk", [b"plain text\n", b"x\xff\xff\xff\xff\n", b"o\xff\xff\xff\xff\n", b"\x00" * 50 + b"\n"]
)
async def test_junk_on_the_log_pipe_is_shown_and_spoils_nothing(pipes: OutputPipes, junk: bytes) -> None:
    sink = Collected()
    pipes.attach(sink)
    _, _, log = pipes.write_fds
    os.write(log, junk)
    pipes.kernel_has_them()
    pipes.drain()
    assert len(sink.lines) == 1


async def test_a_line_without_end_is_cut_visibly(pipes: OutputPipes) -> None:
    sink = Collected()
    pipes.attach(sink)
    stdout, _, _ = pipes.write_fds
    os.write(stdout, b"y" * 5000 + b"\nnext\n")
    pipes.kernel_has_them()
    pipes.drain()
    [(_, long), (_, following)] = sink.lines
    assert long.startswith("y" * 1000 + "...")
    assert "4000 characters" in long
    assert following == "next"


async def test_progress_frames_become_events_and_malformed_ones_nothing(pipes: OutputPipes) -> None:
    sink = Collected()
    pipes.attach(sink)
    _, _, log = pipes.write_fds
    os.write(log, frame("p", b'{"stage": "read", "table": "orders", "rows": 5}') + frame("p", b"[]") + frame("p", b"{"))
    pipes.kernel_has_them()
    pipes.drain()
    assert sink.events == [Progress("read", "orders", 5, None)]


async def test_what_a_ready_kernel_said_before_its_job_is_not_the_jobs(pipes: OutputPipes) -> None:
    sink = Collected()
    stdout, _, _ = pipes.write_fds
    os.write(stdout, b"boot chatter\n")
    pipes.attach(sink)
    os.write(stdout, b"the job\n")
    pipes.kernel_has_them()
    pipes.drain()
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
    pipes.attach(sink)
    stdout, _, log = pipes.write_fds
    take, late = pipes._take_frames, [frame("o", b"print\n")]

    def racing(data: bytes, into: Collected) -> None:
        take(data, into)
        if late:  # the writer is faster than the reader: both come between the drain and the look at the raw pipes
            os.write(log, late.pop())
            os.write(stdout, b"raw\n")

    monkeypatch.setattr(pipes, "_take_frames", racing)
    pipes.drain()
    pipes.kernel_has_them()
    pipes.drain()
    assert sink.lines == [("stdout", "print"), ("stdout", "raw")]


async def test_what_a_living_kernel_said_is_read_to_the_last_and_no_longer(pipes: OutputPipes) -> None:
    stdout, _, log = pipes.write_fds
    sink = Echo(stdout)
    pipes.attach(sink)
    os.write(log, frame("o", b"said\nhalf a line"))
    pipes.settle()
    assert sink.lines[0] == ("stdout", "said")
    assert ("stdout", "half a linemore") in sink.lines
    seen = len(sink.lines)
    pipes.discard()
    os.write(log, frame("o", b"to nobody\n"))
    pipes.settle()
    assert len(sink.lines) == seen
