"""A kernel's output as it is made: three pipes read on the event loop, turned into ordered log lines.

Why pipes and not iopub's stream messages: ipykernel batches prints for 0.2 s per stream, so a killed kernel takes its
last words with it, stdout and stderr lose their order among each other, and a busy subscriber loses messages at the
high-water mark. A pipe keeps what was written when the writer dies, and when this loop is busy the writer waits
instead of losing lines.

============ ============================================================================
pipe          what it carries
============ ============================================================================
log           frames of the shim: one tag byte (``o`` stdout, ``e`` stderr, ``p`` progress JSON, ``d`` done),
              uint32 little endian length, payload; at most 4096 bytes in all, so that a write is atomic
stdout        whatever C code and child processes write to descriptor 1
stderr        the same for descriptor 2
============ ============================================================================

The log pipe is drained before the raw ones at each wake-up, and the shim waits for the raw ones to be drained before
it writes a frame: prints and the output of children stay in order. User code holds all three and may write what it
likes; it can only spoil its own log.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import fcntl
import os
import select
import struct
import time

import orjson

from gateway.jobs.events import Event, EventSink, LogLine, Progress, StreamName

PIPE_BYTES = 1 << 18
READ_BYTES = 1 << 18
READS_PER_WAKE = 8
"""After this many reads the loop gets its turn again; a flood of output must not starve the HTTP side."""

SETTLING_READS = 16
"""A wake takes more than a whole pipe holds, so few would do for what was there when the first began."""

FRAME_HEADER = struct.Struct("<cI")
FRAME_MAX_PAYLOAD_BYTES = 4096 - FRAME_HEADER.size
STREAM_TAGS: dict[bytes, StreamName] = {b"o": "stdout", b"e": "stderr"}


class LineSplitter:
    """Turns bytes of one stream into log lines; a line longer than the cap is cut, visibly."""

    def __init__(self, stream: StreamName, cap_bytes: int) -> None:
        self.stream: StreamName = stream
        self._cap_bytes = cap_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._parts: list[str] = []
        self._held_characters = 0
        self._dropped_characters = 0

    def feed(self, data: bytes, sink: EventSink) -> None:
        """Take bytes and emit every line that they complete."""
        text = self._decoder.decode(data)
        lines = text.split("\n")
        if len(lines) > 1:
            now = time.time()
            self._hold(lines[0])
            self._emit(now, sink)
            for line in lines[1:-1]:
                self._hold(line)
                self._emit(now, sink)
        self._hold(lines[-1])

    def finish(self, sink: EventSink) -> None:
        """Emit what stands after the last newline, if anything."""
        self._hold(self._decoder.decode(b"", final=True))
        if self._held_characters:
            self._emit(time.time(), sink)

    def _hold(self, text: str) -> None:
        room = self._cap_bytes - self._held_characters
        if len(text) > room:
            self._dropped_characters += len(text) - max(room, 0)
            text = text[: max(room, 0)]
        if text:
            self._parts.append(text)
            self._held_characters += len(text)

    def _emit(self, now: float, sink: EventSink) -> None:
        message = "".join(self._parts).removesuffix("\r")
        if self._dropped_characters:
            message += f"... ({self._dropped_characters} characters of this line dropped)"
        self._parts, self._held_characters, self._dropped_characters = [], 0, 0
        sink.emit(LogLine(now, self.stream, message))


class _NoSink:
    """Takes events of a kernel that has no job (any more)."""

    def emit(self, event: Event) -> None:
        """Forget it."""


class OutputPipes:
    """Owns the read ends of a kernel's three pipes and, until the kernel has them, the write ends.

    Parameters
    ----------
    line_cap_bytes : int
        Longest line that is kept whole.
    """

    def __init__(self, line_cap_bytes: int) -> None:
        self._reads: list[int] = []
        self._writes: list[int] = []
        try:
            for _ in range(3):
                read, write = os.pipe2(os.O_CLOEXEC)
                self._reads.append(read)
                self._writes.append(write)
                os.set_blocking(read, False)
                with contextlib.suppress(PermissionError):  # beyond the user's pipe budget the default size serves too
                    fcntl.fcntl(read, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:
            self.close()
            raise
        self._line_cap_bytes = line_cap_bytes
        self._splitters: dict[str, LineSplitter] = {
            name: LineSplitter(name, line_cap_bytes) for name in STREAM_TAGS.values()
        }
        self._frames = bytearray()
        self._done: asyncio.Future[None] | None = None
        self._sink: EventSink | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open = set(self._reads)
        self.bytes_read = 0

    @property
    def write_fds(self) -> tuple[int, int, int]:
        """Descriptors for the kernel: stdout, stderr, log."""
        stdout, stderr, log = self._writes
        return stdout, stderr, log

    def kernel_has_them(self) -> None:
        """Close our copies of the write ends, so that the pipes end when the last process of the kernel ends."""
        while self._writes:
            os.close(self._writes.pop())

    def attach(self, sink: EventSink) -> None:
        """Read from now on, into `sink`; what a ready kernel said before it had a job is thrown away."""
        self._drain_into_nothing()
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        self._done = self._loop.create_future()
        for fd in self._reads:
            self._loop.add_reader(fd, self._pump)

    async def done(self) -> None:
        """Return when the shim says that the job is done, which as any word of a job only tells when to look."""
        if self._done is None:
            raise RuntimeError("attach() first")
        await self._done

    def feed_text(self, stream: str, text: str) -> None:
        """Take text that came as an iopub message, from code that printed around the shim's streams."""
        splitter = self._splitters.get(stream)
        if self._sink is not None and splitter is not None:
            splitter.feed(text.encode("utf-8", "replace"), self._sink)

    def drain(self) -> None:
        """Read what is left in the pipes and finish the last lines; for when every writer is dead."""
        while self._open and self._pump():
            pass
        if self._sink is not None:
            self._finish_frames(self._sink)
            for splitter in self._splitters.values():
                splitter.finish(self._sink)

    def settle(self) -> None:
        """Read what a living kernel has said up to now and finish the last lines.

        A bounded number of reads: a job may leave a thread behind that prints for ever.
        """
        for _ in range(SETTLING_READS):
            if not self._pump():
                break
        if self._sink is not None:
            self._finish_frames(self._sink)
            for splitter in self._splitters.values():
                splitter.finish(self._sink)

    def discard(self) -> None:
        """Read on, so that no writer has to wait, and throw it away."""
        if self._loop is None:
            self.attach(_NoSink())
        else:
            self._sink = _NoSink()

    def close(self) -> None:
        """Let go of every descriptor. May be called twice."""
        for fd in self._reads:
            if self._loop is not None:
                self._loop.remove_reader(fd)
        for fd in (*self._reads, *self._writes):
            os.close(fd)
        self._reads, self._writes, self._open = [], [], set()

    def _pump(self) -> bool:
        """Read what is there, the log pipe first; returns whether anything was."""
        if self._sink is None or not self._reads:
            return False
        stdout, stderr, log = self._reads
        # Asked before the log is drained: what comes to a raw pipe from now on may follow a frame that this drain does
        # not see any more, so it has to wait for the next one.
        waiting = self._readable(stdout, stderr)
        frames = self._read(log)
        self._take_frames(frames, self._sink)
        if len(frames) >= READS_PER_WAKE * READ_BYTES:
            return True  # more frames may stand there, and the raw pipes come after them
        for fd in waiting:
            stream = "stdout" if fd == stdout else "stderr"
            self._splitters[stream].feed(self._read(fd, most=1), self._sink)
        return bool(frames or waiting)

    def _readable(self, *fds: int) -> list[int]:
        poll = select.poll()
        for fd in fds:
            if fd in self._open:
                poll.register(fd, select.POLLIN)
        return [fd for fd, _ in poll.poll(0)]

    def _read(self, fd: int, most: int = READS_PER_WAKE) -> bytes:
        if fd not in self._open:
            return b""
        parts: list[bytes] = []
        for _ in range(most):
            try:
                data = os.read(fd, READ_BYTES)
            except BlockingIOError:
                break
            if not data:
                self._open.discard(fd)
                if self._loop is not None:
                    self._loop.remove_reader(fd)
                break
            parts.append(data)
            self.bytes_read += len(data)
        return b"".join(parts)

    def _take_frames(self, data: bytes, sink: EventSink) -> None:
        buffer = self._frames
        buffer += data
        offset, header = 0, FRAME_HEADER.size
        while len(buffer) - offset >= header:
            tag, size = FRAME_HEADER.unpack_from(buffer, offset)
            if (tag not in STREAM_TAGS and tag not in (b"p", b"d")) or size > FRAME_MAX_PAYLOAD_BYTES:
                # not a frame: user code wrote to the descriptor itself. Show it, and look for frames no further.
                self._splitters["stdout"].feed(bytes(buffer[offset:]), sink)
                offset = len(buffer)
                break
            if len(buffer) - offset < header + size:
                break
            payload = bytes(buffer[offset + header : offset + header + size])
            offset += header + size
            if tag == b"p":
                _emit_progress(payload, sink)
            elif tag == b"d":
                if self._done is not None and not self._done.done():
                    self._done.set_result(None)
            else:
                self._splitters[STREAM_TAGS[tag]].feed(payload, sink)
        del buffer[:offset]

    def _finish_frames(self, sink: EventSink) -> None:
        """Show the piece of a frame that a killed writer left."""
        if len(self._frames) > FRAME_HEADER.size:
            tag, _ = FRAME_HEADER.unpack_from(self._frames)
            if tag in STREAM_TAGS:
                self._splitters[STREAM_TAGS[tag]].feed(bytes(self._frames[FRAME_HEADER.size :]), sink)
        self._frames.clear()

    def _drain_into_nothing(self) -> None:
        for fd in tuple(self._open):
            self._read(fd)


def _emit_progress(payload: bytes, sink: EventSink) -> None:
    """Pass on a progress frame if it is one; anything may stand there."""
    try:
        told = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return
    if not isinstance(told, dict) or not isinstance(told.get("stage"), str):
        return
    table, rows, size = told.get("table"), told.get("rows"), told.get("bytes")
    sink.emit(
        Progress(
            stage=told["stage"][:20],
            table=table[:200] if isinstance(table, str) else None,
            rows=rows if isinstance(rows, int) else None,
            bytes=size if isinstance(size, int) else None,
        )
    )
