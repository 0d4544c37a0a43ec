"""How a job is told to end before its time: one signal for cancel and shutdown, wherever the job stands."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from gateway.errors import FAILURES, FailureCode, JobFailed

T = TypeVar("T")


class StopSignal:
    """Set once, by a cancel or by the gateway's own shutdown; everything that waits for a job watches it."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.cause: FailureCode | None = None

    def request(self, cause: FailureCode) -> None:
        """Ask the job to end. The first cause stands; asking again is harmless."""
        if self.cause is None:
            self.cause = cause
            self._event.set()

    async def wait(self) -> None:
        """Return when the job was asked to end."""
        await self._event.wait()

    def failure(self) -> JobFailed:
        """Return the failure that the stop amounts to."""
        cause = self.cause or FailureCode.CANCELLED
        text = {
            FailureCode.CANCELLED: "The job was cancelled",
            FailureCode.SHUTTING_DOWN: "The gateway is shutting down and ended the job",
        }.get(cause, FAILURES[cause].meaning)
        return JobFailed(cause, text)

    async def guard(self, work: Awaitable[T]) -> T:
        """Await `work`, or abandon it (cancelled and awaited) as soon as the job is asked to end.

        Raises
        ------
        JobFailed
            When the stop came first.
        """
        task = asyncio.ensure_future(work)
        stop = asyncio.ensure_future(self._event.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise self.failure()
        finally:
            stop.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
