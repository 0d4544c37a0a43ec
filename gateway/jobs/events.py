"""What happens in a job, as one stream of typed events that HTTP, the command line and metrics all read."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal, Protocol

import orjson

from gateway.jobs.model import JobState, Verdict

StreamName = Literal["stdout", "stderr"]

MOST_PROGRESS = 1000
"""Stages and tables of one job whose progress is kept: more than a request may name, fewer than a job can make up."""


@dataclass(frozen=True, slots=True)
class StateChanged:
    """The job moved on."""

    state: JobState
    stage: str = ""


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of output, without its newline; ``timestamp`` is seconds since the epoch at arrival."""

    timestamp: float
    stream: StreamName
    message: str


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a stage has come: ``fetch``, ``read``, ``write``, ``deliver``."""

    stage: str
    table: str | None = None
    rows: int | None = None
    bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The verdict is known; always the last event."""

    verdict: Verdict


Event = StateChanged | LogLine | Progress | Finished


class EventSink(Protocol):
    """Where a running job reports; never blocks and never raises."""

    def emit(self, event: Event) -> None:
        """Take one event."""


@dataclass(slots=True)
class EventLog:
    """Keeps a job's events within a byte cap and hands them to whoever follows.

    The head is kept whole up to half of the cap and the tail in a ring, so that both the beginning and the cause of
    a failure survive a flood. Until the cap is reached, what a reader sees is a prefix of what it will see later;
    Metabase relies on that.

    Parameters
    ----------
    cap_bytes : int
        Bytes kept in all, counted as they stand in the events object.
    line_cap_bytes : int
        A longer line is cut, visibly.
    """

    cap_bytes: int = 2_000_000
    line_cap_bytes: int = 65_536
    state: JobState = JobState.QUEUED
    stage: str = ""
    verdict: Verdict | None = None
    progress: dict[tuple[str, str | None], Progress] = field(default_factory=dict)
    _head: list[LogLine] = field(default_factory=list)
    _tail: deque[tuple[LogLine, int]] = field(default_factory=deque)
    _head_bytes: int = 0
    _tail_bytes: int = 0
    _dropped_lines: int = 0
    _dropped_bytes: int = 0
    _followers: list[Callable[[Event], None]] = field(default_factory=list)
    finished: asyncio.Event = field(default_factory=asyncio.Event)

    def emit(self, event: Event) -> None:
        """Record one event and pass it on."""
        match event:
            case LogLine():
                event = self._keep(event)
            case StateChanged(state, stage):
                self.state, self.stage = state, stage
            case Progress(stage, table):
                # a job may report what it likes about itself, tables that it has not got included
                if (stage, table) in self.progress or len(self.progress) < MOST_PROGRESS:
                    self.progress[stage, table] = event
            case Finished(verdict):
                self.verdict, self.state = verdict, JobState.FINISHED
                self.finished.set()
        for follower in tuple(self._followers):
            follower(event)

    @property
    def kept_bytes(self) -> int:
        """Bytes of log held in memory, counted as they stand in the events object."""
        return self._head_bytes + self._tail_bytes

    def line(self, stream: StreamName, message: str) -> None:
        """Record a line of the gateway's own."""
        self.emit(LogLine(time.time(), stream, message))

    def follow(self, follower: Callable[[Event], None]) -> Callable[[], None]:
        """Call `follower` for each further event; returns the function that ends it."""
        self._followers.append(follower)
        return lambda: self._followers.remove(follower)

    def lines(self) -> Iterator[LogLine]:
        """Yield what is kept, in order, with a visible marker where lines were dropped."""
        return iter(self.lines_from(0)[0])

    def lines_from(self, offset: int) -> tuple[list[LogLine], int]:
        """Return what is kept of the lines from number `offset` on, and the number that the next line will have.

        Lines are numbered from 0 as they come, dropped ones included, so a follower that asks again with the number
        it got misses nothing that is kept and gets nothing twice.
        """
        lines = self._head[offset:]
        first_of_tail = len(self._head) + self._dropped_lines
        if self._dropped_lines and offset < first_of_tail:
            lines.append(self._marker())
        lines += [line for line, _ in islice(self._tail, max(0, offset - first_of_tail), None)]
        return lines, first_of_tail + len(self._tail)

    def _marker(self) -> LogLine:
        first = self._tail[0][0].timestamp if self._tail else time.time()
        lost = f"{self._dropped_lines} lines ({self._dropped_bytes} bytes) dropped"
        note = f"... {lost}: the log cap is {self.cap_bytes} bytes ..."
        return LogLine(first, "stderr", note)

    def ends_with(self, text: str, lines: int = 3) -> bool:
        """Return whether one of the last lines already says `text`."""
        kept, tail = self.lines_from(0)[0], text.strip()
        return bool(tail) and any(tail in line.message for line in kept[-lines:])

    def _keep(self, line: LogLine) -> LogLine:
        size = _encoded_bytes(line.message)
        if size > self.line_cap_bytes:
            # a control character takes six bytes in JSON: cutting at a sixth is always within the cap
            kept = line.message[: self.line_cap_bytes // 6]
            note = f"{kept}... ({size} bytes in all; the rest of this line was dropped)"
            line = LogLine(line.timestamp, line.stream, note)
            size = _encoded_bytes(note)
        if not self._tail and self._head_bytes + size <= self.cap_bytes // 2:
            self._head.append(line)
            self._head_bytes += size
            return line
        self._tail.append((line, size))
        self._tail_bytes += size
        while self._tail_bytes > self.cap_bytes // 2:
            _, gone = self._tail.popleft()
            self._tail_bytes -= gone
            self._dropped_bytes += gone
            self._dropped_lines += 1
        return line


def _encoded_bytes(message: str) -> int:
    """Return what one line costs in the events object, its keys included; empty lines are not free."""
    return len(orjson.dumps(message)) + 64
