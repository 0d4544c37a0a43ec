"""The events of a job, as one stream of typed events that HTTP, the command line and metrics all read."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal, Protocol

from msgspec import Raw, Struct

from gateway.core.displays import Display, has_room
from gateway.core.job import JobState, Verdict
from gateway.core.log_json import decode_line, encode_line

StreamName = Literal["stdout", "stderr"]

#: Stages and tables of one job whose progress is kept: more than a request may name, fewer than a job can make up.
MOST_PROGRESS = 1000


class StateChanged(Struct, frozen=True, tag="state"):
    """The job entered another state or stage."""

    state: JobState
    stage: str = ""


class LogLine(Struct, frozen=True, omit_defaults=True, tag="line"):
    """One line of output, without its newline; ``timestamp`` is seconds since the epoch at arrival.

    ``display`` says whether the line is the text of an image or a table that is kept as well.
    """

    timestamp: float
    stream: StreamName
    message: str
    display: bool = False


class Progress(Struct, frozen=True, tag="progress"):
    """The progress of a stage: ``fetch``, ``read``, ``transform``, ``write``, ``deliver``.

    For the stage ``transform``, the script reports it with `transform_shim.progress` or tqdm: ``bar``, its number
    among the bars that are shown at the same time, ``description``, and ``done`` of ``total``.
    """

    stage: str
    table: str | None = None
    rows: int | None = None
    bytes: int | None = None
    bar: int | None = None
    description: str = ""
    done: int | float | None = None
    total: int | float | None = None

    @property
    def key(self) -> tuple[str, str | int | None]:
        """Stage and table, or number of the bar; a later event of the same key replaces this one."""
        return self.stage, self.table if self.bar is None else self.bar


class Displayed(Struct, frozen=True, tag="displayed"):
    """The job displayed something, which is shown with its log."""

    display: Display


class Placed(Struct, frozen=True, tag="placed"):
    """A host of a cluster has the job."""

    host: str


class Finished(Struct, frozen=True, tag="finished"):
    """The verdict is known; always the last event."""

    verdict: Verdict


Event = StateChanged | LogLine | Progress | Displayed | Placed | Finished


class LogSnapshot(Struct, frozen=True, omit_defaults=True):
    """The lines that an `EventLog` kept, with the counters from which they get the same numbers again, and displays."""

    #: JSON objects of `gateway.core.log_json`, so that nothing is encoded on the event loop.
    head: list[Raw]
    tail: list[Raw]
    dropped_lines: int = 0
    dropped_bytes: int = 0
    displays: tuple[Display, ...] = ()


class EventSink(Protocol):
    """Takes the events of a running job."""

    def emit(self, event: Event) -> None:
        """Take one event; never blocks and never raises."""


class JobLog(EventSink, Protocol):
    """An event sink whose lines can be read again, for the delivery of the log."""

    def snapshot(self) -> LogSnapshot:
        """Return a copy of the lines and displays that are kept."""

    def resume(self, snapshot: LogSnapshot) -> None:
        """Begin with the lines and displays of another log, with their numbers; they replace what is kept."""

    def line(self, stream: StreamName, message: str) -> None:
        """Record a line of the gateway's own; `message` has no newline."""

    def json_lines(self, offset: int = 0) -> tuple[list[bytes], int]:
        """Return the lines from a number on as the JSON objects of `gateway.core.log_json`.

        Lines are numbered from 0 as they come, dropped lines included. So a caller that asks again with the number that
        it got misses no line that is kept and gets no line twice.

        Returns
        -------
        lines : list of bytes
            The lines that are kept, with a marker where lines were dropped.
        next_offset : int
            Number of the next line to come.
        """


