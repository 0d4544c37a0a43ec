"""A job's log as the objects that are uploaded and kept.

The events object is one JSON object of `gateway.core.log_json` per line. Every line must be valid JSON: Metabase fails
a run over one that is not.
"""

from __future__ import annotations

import asyncio

import orjson

from gateway.core.events import JobLog, LogLine, StreamName
from gateway.core.log_json import encode_line, without_marks


def line_object(line: LogLine) -> bytes:
    """Return one line as JSON with its newline.

    Parameters
    ----------
    line : LogLine
        As the job wrote it.

    Returns
    -------
    bytes
    """
    return encode_line(line.timestamp, line.stream, line.message) + b"\n"


def events_object(log: JobLog) -> bytes:
    """Return the log as JSON lines.

    Parameters
    ----------
    log : JobLog
        Of one job.

    Returns
    -------
    bytes
    """
    lines = log.json_lines()[0]
    lines.append(b"")
    return without_marks(b"\n".join(lines))


async def stream_object(log: JobLog, stream: StreamName) -> bytes:
    """Return one of the two streams as plain text, as the legacy API delivers it."""
    return await asyncio.to_thread(_text, log.json_lines()[0], stream)  # decoding a capped log takes 25 ms


def _text(lines: list[bytes], stream: StreamName) -> bytes:
    found = map(orjson.loads, lines)
    return "".join(f"{line['message']}\n" for line in found if line["stream"] == stream).encode()
