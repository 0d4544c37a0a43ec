"""Objects that the handlers of one application share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gateway.core.settings import Settings
from gateway.http.access.auth import Guard
from gateway.http.base_handler.arrivals import Arrivals
from gateway.http.streams.other_members import OtherMembers

if TYPE_CHECKING:
    from gateway.http.streams.stream_batches import StreamBatches
    from gateway.jobs.refusal_log import RefusalLog
    from gateway.jobs.service import JobService
    from gateway.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Description:
    """The API description, encoded as it is sent."""

    openapi: bytes
    page: bytes


@dataclass(slots=True)
class Context:
    """The service behind the routes, and access control."""

    service: JobService
    settings: Settings
    metrics: Metrics
    guard: Guard
    description: Callable[[], Description]
    refusals: RefusalLog | None
    arrivals: Arrivals = field(default_factory=Arrivals)
    #: ETag and body of the last long response of ``/v1/logs``: many may poll the same log.
    long_log: tuple[str, bytes] = ("", b"")
    others: OtherMembers = field(init=False)
    #: Made for the first stream, by `gateway.http.handlers.stream`.
    batches: StreamBatches | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.others = OtherMembers(self.service.feed, self.service.peers)

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` to its end, also when the request it belongs to is over."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
