"""Follow a job's log: read the new part at each poll, and pass it on as events."""

from __future__ import annotations

import contextlib
import time
import urllib.parse
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from gateway.client.errors import GatewayRefused, GatewayUnreachable, TransformError
from gateway.client.job_stream import LOST_SECONDS
from gateway.client.transport import GatewayHttp
from gateway.core.events import Event, LogLine, Progress, StateChanged, StreamName
from gateway.core.job import JobState, RequestId

#: Interval between two requests for the log.
POLL_SECONDS = 0.2

_STATES = frozenset(state.value for state in JobState)

OnEvent = Callable[[Event], None]
OnLost = Callable[[GatewayUnreachable], None]


class Follower:
    """Follows one job's log and state.

    Parameters
    ----------
    http : GatewayHttp
        The gateway.
    path : str
        Path of the log, with a query.
    on_event : callable
        Called with each event.
    on_lost : callable, optional
        Called with the reason each time that the gateway stops responding.

    Attributes
    ----------
    lines : list of LogLine
        All lines read so far.
    finished : bool
        Whether the job is finished.
    """

    def __init__(self, http: GatewayHttp, path: str, on_event: OnEvent, on_lost: OnLost = lambda error: None) -> None:
        self._http = http
        self._path = path
        self._on_event = on_event
        self._on_lost = on_lost
        self._offset = 0
        self._state: tuple[str, str] = ("", "")
        self._progress: dict[tuple[str, str | int | None], Progress] = {}
        self._lost_since: float | None = None
        self.lines: list[LogLine] = []
        self.finished = False

    def poll(self, *, is_answered: bool = True) -> None:
        """Read the new part of the log.

        Parameters
        ----------
        is_answered : bool
            Whether the gateway has answered the job's request. Until then it may not know the job, and a finished job
            is an earlier one with the same id, whose log is not taken, or this one, of which `catch_up` reads the
            rest.

        Raises
        ------
        GatewayRefused
            404 when the job is unknown, and was so at the polls before.
        GatewayUnreachable
            The gateway has not responded for `LOST_SECONDS`.
        """
        try:
            answer = self._http.get_json(f"{self._path}&offset={self._offset}")
        except GatewayRefused as refusal:
            self._lost_since = None
            if refusal.status != 404 or (is_answered and not self._state[0]):
                raise
            self.finished = is_answered  # and forgotten since
            return
        except GatewayUnreachable as error:
            now = time.monotonic()
            if self._lost_since is None:
                self._lost_since = now
                self._on_lost(error)
            if now - self._lost_since > LOST_SECONDS:
                raise
            return
        self._lost_since = None
        if is_answered or answer.get("state") != JobState.FINISHED:
            self._take(answer)

    def follow(self) -> None:
        """Read the log until the job is finished; raises as `poll` does."""
        self.poll()
        while not self.finished:
            time.sleep(POLL_SECONDS)
            self.poll()

    def catch_up(self) -> None:
        """Read the rest of the log of a finished job; a failure to read it must not fail the job."""
        with contextlib.suppress(TransformError):
            self.poll()

    def _take(self, answer: dict[str, Any]) -> None:
        state = (str(answer.get("state", "")), str(answer.get("stage", "")))
        if state != self._state and state[0] in _STATES:
            self._state = state
            self._on_event(StateChanged(JobState(state[0]), state[1]))
        for event in answer.get("events", []):
            line = log_line(event)
            self.lines.append(line)
            self._on_event(line)
        self._offset = int(answer.get("next_offset", self._offset + len(answer.get("events", []))))
        for each in answer.get("progress", []):
            progress = progress_from(each)
            if self._progress.get(progress.key) != progress:
                self._progress[progress.key] = progress
                self._on_event(progress)
        self.finished = state[0] == JobState.FINISHED


def progress_from(value: Mapping[str, Any]) -> Progress:
    """Return the event that a stage's progress in an answer of the API describes."""
    names = ("table", "rows", "bytes", "bar", "done", "total")
    return Progress(
        value["stage"], description=value.get("description") or "", **{name: value.get(name) for name in names}
    )


def log_line(event: Mapping[str, Any]) -> LogLine:
    """Return the log line of an event of the API."""
    moment = datetime.fromisoformat(event["timestamp"]).timestamp()
    stream: StreamName = "stderr" if event["stream"] == "stderr" else "stdout"
    return LogLine(moment, stream, str(event["message"]), event.get("display") is True)


def id_query(request_id: RequestId | None) -> str:
    """Return the URL's query for a job, or an empty text without an id."""
    return "" if request_id is None else "?" + urllib.parse.urlencode({"request_id": request_id})
