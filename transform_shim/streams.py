"""sys.stdout and sys.stderr of a job: one ordered, framed pipe.

Frame: one byte tag (``o`` stdout, ``e`` stderr, ``p`` progress, ``d`` done), the payload's length as uint32 little
endian, the payload (UTF-8, cut anywhere). At most 4096 bytes in all, so that a frame is atomic whoever else writes
(PIPE_BUF, pipe(7)): threads and forked children share the pipe.

Nothing is buffered: what was printed is in the pipe when print() returns, and neither os._exit nor SIGKILL can take it
back. C code and child processes write to descriptors 1 and 2, which are pipes of their own; before a frame, the writer
waits until the reader has drained those, so that their order among each other is kept. The reader's part of it: look
which raw pipes hold something, then take all frames, then read each of those raw pipes once. While a raw pipe is not
empty no frame is written, so the frames it takes were printed before what it reads.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import struct
import sys
import termios
import threading
import time
from collections.abc import Iterator
from typing import Any, TextIO

__all__ = ["FRAME_BYTES", "FramePipe", "LogStream", "log_streams"]

#: A frame in all, in bytes: PIPE_BUF of Linux.
FRAME_BYTES = 4096
_HEADER = struct.Struct("<cI")
_PAYLOAD_BYTES = FRAME_BYTES - _HEADER.size
#: Seconds that a frame waits for the raw pipes; a reader that is slower loses the order, never the text.
_DRAIN_SECONDS = 0.05
_RAW_DESCRIPTORS = (1, 2)
_FD_VARIABLE = "TRANSFORM_LOG_FD"


class FramePipe:
    """The writing end of the log pipe."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.RLock()  # a signal handler may print while its thread is printing
        self._unread = bytearray(4)
        self._raw = [fd for fd in _RAW_DESCRIPTORS if self._queued_bytes(fd) is not None]
        #: Whether other processes may be writing frames as well.
        self.is_shared = False
        os.register_at_fork(after_in_parent=self._note_fork, after_in_child=self._renew_lock)

    def send(self, tag: bytes, payload: bytes | memoryview) -> None:
        """Write `payload` in as many frames as it takes.

        A broken pipe is no error: the reader is gone, and so is everyone who could see the text.
        """
        view = memoryview(payload)
        with self._lock, contextlib.suppress(BrokenPipeError):
            self._wait_for_raw_pipes()
            for start in range(0, len(view), _PAYLOAD_BYTES):
                piece = view[start : start + _PAYLOAD_BYTES]
                self._write(_HEADER.pack(tag, len(piece)) + piece)

    def _write(self, frame: bytes) -> None:
        while True:
            try:
                os.write(self._descriptor, frame)
            except BlockingIOError:  # somebody made the pipe non-blocking; a frame is atomic, so none of it was taken
                time.sleep(0.001)
            else:
                return

    def _wait_for_raw_pipes(self) -> None:
        deadline_seconds: float | None = None
        for descriptor in self._raw:
            while self._queued_bytes(descriptor):
                now_seconds = time.monotonic()
                deadline_seconds = deadline_seconds or now_seconds + _DRAIN_SECONDS
                if now_seconds >= deadline_seconds:
                    return
                time.sleep(0.0002)

    def _queued_bytes(self, descriptor: int) -> int | None:
        """Bytes that nobody has read yet (FIONREAD, pipe(7)); None if that cannot be asked."""
        try:
            fcntl.ioctl(descriptor, termios.FIONREAD, self._unread)
        except OSError:  # closed by user code, or no pipe
            return None
        return int.from_bytes(self._unread, sys.byteorder)

    def _note_fork(self) -> None:
        self.is_shared = True

    def _renew_lock(self) -> None:
        """After a fork, in the child: another thread may have held the lock and is not there to let go."""
        self.is_shared = True
        self._lock = threading.RLock()


class _Buffer(io.RawIOBase):
    """``sys.stdout.buffer``: bytes go into frames as they are."""

    def __init__(self, stream: LogStream) -> None:
        self._stream = stream

    def write(self, data: Any, /) -> int:
        return self._stream.send(memoryview(data).cast("B"))

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()

    def close(self) -> None:
        """Stays open, as the stream does."""


class LogStream(io.TextIOBase):
    """A text stream on the log pipe, usable as sys.stdout or sys.stderr.

    A lone thread writes through. With several threads, or once the process has forked, the several writes of one
    ``print()`` (texts, blanks, line end) could be torn apart by another's; then a text without line end is kept until
    its line end, its thread's next write or a flush comes.
    """

    def __init__(self, pipe: FramePipe, tag: bytes, descriptor: int, name: str) -> None:
        self._pipe, self._tag, self._descriptor = pipe, tag, descriptor
        self.name, self.mode = name, "w"
        self._quiet_threads = threading.active_count()
        self._partial: dict[int, str] = {}
        self._raw_buffer = _Buffer(self)
        os.register_at_fork(after_in_child=self._partial.clear)  # the parent will send them

    encoding = "utf-8"
    errors = "backslashreplace"
    newlines = None
    line_buffering = True
    write_through = True

    @property
    def buffer(self) -> _Buffer:
        """The stream of bytes below."""
        return self._raw_buffer

    def write(self, text: str, /) -> int:
        """Send a text; what encoding cannot say is written as a backslash escape."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        length = len(text)
        if self._partial:
            text = self._partial.pop(threading.get_ident(), "") + text
        is_shared = self._pipe.is_shared or threading.active_count() > self._quiet_threads
        if is_shared and not text.endswith("\n"):
            end = text.rfind("\n") + 1
            self._partial[threading.get_ident()] = text[end:]
            text = text[:end]
        if text:
            self._pipe.send(self._tag, text.encode(self.encoding, self.errors))
        return length

    def send(self, data: memoryview) -> int:
        """Bytes from :attr:`buffer`, after the text before them."""
        self.flush()
        self._pipe.send(self._tag, data)
        return len(data)

    def flush(self) -> None:
        """Send the beginnings of lines that are kept back."""
        while self._partial:
            try:
                _, text = self._partial.popitem()
            except KeyError:  # another thread was faster
                break
            self._pipe.send(self._tag, text.encode(self.encoding, self.errors))

    def fileno(self) -> int:
        """The raw descriptor, for child processes and C code."""
        return self._descriptor

    def isatty(self) -> bool:
        """Never."""
        return False

    def writable(self) -> bool:
        """Always."""
        return True

    def reconfigure(self, **_: Any) -> None:
        """Accepted and ignored: lines leave at once and in UTF-8 whatever is asked for."""

    def close(self) -> None:
        """A script that closes sys.stdout must not lose what is said afterwards."""
        self.flush()


@contextlib.contextmanager
def log_streams() -> Iterator[FramePipe | None]:
    """Put the log pipe in place of sys.stdout and sys.stderr; without one (notebook) leave them alone."""
    descriptor = os.environ.get(_FD_VARIABLE)
    if descriptor is None:
        yield None
        return
    pipe = FramePipe(int(descriptor))
    out, err = LogStream(pipe, b"o", 1, "<stdout>"), LogStream(pipe, b"e", 2, "<stderr>")
    saved: tuple[TextIO | None, ...] = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    sys.stdout, sys.stderr = out, err
    sys.__stdout__, sys.__stderr__ = out, err  # type: ignore[misc, assignment]
    try:
        yield pipe
    finally:
        out.flush()
        err.flush()
        for name, stream in zip(("stdout", "stderr", "__stdout__", "__stderr__"), saved, strict=True):
            setattr(sys, name, stream)
