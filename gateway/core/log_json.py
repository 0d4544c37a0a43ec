"""A line of a job's log as the JSON object that callers read.

===========  ============================================================================================
``timestamp``  when the line arrived, ISO 8601 in UTC, milliseconds
``stream``     ``stdout`` or ``stderr``
``message``    the line without its newline
``display``    true for the text of something that is kept as an image or a table as well; else left out
===========  ============================================================================================

A line is encoded once, when it comes, because its object is needed again and again: for its size, at each poll and for
the upload.
"""

from __future__ import annotations

import functools
from datetime import UTC, datetime
from typing import Any

import orjson

#: The end of a line that is the text of a display.
_DISPLAY = b',"display":true}'


def encode_line(timestamp: float, stream: str, message: str, *, display: bool = False) -> bytes:
    """Return the JSON object of a line.

    Parameters
    ----------
    timestamp : float
        Seconds since the epoch.
    stream : {'stdout', 'stderr'}
        Stream of the line.
    message : str
        Without a newline.
    display : bool
        Whether it is the text of a display.

    Returns
    -------
    bytes
        One JSON object without line breaks.
    """
    try:
        text = orjson.dumps(message)
    except TypeError:  # a lone surrogate cannot be written as UTF-8; one bad character must not lose the whole log
        text = orjson.dumps(message.encode("utf-8", "replace").decode("utf-8"))
    return b"%b%b%b" % (_opening(timestamp, stream), text, _DISPLAY if display else b"}")


def without_marks(lines: bytes) -> bytes:
    """Return lines with only the three members of Metabase's contract.

    Parameters
    ----------
    lines : bytes
        As `encode_line` returned them, each with a newline.
    """
    return lines.replace(_DISPLAY + b"\n", b"}\n")  # no message has a bare quote


def decode_line(line: bytes) -> tuple[float, Any, str, bool]:
    """Return the values that `encode_line` encoded.

    Parameters
    ----------
    line : bytes
        As `encode_line` returned it.

    Returns
    -------
    timestamp : float
        Seconds since the epoch, in whole milliseconds.
    stream : {'stdout', 'stderr'}
        Stream of the line.
    message : str
        Without a newline.
    display : bool
        Whether it is the text of a display.
    """
    found = orjson.loads(line)
    moment = datetime.fromisoformat(found["timestamp"]).timestamp()
    return moment, found["stream"], found["message"], found.get("display", False)


@functools.lru_cache(maxsize=8)
def _opening(timestamp: float, stream: str) -> bytes:
    """Return the object up to its message. All lines of one read have the same time, so this is done once for them."""
    moment = datetime.fromtimestamp(timestamp, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return f'{{"timestamp":"{moment}","stream":"{stream}","message":'.encode()
