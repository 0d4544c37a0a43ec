"""Kernels that are booted ahead, so that a job does not wait for a start.

Guarantees
----------
* A kernel is handed out once: alive, subscribed to, warm, and without an earlier job.
* The refill begins when a kernel is acquired, so that the next one warms up while the job runs. While there is another
  ready kernel the refill waits for the job: until `refill` is called after the job's answer, but for 50 ms at
  most.
* At most `size` kernels are ready or starting. A failing start is retried with a growing pause, never in a tight loop.
* One failed start fails no job: a waiting job fails when the next start fails as well.
* A job that finds no ready kernel waits for the one that is starting. A second start would only slow down the first on
  a small machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from gateway.core.errors import FailureCode, JobFailed
from gateway.local.kernel import JobKernel

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 10.0

#: How long a job waits for a kernel: longer than one start may take, so that the next one can still serve it.
ACQUIRE_SECONDS = 60.0

#: A boot takes a core for some 50 ms. On two cores a small job at the same time took 52 ms instead of 40 (measured).
YIELD_SECONDS = 0.05


@dataclass(slots=True)
class PoolCounters:
    """Counts of events in the pool since its start.

    Attributes
    ----------
    hits, misses : int
        Jobs that found a ready kernel, and jobs that had to wait for one.
    started, start_failures : int
        Starts that succeeded and that failed.
    discarded : int
        Ready kernels that were dead or too old.
    plain_starts : int
        Starts without the fork server.
    """

    hits: int = 0
    misses: int = 0
    started: int = 0
    start_failures: int = 0
    discarded: int = 0
    plain_starts: int = 0


class KernelPool:
    """Keeps `size` kernels ready.

    Parameters
    ----------
    start : callable
        Starts one kernel; raises `JobFailed`.
    size : int
        Kernels that are ready or starting at any time.
    max_age_seconds : float
        An older kernel is released and replaced: it would have an old environment and old time zone data.
    """

    def __init__(self, start: Callable[[], Awaitable[JobKernel]], size: int, max_age_seconds: float) -> None:
        self._start = start
        self._size = size
        self._max_age_seconds = max_age_seconds
        self._ready: deque[JobKernel] = deque()
        self._waiters: deque[asyncio.Future[JobKernel]] = deque()
        self._starting: set[asyncio.Task[None]] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._closed = False
        self._oldest_start: float | None = None
        self._age_timer: asyncio.TimerHandle | None = None
        self.counters = PoolCounters()
        self.last_failure: JobFailed | None = None

    @property
    def ready(self) -> int:
        """Number of kernels that can be acquired now."""
        return len(self._ready)

    @property
    def starting(self) -> int:
        """Number of kernels that are starting."""
        return len(self._starting)

    def refill(self) -> None:
        """Start as many kernels as are missing."""
        wanted = max(self._size, len(self._waiters))
        while not self._closed and len(self._ready) + len(self._starting) < wanted:
            task = asyncio.create_task(self._start_one())
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)

    def replace_dead(self) -> None:
        """Replace the ready kernels that have ended; called when another launcher has begun."""
        self._replace(lambda kernel: not kernel.alive)

    def replace_older(self, moment: float) -> None:
        """Replace the kernels that were started before a moment of the monotonic clock, also those that start now."""
        self._oldest_start = moment
        self._replace(self._is_outdated)

    async def acquire(self) -> JobKernel:
        """Return a ready kernel, or wait for one.

        Returns
        -------
        JobKernel
            Owned by the caller from now on.

        Raises
        ------
        JobFailed
            ``kernel_start_failed`` with the reason: no kernel could be started, or not in time.
        """
        kernel = self._pop_healthy()
        if kernel is not None:
            self.counters.hits += 1
            if self._ready:
                asyncio.get_running_loop().call_later(YIELD_SECONDS, self.refill)
            else:
                self.refill()
            return kernel
        self.counters.misses += 1
        turn: asyncio.Future[JobKernel] = asyncio.get_running_loop().create_future()
        self._waiters.append(turn)
        self.refill()
        try:
            async with asyncio.timeout(ACQUIRE_SECONDS):
                return await turn
        except asyncio.CancelledError:
            self._requeue(turn)
            raise
        except TimeoutError:
            self._requeue(turn)
            text = f"No kernel was ready within {ACQUIRE_SECONDS:g} s"
            raise JobFailed(FailureCode.KERNEL_START_FAILED, text) from None
        finally:
            with contextlib.suppress(ValueError):
                self._waiters.remove(turn)
            self.refill()

    async def aclose(self) -> None:
        """Release every kernel that is ready or starting; jobs that wait fail."""
        self._closed = True
        if self._age_timer is not None:
            self._age_timer.cancel()
        for turn in self._waiters:
            if not turn.done():
                turn.set_exception(JobFailed(FailureCode.SHUTTING_DOWN, "The gateway is shutting down"))
        for task in tuple(self._starting):
            task.cancel()
        if self._starting:
            await asyncio.wait(self._starting)
        await asyncio.gather(*(kernel.release() for kernel in self._ready))
        self._ready.clear()
        if self._ending:
            await asyncio.wait(self._ending)

    def _requeue(self, turn: asyncio.Future[JobKernel]) -> None:
        """Offer a kernel again that arrived just when its waiter gave up."""
        if turn.done() and not turn.cancelled() and turn.exception() is None:
            self._offer(turn.result())

    def _pop_healthy(self) -> JobKernel | None:
        while self._ready:
            kernel = self._ready.popleft()
            if kernel.alive:
                return kernel
            self._discard(kernel)
        return None

    def _replace(self, is_bad: Callable[[JobKernel], bool]) -> None:
        for kernel in [kernel for kernel in self._ready if is_bad(kernel)]:
            self._ready.remove(kernel)
            self._discard(kernel)
        self.refill()

    def _replace_old(self) -> None:
        self._age_timer = None
        self._replace(lambda kernel: kernel.age_seconds >= self._max_age_seconds)
        self._watch_age()

    def _watch_age(self) -> None:
        """Set the timer for the oldest ready kernel: if its age were seen by the next job, that job would wait."""
        if self._age_timer is None and self._ready and not self._closed:
            left_seconds = self._max_age_seconds - max(kernel.age_seconds for kernel in self._ready)
            self._age_timer = asyncio.get_running_loop().call_later(left_seconds, self._replace_old)

    def _is_outdated(self, kernel: JobKernel) -> bool:
        oldest = self._oldest_start
        return oldest is not None and kernel.age_seconds > time.monotonic() - oldest

    def _discard(self, kernel: JobKernel) -> None:
        self.counters.discarded += 1
        task = asyncio.create_task(kernel.release())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def _offer(self, kernel: JobKernel) -> None:
        if self._closed or not kernel.alive or self._is_outdated(kernel):
            self._discard(kernel)
            self.refill()
            return
        while self._waiters:
            turn = self._waiters.popleft()
            if not turn.done():
                turn.set_result(kernel)
                return
        self._ready.append(kernel)
        self._watch_age()

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
                    self._fail_one_waiter(failure)
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

    def _fail_one_waiter(self, failure: JobFailed) -> None:
        """Fail one waiting job, instead of letting it wait for a start that may never succeed."""
        while self._waiters:
            turn = self._waiters.popleft()
            if not turn.done():
                turn.set_exception(JobFailed(failure.code, failure.message))
                return
