"""The client's view of a job's log: read from where it was read last, and passed on as events."""

from __future__ import annotations

import contextlib
import time
import urllib.parse
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from gateway.client_http import GatewayHttp, GatewayRefused, GatewayUnreachable, TransformError
from gateway.jobs.events import Event, LogLine, Progress, StateChanged
from gateway.jobs.model import JobState, RequestId

LOST_SECONDS = 30.0
"""How long the log may stay unreachable before a waiting call is given up: its own connection may hang silently."""

_STATES = frozenset(state.value for state in JobState)

OnEvent = Callable[[Event], None]


class Follower:
    """Reads a job's log from where it read last, and passes on what is new.

    Attributes
    ----------
    lines : list of LogLine
        Everything read so far.
    finished : bool
        Whether the job is over.
    """

    def __init__(self, http: GatewayHttp, request_id: RequestId, on_event: OnEvent) -> None:
        self._http = http
        self._request_id = request_id
        self._on_event = on_event
        self._offset = 0
        self._state: tuple[str, str] = ("", "")
        self._progress: dict[tuple[str, str | None], Progress] = {}
        self._lost_since: float | None = None
        self.lines: list[LogLine] = []
        self.finished = False

    def poll(self) -> None:
        """Ask once.

        Raises
        ------
        GatewayUnreachable
            Nobody has answered for a while.
        """
        try:
            query = f"{id_query(self._request_id)}&offset={self._offset}"
            answer = self._http.get_json(f"/v1/logs{query}")
        except GatewayRefused as refusal:
            self._lost_since = None
            if refusal.status != 404:  # the job has not come through yet, or was forgotten
                raise
            self.finished = bool(self.lines or self._state[0])
            return
        except GatewayUnreachable:
            now = time.monotonic()
            self._lost_since = now if self._lost_since is None else self._lost_since
            if now - self._lost_since > LOST_SECONDS:
                raise
            return
        self._lost_since = None
        self._take(answer)

    def catch_up(self) -> None:
        """Take what came since the last look; a log that cannot be had is no reason to fail a job that is done."""
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
            progress = Progress(each["stage"], each.get("table"), each.get("rows"), each.get("bytes"))
            if self._progress.get((progress.stage, progress.table)) != progress:
                self._progress[progress.stage, progress.table] = progress
                self._on_event(progress)
        self.finished = state[0] == JobState.FINISHED


def log_line(event: Mapping[str, Any]) -> LogLine:
    """Return the line that an event of the API stands for."""
    moment = datetime.fromisoformat(event["timestamp"]).timestamp()
    return LogLine(moment, "stderr" if event["stream"] == "stderr" else "stdout", str(event["message"]))


def id_query(request_id: RequestId | None) -> str:
    """Return the query that names a job, empty for none."""
    return "" if request_id is None else "?" + urllib.parse.urlencode({"request_id": request_id})
