"""sys.stdout, sys.stderr and print() of a job: one ordered, framed pipe.

Frame: one byte tag (``o`` stdout, ``i`` the text of a display on stdout, ``e`` stderr, ``p`` progress, ``d`` done), the
payload's length as uint32 little endian, the payload (UTF-8, cut anywhere). At most 4096 bytes in all, so that a frame
is atomic (PIPE_BUF, pipe(7)): threads and forked children share the pipe.

Nothing is buffered: a printed text is in the pipe when print() returns, and neither os._exit nor SIGKILL can lose it.
Python's print() writes each value, blank and line end on its own, and a stream cannot see that more is to follow.
So print() is replaced while a job runs: it joins the text and writes one frame, which takes 3 microseconds a line and
not 11.

C code and child processes write to descriptors 1 and 2, which are pipes of their own; before a frame, the writer
waits until the reader has drained those, so that their order among each other is kept. The reader's part: find the raw
pipes that hold data, then read all frames, then read each of those raw pipes once. While a raw pipe is not empty no
frame is written, so the frames were printed before the data in the raw pipes.
"""

from __future__ import annotations

import builtins
import contextlib
import fcntl
import functools
import io
import os
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from types import NoneType
from typing import Any, TextIO

from transform_shim.core.progress import LOG_FD_VARIABLE

__all__ = ["FRAME_BYTES", "FramePipe", "LogStream", "log_streams", "silence_descriptors"]

#: A frame in all, in bytes: PIPE_BUF of Linux.
FRAME_BYTES = 4096
_HEADER = struct.Struct("<cI")
_PAYLOAD_BYTES = FRAME_BYTES - _HEADER.size
#: Seconds that a frame waits for the raw pipes; with a slower reader the order is lost, never the text. On a busy
#: machine the gateway may not run for hundreds of milliseconds.
_DRAIN_SECONDS = 5.0
#: The same after such a wait has timed out, and after an interrupt, when the job has a quarter of a second for its last
#: output.
_NEXT_DRAIN_SECONDS = 0.02
_RAW_DESCRIPTORS = (1, 2)
#: Types whose conversion to text has no side effect.
_PLAIN_TYPES = frozenset({str, int, float, complex, bool, bytes, NoneType})


