"""End a job before its time: one signal for cancel and shutdown, in every stage of the job."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from gateway.core.errors import FAILURES, FailureCode, JobFailed
from gateway.core.tasks import first_of, started

T = TypeVar("T")


class StopSignal:
    """Set once, by a cancel or by the gateway's own shutdown; everything that waits for a job watches it.

    Attributes
    ----------
    cause : FailureCode or None
        Why the job must end; None if it need not.
    hold_seconds : float
        How long the caller who ends the job wants its kernel to be held; 0 for no hold.
    """

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._is_decided = False
        self.cause: FailureCode | None = None
        self.hold_seconds = 0.0

    def request(self, cause: FailureCode, hold_seconds: float = 0.0) -> bool:
        """Ask the job to end. The first cause holds, but a cancel replaces a stop, after which the job might run again.

        Parameters
        ----------
        cause : FailureCode
            ``cancelled`` or ``shutting_down``.
        hold_seconds : float
            How long to hold the kernel afterwards.

        Returns
        -------
        bool
            Whether this can still end the job; False if its verdict is known already.
        """
        is_cancel = cause is FailureCode.CANCELLED
        may_set = self.cause is None or (is_cancel and self.cause is FailureCode.SHUTTING_DOWN)
        if may_set and not (is_cancel and self._is_decided):
            self.cause, self.hold_seconds = cause, hold_seconds
            self._event.set()
        return not self._is_decided

    def decide(self) -> None:
        """Record that the verdict is known: then a shutdown only ends the wait for the delivery, and a cancel fails."""
        self._is_decided = True

    async def wait(self) -> None:
        """Return when the job is asked to end."""
        await self._event.wait()

    def failure(self) -> JobFailed:
        """Return the failure with which the job ends.

        Returns
        -------
        JobFailed
            With the cause, or as cancelled if there is none yet.
        """
        cause = self.cause or FailureCode.CANCELLED
        text = {
            FailureCode.CANCELLED: "The job was cancelled",
            FailureCode.SHUTTING_DOWN: "The gateway is shutting down and ended the job",
        }.get(cause, FAILURES[cause].meaning)
        return JobFailed(cause, text)

    async def guard(self, work: Awaitable[T]) -> T:
        """Await `work`, or abandon it (cancelled and awaited) as soon as the job is asked to end.

        Parameters
        ----------
        work : awaitable
            A step of the job.

        Returns
        -------
        object
            The return value of `work`.

        Raises
        ------
        JobFailed
            The request to end came first.
        """
        async with started(work, self._event.wait()) as (step, stop):
            await first_of(step, stop)
            if not step.done():
                raise self.failure()
            result: T = step.result()
            return result
