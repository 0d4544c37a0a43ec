"""The slots of this machine, and when a job's slot is free for the next job.

A slot is released when nothing of its job lives. The job's answer does not wait for that: it is known as soon as
nothing of the job can run any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from gateway.core.tasks import set_within
from gateway.jobs.runner import SlotCount

#: How long the termination of a job's processes waits for the job's answer while no job waits for the slot. Terminating
#: a kernel takes a core for 10 ms, and a small answer some 5 (measured on two cores, of which the store needs one).
ANSWER_FIRST_SECONDS = 0.025


class Slots:
    """Counts slots and frees them.

    Parameters
    ----------
    total : int
        Jobs that may run at a time.
    is_wanted : callable
        Returns whether a job waits for a slot.
    """

    def __init__(self, total: int, is_wanted: Callable[[], bool]) -> None:
        self._total = total
        self._is_wanted = is_wanted
        self._busy = 0
        self._ending = 0
        self._on_free: Callable[[], None] = lambda: None
        self._tasks: set[asyncio.Task[None]] = set()

    def on_free(self, callback: Callable[[], None]) -> None:
        """Set the function that is called whenever a slot has become free.

        Parameters
        ----------
        callback : callable
            Never blocks and never raises.
        """
        self._on_free = callback

    def count(self) -> SlotCount:
        """Return the state of this moment.

        Returns
        -------
        SlotCount
            All slots, busy and ending ones.
        """
        return SlotCount(self._total, self._busy, self._ending)

    def take(self) -> bool:
        """Take a slot if one is free.

        Returns
        -------
        bool
            Whether one was.
        """
        if self._busy >= self._total:
            return False
        self._busy += 1
        return True

    def leave(self, answered: asyncio.Event, terminate: Callable[[], Awaitable[None]]) -> None:
        """Terminate a job's processes and free its slot; returns at once.

        Parameters
        ----------
        answered : Event
            Set when the answer of the job is known.
        terminate : callable
            Returns when nothing of the job lives. Never raises.
        """
        self._ending += 1  # from this very moment on, because a caller that has its answer may count on the slot
        task = asyncio.create_task(self._leave(answered, terminate))
        self._tasks.add(task)
        task.add_done_callback(self._left)

    async def aclose(self) -> None:
        """Stop waiting for the processes of jobs."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _leave(self, answered: asyncio.Event, terminate: Callable[[], Awaitable[None]]) -> None:
        if not self._is_wanted():
            await set_within(answered, ANSWER_FIRST_SECONDS)
        await terminate()

    def _left(self, task: asyncio.Task[None]) -> None:
        # by a callback: a task that is cancelled before its first step runs none of its own code
        self._tasks.discard(task)
        self._ending -= 1
        self._busy -= 1
        self._on_free()