class FramePipe:
    """The writing end of the log pipe."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.RLock()  # a signal handler may print while its thread is printing
        self._unread = bytearray(4)
        self._raw = [(fd, os.fstat(fd).st_ino) for fd in _RAW_DESCRIPTORS if self._queued_bytes(fd) is not None]
        self._drain_seconds = _DRAIN_SECONDS
        #: Whether other processes may be writing frames as well.
        self.is_shared = False
        os.register_at_fork(after_in_parent=self._note_fork, after_in_child=self._renew_lock)

    def send(self, tag: bytes, payload: bytes | memoryview) -> None:
        """Write `payload` in as many frames as it takes.

        A broken pipe is not an error: its reader, which alone could show the text, is gone.
        """
        with self._lock, contextlib.suppress(BrokenPipeError):
            self._wait_for_raw_pipes()
            for start in range(0, len(payload), _PAYLOAD_BYTES):
                piece = payload[start : start + _PAYLOAD_BYTES]
                self._write(_HEADER.pack(tag, len(piece)) + piece)

    def _write(self, frame: bytes) -> None:
        while True:
            try:
                os.write(self._descriptor, frame)
            except BlockingIOError:  # user code made the pipe non-blocking; a frame is atomic, so none of it was taken
                time.sleep(0.001)
            else:
                return

    def _wait_for_raw_pipes(self) -> None:
        deadline_seconds: float | None = None
        for descriptor, inode in self._raw:
            # the gateway never reads a pipe or a file of the job's own in the place of the raw pipe
            while self._queued_bytes(descriptor) and os.fstat(descriptor).st_ino == inode:
                now_seconds = time.monotonic()
                deadline_seconds = deadline_seconds or now_seconds + self._patience_seconds()
                if now_seconds >= deadline_seconds:
                    self._drain_seconds = _NEXT_DRAIN_SECONDS
                    return
                time.sleep(0.0002)

    def _patience_seconds(self) -> float:
        is_interrupted = isinstance(sys.exc_info()[1], KeyboardInterrupt)
        return _NEXT_DRAIN_SECONDS if is_interrupted else self._drain_seconds

    def _queued_bytes(self, descriptor: int) -> int | None:
        """Return the bytes that are not read yet (FIONREAD, pipe(7)); None if that cannot be asked."""
        try:
            fcntl.ioctl(descriptor, termios.FIONREAD, self._unread)
        except OSError:  # closed by user code, or no pipe
            return None
        return int.from_bytes(self._unread, sys.byteorder)

    def _note_fork(self) -> None:
        self.is_shared = True

    def _renew_lock(self) -> None:
        """Replace the lock in a forked child: a thread that does not exist there may have held it."""
        self.is_shared = True
        self._lock = threading.RLock()


def silence_descriptors() -> None:
    """Drop what is written to the raw pipes from now on.

    A thread of a failed job that writes on would push its traceback out of the log, which keeps the last megabyte.
    """
    with contextlib.suppress(OSError):  # no descriptor is left
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        for descriptor in _RAW_DESCRIPTORS:
            os.dup2(null, descriptor)
        os.close(null)


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
        """Stay open, as the stream does."""


class LogStream(io.TextIOBase):
    """A text stream on the log pipe, usable as sys.stdout or sys.stderr.

    A lone thread writes through. With several threads, or once the process has forked, the writes of one ``print()``
    (texts, blanks, line end) could mix with those of another; then a text without line end is kept until its line end,
    its thread's next write or a flush comes.
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
        return self._raw_buffer

    def write(self, text: str, /) -> int:
        """Send a text; a character that cannot be encoded is written as a backslash escape."""
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

    def write_display(self, text: str) -> None:
        """Send the text of an object that a notebook shows as an image or a table instead."""
        self.flush()
        self._pipe.send(b"i", text.encode(self.encoding, self.errors))

    def send(self, data: memoryview) -> int:
        """Send bytes from :attr:`buffer`, after the text before them."""
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
        """Return the raw descriptor, for child processes and C code."""
        return self._descriptor

    def isatty(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def reconfigure(self, **_: Any) -> None:
        """Do nothing: lines always leave at once and in UTF-8."""

    def close(self) -> None:
        """Flush and stay open: a script that closes sys.stdout must not lose later text."""
        self.flush()


def _joined(plain: Callable[..., None]) -> Callable[..., None]:
    """Return a print() that writes once to a log stream, and passes every other call to `plain`."""

    @functools.wraps(plain)
    def print_(
        *values: object, sep: Any = " ", end: Any = "\n", file: Any = None, flush: Any = False, **unknown: Any
    ) -> None:
        stream = getattr(sys, "stdout", None) if file is None else file
        sep_text, end_text = " " if sep is None else sep, "\n" if end is None else end
        if (
            type(stream) is not LogStream
            or "write" in stream.__dict__  # a script put its own function there, which expects the pieces
            or type(sep_text) is not str
            or type(end_text) is not str
            or (flush is not False and flush is not True)
            or unknown
        ):
            plain(*values, sep=sep, end=end, file=file, flush=flush, **unknown)
            return
        texts: list[str] = []
        for value in values:
            if type(value) is str:
                texts.append(value)
                continue
            if texts and type(value) not in _PLAIN_TYPES:  # its __str__ may print, raise or end the process
                stream.write(sep_text.join(texts) + sep_text)
                texts = []
            try:
                texts.append(str(value))
            except BaseException:  # a plain one too: an int may have too many digits
                if texts:
                    stream.write(sep_text.join(texts) + sep_text)
                raise
        stream.write(sep_text.join(texts) + end_text)
        if flush:
            stream.flush()

    return print_


@contextlib.contextmanager
def log_streams() -> Iterator[FramePipe | None]:
    """Put the log pipe in place of sys.stdout and sys.stderr, and a print() for it; without one (notebook) do
    nothing.
    """
    descriptor = os.environ.get(LOG_FD_VARIABLE)
    if descriptor is None:
        yield None
        return
    pipe = FramePipe(int(descriptor))
    out, err = LogStream(pipe, b"o", 1, "<stdout>"), LogStream(pipe, b"e", 2, "<stderr>")
    saved: tuple[TextIO | None, ...] = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    sys.stdout, sys.stderr = out, err
    sys.__stdout__, sys.__stderr__ = out, err  # type: ignore[misc, assignment]
    plain = builtins.print
    joined = builtins.print = _joined(plain)
    try:
        yield pipe
    finally:
        if builtins.print is joined:  # else the script has put one of its own there
            builtins.print = plain
        out.flush()
        err.flush()
        for name, stream in zip(("stdout", "stderr", "__stdout__", "__stderr__"), saved, strict=True):
            setattr(sys, name, stream)
