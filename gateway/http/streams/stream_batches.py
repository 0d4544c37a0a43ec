"""The changes for the streams of ``GET /v1/stream``, encoded once for all streams at the same place."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from gateway.core.job import ALL_JOBS, Scope
from gateway.http.schemas.responses import ResponseModel
from gateway.http.schemas.stream import gateway_state, streamed_job
from gateway.http.streams.other_members import PACE_SECONDS
from gateway.jobs.feed import OtherJob

if TYPE_CHECKING:
    from gateway.jobs.feed import FeedJob
    from gateway.jobs.service import JobService

MANY_STREAMS = 50

#: Most bytes of jobs in an answer to another member. That member reads twice as much, and shows 5000 jobs.
MEMBER_BYTES = 8_000_000

#: Places in the feed whose jobs are encoded; most streams are at the same one.
KNOWN_PLACES = 32

NO_JOBS = b"[]"


def next_send(sent_at: float, streams: int) -> float:
    """Return the time at which a stream may send again.

    All streams share these times, so that an event is encoded once for all of them.

    Parameters
    ----------
    sent_at : float
        Time of its last event, by `time.monotonic`.
    streams : int
        Number of open streams.

    Returns
    -------
    float
        By `time.monotonic`; in the past if the last event is long ago.
    """
    pace_seconds = PACE_SECONDS * (1 + min(1.0, streams / MANY_STREAMS))
    return (sent_at // pace_seconds + 1) * pace_seconds


class StreamBatches:
    """Encodes jobs that have changed and the state of the gateway.

    Parameters
    ----------
    service : JobService
        Runs the jobs.
    missing_members : callable
        Returns the members of the cluster that do not answer, or None without a cluster.
    """

    def __init__(self, service: JobService, missing_members: Callable[[], list[str] | None]) -> None:
        self._service = service
        self._missing_members = missing_members
        self._member = service.peers.name if service.peers is not None else None
        self._jobs: dict[tuple[str, int, int, Scope, bool], tuple[str, bytes]] = {}
        self._state = b""
        self._encoded_at = 0.0

    def jobs(self, feed_id: str, number: int, scope: Scope, *, is_own: bool = False) -> tuple[str, bytes]:
        """Return the jobs that have changed since a place in the feed.

        Parameters
        ----------
        feed_id : str
            `JobFeed.id` at that place.
        number : int
            `JobFeed.number` at that place.
        scope : Scope
            The jobs that the caller may see.
        is_own : bool
            Whether jobs that other members keep are left out, and those beyond `MEMBER_BYTES`.

        Returns
        -------
        event : {'changes', 'snapshot'}
            A snapshot has all live jobs, because the changes since that place are not known any more.
        jobs : bytes
            A JSON array.
        """
        feed = self._service.feed
        place = feed_id, number, feed.number, ALL_JOBS if scope.sees_all else scope, is_own
        if place not in self._jobs:
            changed = feed.changed_since(number, is_own=is_own) if feed_id == feed.id else None
            event, jobs = ("snapshot", feed.live(is_own=is_own)) if changed is None else ("changes", changed)
            if len(self._jobs) >= KNOWN_PLACES:
                self._jobs.clear()
            seen = [self._job(job) for job in jobs if scope.includes(job.token_name)]
            if is_own and sum(map(len, seen)) > MEMBER_BYTES:
                event, seen = "snapshot", self._oldest(scope)
            self._jobs[place] = event, b"[%b]" % b",".join(seen)
        return self._jobs[place]

    def state(self) -> bytes:
        """Return the state of the gateway as a JSON object, at most `PACE_SECONDS` old."""
        now = time.monotonic()
        if now - self._encoded_at >= PACE_SECONDS:
            self._state, self._encoded_at = _encoded(gateway_state(self._service, self._missing_members())), now
        return self._state

    def _oldest(self, scope: Scope) -> list[bytes]:
        """Return the oldest live jobs of this member, up to `MEMBER_BYTES`."""
        seen, size_bytes = [], 0
        for job in self._service.feed.live(is_own=True):
            if scope.includes(job.token_name):
                seen.append(self._job(job))
                size_bytes += len(seen[-1])
                if size_bytes > MEMBER_BYTES:
                    return seen[:-1]
        return seen

    def _job(self, job: FeedJob) -> bytes:
        return job.body if isinstance(job, OtherJob) else _encoded(streamed_job(job, self._member))


def _encoded(model: ResponseModel) -> bytes:
    # a lone surrogate in a user's message must not end the stream
    return json.dumps(model.body(), ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace")
