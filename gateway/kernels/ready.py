"""Kernels booted ahead, so that a job pays for a claim and not for a start.

Guarantees
----------
* A kernel is handed out once, alive, subscribed to and warm; it never saw a job before.
* The refill begins at the claim, so that the next kernel warms up while the job runs. While there is another ready
kernel it lets the job go first: until `fill` is called because the job is answered, but for 50 ms at most.
* At most `size` kernels are ready or on their way, and a failing start is retried with a growing pause, never in a
tight loop.
* One failed start is no job's failure: whoever waits is told when the next one fails as well.
* A job that finds no ready kernel waits for the one on its way instead of starting another: a second start would
only slow
  the first on a small machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from gateway.errors import FailureCode, JobFailed
from gateway.kernels.kernel import JobKernel

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 10.0

CLAIM_SECONDS = 60.0
"""How long a job waits for a kernel: longer than one start may take, so that the next one can still serve it."""

YIELD_SECONDS = 0.05
"""A boot takes a core for some 50 ms. On two cores a small job beside it took 52 ms instead of 40 (measured)."""


@dataclass(slots=True)
class ReadyCounters:
    """How often a claim found a kernel ready, had to wait for one, or found a dead or old one."""

    hits: int = 0
    misses: int = 0
    started: int = 0
    start_failures: int = 0
    discarded: int = 0
    plain_starts: int = 0


class ReadyKernels:
    """Keeps `size` kernels ready.

    Parameters
    ----------
    start : callable
        Starts one kernel; raises `JobFailed`.
    size : int
        Kernels ready or on their way at any time.
    max_age_seconds : float
        An older one is ended and replaced: it would carry an old environment and old time zone data.
    """

    def __init__(self, start: Callable[[], Awaitable[JobKernel]], size: int, max_age_seconds: float) -> None:
        self._start = start
        self._size = size
        self._max_age_seconds = max_age_seconds
        self._ready: deque[JobKernel] = deque()
        self._claims: deque[asyncio.Future[JobKernel]] = deque()
        self._starting: set[asyncio.Task[None]] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._closed = False
        self.counters = ReadyCounters()
        self.last_failure: JobFailed | None = None

    @property
    def ready(self) -> int:
        """Kernels that could be claimed now."""
        return len(self._ready)

    @property
    def starting(self) -> int:
        """Kernels on their way."""
        return len(self._starting)

    def fill(self) -> None:
        """Start as many kernels as are missing."""
        wanted = max(self._size, len(self._claims))
        while not self._closed and len(self._ready) + len(self._starting) < wanted:
            task = asyncio.create_task(self._start_one())
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)

    async def claim(self) -> JobKernel:
        """Hand out a kernel; the caller owns it from now on.

        Raises
        ------
        JobFailed
            When none could be started, or not in time; ``kernel_start_failed`` with the reason.
        """
        kernel = self._take_healthy()
        if kernel is not None:
            self.counters.hits += 1
            if self._ready:
                asyncio.get_running_loop().call_later(YIELD_SECONDS, self.fill)
            else:
                self.fill()
            return kernel
        self.counters.misses += 1
        turn: asyncio.Future[JobKernel] = asyncio.get_running_loop().create_future()
        self._claims.append(turn)
        self.fill()
        try:
            async with asyncio.timeout(CLAIM_SECONDS):
                return await turn
        except asyncio.CancelledError:
            self._take_back(turn)
            raise
        except TimeoutError:
            self._take_back(turn)
            text = f"No kernel was ready within {CLAIM_SECONDS:g} s"
            raise JobFailed(FailureCode.KERNEL_START_FAILED, text) from None
        finally:
            with contextlib.suppress(ValueError):
                self._claims.remove(turn)
            self.fill()

    async def aclose(self) -> None:
        """End every kernel that is ready or on its way."""
        self._closed = True
        for turn in self._claims:
            if not turn.done():
                turn.set_exception(JobFailed(FailureCode.SHUTTING_DOWN, "The gateway is shutting down"))
        for task in tuple(self._starting):
            task.cancel()
        if self._starting:
            await asyncio.wait(self._starting)
        await asyncio.gather(*(kernel.end() for kernel in self._ready))
        self._ready.clear()
        if self._ending:
            await asyncio.wait(self._ending)

    def _take_back(self, turn: asyncio.Future[JobKernel]) -> None:
        """Offer the kernel again that came in the moment in which its claim was given up."""
        if turn.done() and not turn.cancelled() and turn.exception() is None:
            self._offer(turn.result())

    def _take_healthy(self) -> JobKernel | None:
        while self._ready:
            kernel = self._ready.popleft()
            if kernel.alive and kernel.age_seconds <= self._max_age_seconds:
                return kernel
            self._discard(kernel)
        return None

    def _discard(self, kernel: JobKernel) -> None:
        self.counters.discarded += 1
        task = asyncio.create_task(kernel.end())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def _offer(self, kernel: JobKernel) -> None:
        if self._closed:
            self._discard(kernel)
            return
        while self._claims:
            turn = self._claims.popleft()
            if not turn.done():
                turn.set_result(kernel)
                return
        self._ready.append(kernel)

    async def _start_one(self) -> None:
        own_task = asyncio.current_task()
        pause = FIRST_PAUSE_SECONDS
        has_failed = False
        while not self._closed:
            try:
                kernel = await self._start()
            except JobFailed as failure:
                self.counters.start_failures += 1
                self.last_failure = failure
                log.warning("a kernel did not start: %s", failure.message)
                if has_failed:
                    self._refuse_claims(failure)
                has_failed = True
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
                continue
            self._starting.discard(own_task)
            self.counters.started += 1
            self.counters.plain_starts += kernel.started_by == "plain"
            self.last_failure = None
            self._offer(kernel)
            return

    def _refuse_claims(self, failure: JobFailed) -> None:
        """Tell one waiting job, instead of letting it wait for a start that may never succeed."""
        while self._claims:
            turn = self._claims.popleft()
            if not turn.done():
                turn.set_exception(JobFailed(failure.code, failure.message))
                return