@dataclass(slots=True)
class EventLog:
    """Keeps a job's events within a byte cap and passes them to followers.

    The head is kept whole up to half of the cap and the tail in a ring, so that both the beginning and the cause of
    a failure survive a flood. Until the cap is reached, each reading of the log is a prefix of the later ones; Metabase
    relies on that. A line is kept as the JSON object that readers get, and as nothing else.

    Parameters
    ----------
    cap_bytes : int
        Bytes kept in all, counted as they are in the events object.
    line_cap_bytes : int
        Longest line that is kept whole; a longer one is cut, with a note.

    Attributes
    ----------
    version : int
        Changes with each event.
    displays : list of Display
        The displays of the job, within the bounds of `gateway.core.displays`.
    host : str
        The member of a cluster that runs the job or ran it; empty without a cluster, and while no host has it.
    """

    cap_bytes: int = 2_000_000
    line_cap_bytes: int = 65_536
    state: JobState = JobState.QUEUED
    stage: str = ""
    verdict: Verdict | None = None
    progress: dict[tuple[str, str | int | None], Progress] = field(default_factory=dict)
    version: int = 0
    displays: list[Display] = field(default_factory=list)
    host: str = ""
    _display_bytes: int = 0
    _head: list[bytes] = field(default_factory=list)
    _tail: deque[bytes] = field(default_factory=deque)
    _head_bytes: int = 0
    _tail_bytes: int = 0
    _dropped_lines: int = 0
    _dropped_bytes: int = 0
    _followers: list[Callable[[Event], None]] = field(default_factory=list)
    finished: asyncio.Event = field(default_factory=asyncio.Event)

    @classmethod
    def restored(cls, snapshot: LogSnapshot, verdict: Verdict) -> EventLog:
        """Return the log of a finished job; its lines have the numbers that they had before."""
        log = cls()
        log.resume(snapshot)
        log.emit(Finished(verdict))
        return log

    def resume(self, snapshot: LogSnapshot) -> None:
        self._head = [bytes(line) for line in snapshot.head]
        self._tail = deque(bytes(line) for line in snapshot.tail)
        self._dropped_lines, self._dropped_bytes = snapshot.dropped_lines, snapshot.dropped_bytes
        self._head_bytes = sum(len(line) + 1 for line in self._head)
        self._tail_bytes = sum(len(line) + 1 for line in self._tail)
        for display in snapshot.displays:
            self._keep_display(display)

    def snapshot(self) -> LogSnapshot:
        head, tail = [Raw(line) for line in self._head], [Raw(line) for line in self._tail]
        return LogSnapshot(head, tail, self._dropped_lines, self._dropped_bytes, tuple(self.displays))

    def emit(self, event: Event) -> None:
        self.version += 1
        match event:
            case LogLine():
                event = self._keep(event)
            case StateChanged(state, stage):
                self.state, self.stage = state, stage
            case Progress():
                # a job may report anything about itself, also of tables that it does not have
                if event.key in self.progress or len(self.progress) < MOST_PROGRESS:
                    self.progress[event.key] = event
            case Displayed(display):
                self._keep_display(display)
            case Placed(host):
                self.host = host
            case Finished(verdict):
                self.host = verdict.host
                self.verdict, self.state = verdict, JobState.FINISHED
                self.finished.set()
        for follower in tuple(self._followers):
            follower(event)

    @property
    def kept_bytes(self) -> int:
        """Bytes of log in memory, counted as they are in the events object, and of displays."""
        return self._head_bytes + self._tail_bytes + self._display_bytes

    @property
    def line_count(self) -> int:
        """Number of the next line to come; dropped lines count."""
        return len(self._head) + self._dropped_lines + len(self._tail)

    def line(self, stream: StreamName, message: str) -> None:
        self.emit(LogLine(time.time(), stream, message))

    def follow(self, follower: Callable[[Event], None]) -> Callable[[], None]:
        """Call `follower`, which must not raise, for each further event; return a function that ends the calls."""
        self._followers.append(follower)
        return lambda: self._followers.remove(follower)

    def lines(self) -> Iterator[LogLine]:
        """Yield the lines that are kept, in order; see `json_lines`."""
        return iter(self.lines_from(0)[0])

    def lines_from(self, offset: int) -> tuple[list[LogLine], int]:
        """Return the lines from a number on, and the number of the next line to come; see `json_lines`."""
        lines, next_offset = self.json_lines(offset)
        return [LogLine(*decode_line(line)) for line in lines], next_offset

    def json_lines(self, offset: int = 0) -> tuple[list[bytes], int]:
        lines = self._head[offset:]
        first_of_tail = len(self._head) + self._dropped_lines
        if self._dropped_lines and offset < first_of_tail:
            lines.append(self._marker())
        lines += islice(self._tail, max(0, offset - first_of_tail), None)
        return lines, first_of_tail + len(self._tail)

    def _marker(self) -> bytes:
        first = decode_line(self._tail[0])[0] if self._tail else time.time()
        lost = f"{self._dropped_lines} lines ({self._dropped_bytes} bytes) dropped"
        return encode_line(first, "stderr", f"... {lost}: the log cap is {self.cap_bytes} bytes ...")

    def _keep_display(self, display: Display) -> None:
        if has_room(self.displays, display):
            self.displays.append(display)
            self._display_bytes += display.size_bytes

    def _keep(self, line: LogLine) -> LogLine:
        encoded = encode_line(line.timestamp, line.stream, line.message, display=line.display)
        if len(encoded) > self.line_cap_bytes:
            # a control character takes six bytes in JSON: cutting at a sixth is always within the cap
            kept = line.message[: self.line_cap_bytes // 6]
            note = f"{kept}... ({len(encoded)} bytes in all; the rest of this line was dropped)"
            line = LogLine(line.timestamp, line.stream, note)
            encoded = encode_line(line.timestamp, line.stream, note)
        size_bytes = len(encoded) + 1  # the line end in the events object
        if not self._tail and self._head_bytes + size_bytes <= self.cap_bytes // 2:
            self._head.append(encoded)
            self._head_bytes += size_bytes
            return line
        self._tail.append(encoded)
        self._tail_bytes += size_bytes
        while self._tail_bytes > self.cap_bytes // 2:
            gone = len(self._tail.popleft()) + 1
            self._tail_bytes -= gone
            self._dropped_bytes += gone
            self._dropped_lines += 1
        return line
