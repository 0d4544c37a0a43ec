"""Read the gateway's stream of jobs (Server-Sent Events), also across lost connections."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from gateway.client.errors import GatewayUnreachable
from gateway.client.transport import GatewayHttp

#: Time without any response after which a call that waits is aborted: its own connection may hang silently.
LOST_SECONDS = 30.0

RETRY_SECONDS = 0.5


class StreamEvent(NamedTuple):
    """One event: ``snapshot``, ``changes`` or ``log``, with its JSON object."""

    name: str
    data: dict[str, Any]


def read_stream(http: GatewayHttp, on_lost: Callable[[GatewayUnreachable], None]) -> Iterator[StreamEvent]:
    """Yield events; after a lost connection the stream continues where it was.

    Parameters
    ----------
    http : GatewayHttp
        The gateway.
    on_lost : callable
        Called with the reason each time that the gateway stops responding.

    Yields
    ------
    StreamEvent
        The first one is a ``snapshot``, and also the first one of a gateway that was restarted.

    Raises
    ------
    GatewayRefused, GatewayUnreachable
        The gateway refuses the stream, did not answer at all, or has not for `LOST_SECONDS`.
    """
    last_id, lost_since = "", time.monotonic() - LOST_SECONDS
    is_lost = False
    while True:
        try:
            for fields in _messages(http.lines("/v1/stream", {"Last-Event-ID": last_id} if last_id else {})):
                last_id, lost_since, is_lost = fields["id"], time.monotonic(), False
                yield StreamEvent(fields["event"], json.loads(fields["data"]))
                lost_since = time.monotonic()
        except GatewayUnreachable as error:
            if time.monotonic() - lost_since >= LOST_SECONDS:
                raise
            if not is_lost:
                on_lost(error)
            is_lost = True
        time.sleep(RETRY_SECONDS)


def _messages(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    fields: dict[str, str] = {}
    for line in lines:
        name, separator, value = line.partition(": ")
        if separator and name:
            fields[name] = value
        elif not line and fields:
            yield fields
            fields = {}
