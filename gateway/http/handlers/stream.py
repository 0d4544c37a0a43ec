"""``GET /v1/stream``: the states of all jobs and the log of one job as they change (Server-Sent Events).

In a cluster these are the jobs of all members. A member that asks for another one's gets one answer, not a stream.

A client that reads slowly costs no memory: an event has the state of the moment at which it is sent, and the next one
is made when the client has taken it.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from urllib.parse import quote

from tornado.iostream import StreamClosedError

from gateway.core.errors import Forbidden, MemberDown, NotFound, TooManyConnections
from gateway.core.events import JobLog
from gateway.http.access.auth import NO_TOKEN
from gateway.http.access.peer_connection import PeerConnection, for_peers
from gateway.http.access.tokens import TokenKind
from gateway.http.base_handler.elsewhere import peer_request
from gateway.http.base_handler.handler import BaseHandler
from gateway.http.streams.other_members import WAIT_SECONDS, OtherLog
from gateway.http.streams.stream_batches import NO_JOBS, StreamBatches, next_send
from gateway.jobs.feed import Watch

#: Streams that may be open; each holds a connection.
MAX_STREAMS = 100

#: Interval at which the state is read for changes that no job announces, for example ready kernels.
LOOK_SECONDS = 1.0

#: Proxies close connections that are silent for long, often for a minute.
SILENCE_SECONDS = 15.0

_Log = JobLog | OtherLog

_EVENT_ID = re.compile(r"([0-9a-f]{12})-([0-9]{1,15})-([0-9]{1,15})")


@dataclass(slots=True)
class _Place:
    """How much of the stream a client has: the feed and its number, lines of the log, state of the gateway."""

    feed_id: str = ""
    number: int = -1
    line: int = 0
    state: bytes = b""


class StreamHandler(BaseHandler):
    """Streams the jobs in the caller's scope until the client disconnects or its token is removed."""

    read_kind = TokenKind.READ
    checks_query = True
    _watch: Watch | None = None
    _sent_at = 0.0

    @for_peers
    async def get(self) -> None:
        if isinstance(self.request.connection, PeerConnection):
            await self._answer_member()
            return
        self._refuse_web_pages()
        job_id, place = self.get_query_argument("job", None), self._place()
        log = await self._log_of(job_id, place.line) if job_id is not None else None
        if self.client_disconnected:
            return
        service = self.context.service
        if service.feed.watchers >= MAX_STREAMS:  # only now: others may have begun while another member was asked
            raise TooManyConnections(f"{MAX_STREAMS} streams are open; close a page that shows this gateway")
        self.set_header("Content-Type", "text/event-stream; charset=utf-8")
        self.set_header("X-Accel-Buffering", "no")  # nginx would collect what is to be shown at once
        following: asyncio.Task[None] | None = None
        with service.feed.watch(job_id) as self._watch, self.context.others.watched():
            if isinstance(log, OtherLog):
                following = asyncio.create_task(log.follow(self._watch.wake), name=f"log {job_id}")
            try:
                await self._stream(self._watch, place, log)
            finally:
                if following is not None:
                    following.cancel()

    async def _log_of(self, job_id: str, line: int) -> _Log:
        """Return the log of a job, whichever member keeps it."""
        peers = self.context.service.peers
        owner = await peers.owner_of_job(job_id) if peers is not None else None
        if peers is None or owner is None:
            return (await self.context.service.get(job_id, self.scope)).log
        request = replace(peer_request(self, peers, self.token), headers={})
        uri = f"/v1/jobs/{quote(job_id, safe='')}/logs"
        log = OtherLog(line, lambda first: peers.ask(owner, replace(request, uri=f"{uri}?offset={first}")))
        with suppress(MemberDown):  # its lines follow when it answers again
            if not await log.look():
                raise NotFound(f"there is no job with job_id {job_id[:100]!r}, or it was forgotten")
        return log

    async def _answer_member(self) -> None:
        """Respond with the own jobs that have changed since a place, once there are any, or after a time."""
        feed, batches, place = self.context.service.feed, self._batches(), self._place()
        deadline = time.monotonic() + WAIT_SECONDS
        with feed.watch(is_of_member=True) as self._watch:
            while True:
                event, jobs = batches.jobs(place.feed_id, place.number, self.scope, is_own=True)
                left_seconds = deadline - time.monotonic()
                is_over = left_seconds <= 0 or self.client_disconnected or feed.is_closed
                if event == "snapshot" or jobs != NO_JOBS or is_over:
                    break
                await self._watch.wait(left_seconds)
        if not self.client_disconnected:
            head = f'{{"id": "{feed.id}-{feed.number}-0", "event": "{event}", "jobs": '
            self.finish(b"%b%b}" % (head.encode(), jobs))

    def _batches(self) -> StreamBatches:
        """Return the batches that all streams of this application share."""
        context = self.context
        if context.batches is None:
            context.batches = StreamBatches(context.service, context.others.missing)
        return context.batches

    def handle_disconnect(self) -> None:
        # the usual end of a stream, not a fault of the client
        if not self._finished and not self.client_disconnected:
            self.client_disconnected = True
            self._auto_finish = False
            self.application.log_request(self)
        if self._watch is not None:
            self._watch.wake()

    async def _stream(self, watch: Watch, place: _Place, log: _Log | None) -> None:
        feed, is_last = self.context.service.feed, False
        # SIGHUP may have removed the token
        while not (self.client_disconnected or is_last) and self.context.guard.find(self.request) == self.token:
            is_last = feed.is_closed
            news = self._jobs(place) + self._lines(place, log)
            if not news and time.monotonic() - self._sent_at >= SILENCE_SECONDS:
                news = b":\n\n"
            if news:
                await self._send(news)
            if not is_last and await watch.wait(LOOK_SECONDS):
                await asyncio.sleep(next_send(self._sent_at, feed.watchers) - time.monotonic())

    async def _send(self, news: bytes) -> None:
        self._sent_at = time.monotonic()
        try:
            self.write(news)
            await self.flush()
        except StreamClosedError:  # also of a client that reads nothing: it can continue with ``Last-Event-ID``
            self.handle_disconnect()

    def _jobs(self, place: _Place) -> bytes:
        """Return the event about jobs and gateway that a client lacks, if it lacks any."""
        feed, batches = self.context.service.feed, self._batches()
        has_jobs = (place.feed_id, place.number) != (feed.id, feed.number)
        state = batches.state()
        if not has_jobs and state == place.state:
            return b""
        event, jobs = batches.jobs(place.feed_id, place.number, self.scope)
        gateway = b'"gateway": %b, ' % state if state != place.state or event == "snapshot" else b""
        place.feed_id, place.number, place.state = feed.id, feed.number, state
        if event == "changes" and not gateway and jobs == NO_JOBS:
            return b""  # only jobs of other names have changed
        return _event(event, place, b'{%b"jobs": %b}' % (gateway, jobs))

    def _lines(self, place: _Place, log: _Log | None) -> bytes:
        """Return the event with the lines that a client lacks, if it lacks any."""
        if log is None:
            return b""
        first = place.line
        lines, place.line = log.json_lines(first)
        if not lines:
            return b""
        job_id = json.dumps(self.get_query_argument("job"))
        head = f'{{"job_id": {job_id}, "offset": {first}, "next_offset": {place.line}, "events": ['
        return _event("log", place, head.encode() + b",".join(lines) + b"]}")

    def _place(self) -> _Place:
        """Return the place that ``Last-Event-ID`` names; the beginning if it is of another process."""
        given = _EVENT_ID.fullmatch(self.request.headers.get("Last-Event-ID", ""))
        if given is None or given[1] != self.context.service.feed.id:
            return _Place()
        return _Place(given[1], int(given[2]), int(given[3]))

    def _refuse_web_pages(self) -> None:
        # A foreign page cannot read the answer to a GET, so the guard lets it pass. But it would use up a stream.
        if self.token is not NO_TOKEN:
            return
        if self.request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            raise Forbidden("without AUTH_TOKEN requests from other web pages are not accepted")


def _event(name: str, place: _Place, data: bytes) -> bytes:
    return f"event: {name}\nid: {place.feed_id}-{place.number}-{place.line}\n".encode() + b"data: %b\n\n" % data
