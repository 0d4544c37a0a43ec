"""The order in which jobs get slots: first come, first served, for as long as the queue timeout allows."""

from __future__ import annotations

import asyncio
from collections import deque

from gateway.core.errors import FailureCode, JobFailed
from gateway.core.tasks import set_within
from gateway.jobs.runner import JobRun
from gateway.jobs.store import JobRecord


class JobQueue:
    """Jobs that wait for a slot of a runner.

    Parameters
    ----------
    timeout_seconds : float
        How long a job may wait.
    """

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._waiting: deque[tuple[JobRecord, JobRun, asyncio.Future[None]]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    async def wait_for_slot(self, record: JobRecord, run: JobRun, *, is_again: bool = False) -> None:
        """Return when `run` has a slot. If the caller is cancelled, it has none.

        Parameters
        ----------
        record : JobRecord
            Gets its ``started_at``.
        run : JobRun
            Takes the slot.
        is_again : bool
            Whether the job had a slot before, which it lost by no fault of its own; it is then the first to get one.

        Raises
        ------
        JobFailed
            ``queue_timeout``.
        """
        if (is_again or not self._waiting) and self._start(record, run):
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place = (record, run, turn)
        if is_again:
            self._waiting.appendleft(place)
        else:
            self._waiting.append(place)
        self.advance()  # a runner of several machines looks for a slot once it is asked
        has_slot = False
        try:
            await asyncio.wait({turn}, timeout=self._timeout_seconds)
            has_slot = turn.done()
        finally:
            if not has_slot and turn.done():  # the turn came together with a cancel: pass it on, or the slot is lost
                record.started_at = None
                run.leave_slot()
            elif not has_slot:
                self._waiting.remove(place)
        if not has_slot:
            text = f"The job waited longer than {self._timeout_seconds:g} s for a free slot (QUEUE_TIMEOUT)"
            raise JobFailed(FailureCode.QUEUE_TIMEOUT, text)

    def advance(self) -> None:
        """Give free slots to the jobs that have waited longest; called when a slot has become free.

        A job goes on waiting where another place may still have a slot for one behind it: hosts of a cluster take jobs
        in order, but not those whose files are on one machine.
        """
        for place in tuple(self._waiting):
            record, run, turn = place
            if not turn.done() and self._start(record, run):
                self._waiting.remove(place)
                turn.set_result(None)

    def _start(self, record: JobRecord, run: JobRun) -> bool:
        """Take a slot, and count the job as running at once: its task, which would say so, continues later."""
        if not run.take_slot():
            return False
        record.start()
        return True


class Submissions:
    """Counts requests that are being accepted: a stop waits for them, so that their callers get an answer as well."""

    def __init__(self) -> None:
        self._count = 0
        self._none = asyncio.Event()

    def __enter__(self) -> None:
        self._count += 1
        self._none.clear()

    def __exit__(self, *error: object) -> None:
        self._count -= 1
        if not self._count:
            self._none.set()

    async def over(self, seconds: float) -> None:
        """Return when there is none, or after a time."""
        if self._count:
            await set_within(self._none, seconds)
