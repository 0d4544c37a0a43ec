"""A kernel's output as it is written: three pipes that the event loop reads and turns into ordered log lines.

Why pipes and not iopub's stream messages: ipykernel batches prints for 0.2 s per stream, so a killed kernel loses its
last lines, stdout and stderr lose their order, and a busy subscriber loses messages at the high-water mark. A pipe
keeps its content when the writer dies, and while this loop is busy the writer waits and no line is lost.

============ ============================================================================
pipe          content
============ ============================================================================
log           frames of the shim: one tag byte (``o`` stdout, ``i`` the text of a display on stdout, ``e`` stderr,
              ``p`` progress JSON, ``d`` done), uint32 little endian length, payload; at most 4096 bytes in all, so
              that a write is atomic
stdout        output of C code and child processes on descriptor 1
stderr        the same for descriptor 2
============ ============================================================================

At each wake-up the log pipe is read before the raw ones, and the shim waits until the raw ones are empty before it
writes a frame: prints and the output of children stay in order. User code has all three and may write anything; it can
only spoil its own log.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import select
import struct

from gateway.core.events import Event, EventSink, StreamName
from gateway.local.output.job_result import parse_progress
from gateway.local.output.lines import LineSplitter

PIPE_BYTES = 1 << 18
READ_BYTES = 1 << 16

#: Frames and lines that one turn handles; then the loop gets its turn again. A flood of output must not starve the HTTP
#: side: a frame or line takes 1 to 4 microseconds of processor time, and one read may bring 65,536 of them.
TURN_ITEMS = 250

#: After a turn with so many lines, the pipes are not read for a moment. Otherwise each write of a job that prints
#: without end wakes the loop, which takes longer than the write itself, and two thirds of the loop's time went into
#: turns of 30 lines each.
FLOOD_LINES, FLOOD_PAUSE_SECONDS = 16, 0.001

#: Enough reads of the log pipe for all that the pipes held when the first began.
FLUSH_READS = 16

FRAME_HEADER = struct.Struct("<cI")
FRAME_MAX_PAYLOAD_BYTES = 4096 - FRAME_HEADER.size
STREAM_TAGS: dict[bytes, StreamName] = {b"o": "stdout", b"i": "stdout", b"e": "stderr"}
DISPLAY_TAG = b"i"


class _NoSink:
    """Discards the events of a kernel without a job."""

    def emit(self, event: Event) -> None:
        pass


class OutputPipes:
    """Owns the read ends of a kernel's three pipes and, until the kernel has them, the write ends.

    Parameters
    ----------
    line_cap_bytes : int
        Longest line that is kept whole.

    Raises
    ------
    OSError
        There are no more descriptors.
    """

    def __init__(self, line_cap_bytes: int) -> None:
        self._reads: list[int] = []
        self._writes: list[int] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._next_turn: asyncio.Handle | None = None
        try:
            for _ in range(3):
                read, write = os.pipe2(os.O_CLOEXEC)
                self._reads.append(read)
                self._writes.append(write)
                os.set_blocking(read, False)
                with contextlib.suppress(PermissionError):  # beyond the user's pipe budget the default size works too
                    fcntl.fcntl(read, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:
            self.close()
            raise
        self._splitters: dict[str, LineSplitter] = {
            name: LineSplitter(name, line_cap_bytes) for name in STREAM_TAGS.values()
        }
        self._frames = b""
        self._has_frames = False
        self._lines_left = TURN_ITEMS
        self._reads_of_log = 0
        self._done: asyncio.Future[None] | None = None
        self._sink: EventSink | None = None
        self._open = set(self._reads)

    @property
    def write_fds(self) -> tuple[int, int, int]:
        """Descriptors for the kernel: stdout, stderr, log."""
        stdout, stderr, log = self._writes
        return stdout, stderr, log

    def close_write_ends(self) -> None:
        """Close our copies of the write ends, so that the pipes end when the last process of the kernel ends."""
        while self._writes:
            os.close(self._writes.pop())

    def start(self, sink: EventSink) -> None:
        """Start to read. Output from before the job is discarded.

        Parameters
        ----------
        sink : EventSink
            Takes lines and progress.
        """
        self._discard_available()
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        self._done = self._loop.create_future()
        self._watch(self._loop)

    async def done(self) -> None:
        """Return when the shim reports that the job is done; a job may lie, so this only means: time to look."""
        if self._done is None:
            raise RuntimeError("start() first")
        await self._done

    def feed_text(self, stream: str, text: str) -> None:
        """Take text that came as an iopub message, from code that bypassed the shim's streams.

        Parameters
        ----------
        stream : str
            Name of the stream, as the kernel says; unknown ones are ignored.
        text : str
            Any text.
        """
        splitter = self._splitters.get(stream)
        if self._sink is not None and splitter is not None:
            splitter.feed(text.encode("utf-8", "replace"))
            self._take_turn()

    async def read_to_eof(self) -> None:
        """Read the rest of the pipes and finish the last lines; to be called when every writer is dead."""
        while (self._open or self._is_behind) and self._take_turn():  # noqa: ASYNC110 - others get a turn, nothing is awaited
            await asyncio.sleep(0)
        self._finish_lines()

    async def flush(self) -> None:
        """Read the output of a living kernel up to now and finish the last lines.

        The number of reads is bounded: a job may leave a thread behind that prints without end.
        """
        last_read = self._reads_of_log + FLUSH_READS
        while (self._is_behind or self._reads_of_log < last_read) and self._take_turn():  # noqa: ASYNC110 - as above
            await asyncio.sleep(0)
        self._finish_lines()

    def discard(self) -> None:
        """Keep reading, so that no writer has to wait, and discard the output."""
        if self._loop is None:
            self.start(_NoSink())
        else:
            self._sink = _NoSink()

    def close(self) -> None:
        """Close every descriptor. It may be called twice."""
        for fd in self._reads:
            if self._loop is not None:
                self._loop.remove_reader(fd)
        if self._next_turn is not None:
            self._next_turn.cancel()
        for fd in (*self._reads, *self._writes):
            os.close(fd)
        self._reads, self._writes, self._open = [], [], set()

    @property
    def _is_behind(self) -> bool:
        """Whether something was read that is not handled."""
        return self._has_frames or any(splitter.is_behind for splitter in self._splitters.values())

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        for fd in self._open:
            loop.add_reader(fd, self._on_readable)

    def _on_readable(self) -> None:
        if self._next_turn is None:  # one turn for all pipes: each pipe with data calls this
            self._take_turn()

    def _take_next_turn(self) -> None:
        self._next_turn = None
        if self._loop is not None:
            self._watch(self._loop)
        self._take_turn()

    def _take_turn(self) -> bool:
        """Handle some of what has arrived, schedule the rest, and return whether there was anything."""
        if self._sink is None or not self._reads:
            return False
        self._lines_left = TURN_ITEMS
        found = self._go_on(self._sink) if self._is_behind else self._read_available(self._sink)
        if self._next_turn is None and self._loop is not None:
            if self._is_behind:
                self._next_turn = self._loop.call_soon(self._take_next_turn)
            elif self._lines_left <= TURN_ITEMS - FLOOD_LINES:
                for fd in self._open:
                    self._loop.remove_reader(fd)
                self._next_turn = self._loop.call_later(FLOOD_PAUSE_SECONDS, self._take_next_turn)
        return found

    def _go_on(self, sink: EventSink) -> bool:
        """Handle what was read before; nothing else is read meanwhile, so lines keep their order."""
        for splitter in self._splitters.values():
            self._emit_lines(splitter, sink)
        if self._lines_left:
            self._take_frames(b"", sink)
        return True

    def _read_available(self, sink: EventSink) -> bool:
        """Read what has arrived, the log pipe first; return whether there was anything."""
        stdout, stderr, log = self._reads
        # Polled before the log pipe is read: later output on a raw pipe may follow a frame that this read does not see,
        # so it has to wait for the next one.
        waiting = self._readable(stdout, stderr)
        frames = self._read(log)
        self._reads_of_log += 1
        self._take_frames(frames, sink)
        if self._is_behind or len(frames) >= READ_BYTES:
            return True  # there may be more frames, and the raw pipes come after them
        for fd in waiting:
            self._feed("stdout" if fd == stdout else "stderr", self._read(fd), sink)
        return bool(frames or waiting)

    def _readable(self, *fds: int) -> list[int]:
        poll = select.poll()
        for fd in fds:
            if fd in self._open:
                poll.register(fd, select.POLLIN)
        return [fd for fd, _ in poll.poll(0)]

    def _read(self, fd: int) -> bytes:
        if fd not in self._open:
            return b""
        try:
            data = os.read(fd, READ_BYTES)
        except BlockingIOError:
            return b""
        if not data:
            self._open.discard(fd)
            if self._loop is not None:
                self._loop.remove_reader(fd)
        return data

    def _take_frames(self, data: bytes, sink: EventSink) -> None:
        data = self._frames + data
        offset, header = 0, FRAME_HEADER.size
        run_tag, run = b"", bytearray()  # neighbours of one stream are split into lines at once
        frames_left, self._has_frames = TURN_ITEMS, False
        while len(data) - offset >= header:
            tag, size = FRAME_HEADER.unpack_from(data, offset)
            is_text = tag in STREAM_TAGS
            if not (is_text or tag in (b"p", b"d")) or size > FRAME_MAX_PAYLOAD_BYTES:
                # not a frame: user code wrote to the descriptor itself. Show it, and discard the framing of this read.
                self._feed_run(run_tag, run, sink)
                run_tag, run = b"o", bytearray(data[offset:])
                offset = len(data)
                break
            end = offset + header + size
            if len(data) < end:
                break
            if tag != run_tag:
                self._feed_run(run_tag, run, sink)
                run_tag, run = tag, bytearray()
            if not frames_left or not self._lines_left:
                self._has_frames = True
                break
            if is_text:
                run += data[offset + header : end]
            elif tag == b"p":
                if (progress := parse_progress(data[offset + header : end])) is not None:
                    sink.emit(progress)
            elif self._done is not None and not self._done.done():
                self._done.set_result(None)
            offset = end
            frames_left -= 1
        self._feed_run(run_tag, run, sink)
        self._frames = data[offset:]

    def _feed_run(self, tag: bytes, text: bytearray, sink: EventSink) -> None:
        if text:
            self._feed(STREAM_TAGS[tag], bytes(text), sink, is_display=tag == DISPLAY_TAG)

    def _feed(self, stream: StreamName, data: bytes, sink: EventSink, *, is_display: bool = False) -> None:
        splitter = self._splitters[stream]
        splitter.feed(data, is_display=is_display)
        self._emit_lines(splitter, sink)

    def _emit_lines(self, splitter: LineSplitter, sink: EventSink) -> None:
        if splitter.is_behind and self._lines_left:
            self._lines_left -= splitter.emit_lines(sink, self._lines_left)

    def _finish_lines(self) -> None:
        if self._sink is not None:
            self._finish_frames(self._sink)
            for splitter in self._splitters.values():
                splitter.finish(self._sink)

    def _finish_frames(self, sink: EventSink) -> None:
        """Show the part of a frame that a killed writer left."""
        if len(self._frames) > FRAME_HEADER.size:
            tag, _ = FRAME_HEADER.unpack_from(self._frames)
            if tag in STREAM_TAGS:
                self._splitters[STREAM_TAGS[tag]].feed(self._frames[FRAME_HEADER.size :])
        self._frames = b""

    def _discard_available(self) -> None:
        for fd in tuple(self._open):
            while self._read(fd):
                pass
