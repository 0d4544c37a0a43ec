"""A job's log as the objects that callers read.

===========  =======================================================
``timestamp``  when the line arrived, ISO 8601 in UTC, milliseconds
``stream``     ``stdout`` or ``stderr``
``message``    the line without its newline
===========  =======================================================

The events object is one such JSON object per line. Every line must be valid JSON: Metabase fails a run over
one that is not.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TypedDict

import orjson

from gateway.jobs.events import EventLog, LogLine, StreamName


class LogEvent(TypedDict):
    """One line of the log, as in the events object and in the answer of ``/v1/logs``."""

    timestamp: str
    stream: StreamName
    message: str


def log_event(line: LogLine) -> LogEvent:
    """Return the public form of a line."""
    moment = datetime.fromtimestamp(line.timestamp, UTC).isoformat(timespec="milliseconds")
    return {"timestamp": moment.replace("+00:00", "Z"), "stream": line.stream, "message": _text(line.message)}


def events_object(log: EventLog) -> bytes:
    """Return the log as JSON lines."""
    return b"".join(orjson.dumps(log_event(line), option=orjson.OPT_APPEND_NEWLINE) for line in log.lines())


def stream_object(log: EventLog, stream: StreamName) -> bytes:
    """Return one of the two streams as plain text: the form that the first API asks for."""
    return "".join(f"{_text(line.message)}\n" for line in log.lines() if line.stream == stream).encode()


def _text(message: str) -> str:
    # a lone surrogate cannot be written as UTF-8; one bad character must not cost the whole log
    return message.encode("utf-8", "replace").decode("utf-8")
