"""What the handlers of one application share."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gateway.http.guard import Guard
from gateway.http.openapi import Description
from gateway.settings import Settings

if TYPE_CHECKING:
    from gateway.jobs.service import JobService
    from gateway.metrics import Metrics


@dataclass(slots=True)
class Context:
    """The service behind the routes, and who may use them."""

    service: JobService
    settings: Settings
    metrics: Metrics
    guard: Guard
    description: Description
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        """Let `work` go on after the request it belongs to."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
