"""The changes of all jobs, in order, for watchers. Without a watcher it does nothing."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from gateway.core.events import Event, Finished, LogLine
from gateway.core.tasks import set_within
from gateway.jobs.store import HistoryEntry, JobRecord

#: Changes that a watcher may miss, by a lost connection, before it must begin again with all live jobs.
KEPT_CHANGES = 2000

#: Finished jobs that are kept for such a watcher, without their logs.
KEPT_FINISHED = 500

#: Live jobs of other members; more of them are not shown.
MOST_OTHERS = 5000

#: How long jobs are followed after the last watcher left: a watcher that lost its connection comes back soon.
LINGER_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class OtherJob:
    """A job that another member of the cluster keeps.

    Attributes
    ----------
    job_id : str
    token_name : str or None
        Name of its caller's token.
    member : str
    is_live : bool
        Whether it is not finished.
    body : bytes
        The job as it is sent.
    """

    job_id: str
    token_name: str | None
    member: str
    is_live: bool
    body: bytes


#: Live jobs as records, finished ones as entries, and those of other members.
FeedJob = JobRecord | HistoryEntry | OtherJob


class Watch:
    """Wakes one watcher.

    Attributes
    ----------
    is_of_member : bool
        Whether another member asked, and not a client.
    """

    def __init__(self, *, is_of_member: bool) -> None:
        self.is_of_member = is_of_member
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Make `wait` return."""
        self._woken.set()

    async def wait(self, seconds: float) -> bool:
        """Return when something has changed, or after a time.

        Parameters
        ----------
        seconds : float
            The longest wait.

        Returns
        -------
        bool
            Whether something has changed.
        """
        woken = await set_within(self._woken, seconds)
        self._woken.clear()
        return woken


class JobFeed:
    """Numbers the changes of jobs, so that a watcher which comes back gets the changes that it has missed.

    A watcher gets the present state of changed jobs, never a queue of events. So a slow watcher costs no memory, and
    many changes of one job between two looks are one.

    Parameters
    ----------
    live : callable
        Returns the accepted jobs that are not over.

    Attributes
    ----------
    id : str
        Changes with the process, and when jobs were not followed for a time; numbers count within one id.
    number : int
        Number of the last change.
    is_closed : bool
        Whether there are no more changes.
    """

    def __init__(self, live: Callable[[], list[JobRecord]]) -> None:
        self._list_live = live
        self._watches: set[Watch] = set()
        self._looking: dict[str, set[Watch]] = {}
        self._followed: dict[str, tuple[JobRecord, Callable[[], None]]] = {}
        self._others: dict[str, OtherJob] = {}
        self._finished: OrderedDict[str, HistoryEntry | OtherJob] = OrderedDict()
        #: Job ids, and whether these jobs are this gateway's own; None means that a member's jobs were forgotten.
        self._changes: deque[tuple[str | None, bool]] = deque(maxlen=KEPT_CHANGES)
        self._ending: asyncio.TimerHandle | None = None
        self._is_on = False
        self.is_closed = False
        self.id = ""
        self.number = 0

    def close(self) -> None:
        """Let each watcher end after its next look: this process stops, and there are no more changes."""
        self.is_closed = True
        for watch in self._watches:
            watch.wake()

    @property
    def watchers(self) -> int:
        """Number of watchers that are clients."""
        return sum(not watch.is_of_member for watch in self._watches)

    def accepted(self, record: JobRecord) -> None:
        """Record a new job.

        Parameters
        ----------
        record : JobRecord
            Accepted, and not over.
        """
        if self._is_on:
            self._follow(record)
            self._note(record.execution_id, is_own=True)

    @contextlib.contextmanager
    def watch(self, looked_at: str | None = None, *, is_of_member: bool = False) -> Iterator[Watch]:
        """Watch the jobs during a ``with`` statement.

        Parameters
        ----------
        looked_at : str, optional
            The job_id of the job whose log lines count as changes.
        is_of_member : bool
            Whether another member asked, and not a client.

        Yields
        ------
        Watch
            Wakes the watcher.
        """
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None
        if not self._is_on:
            self._start()
        watch = Watch(is_of_member=is_of_member)
        self._watches.add(watch)
        if looked_at is not None:
            self._looking.setdefault(looked_at, set()).add(watch)
        try:
            yield watch
        finally:
            self._watches.discard(watch)
            self._look_away(looked_at, watch)
            if not self._watches:
                self._ending = asyncio.get_running_loop().call_later(LINGER_SECONDS, self._stop)

    def put(self, job: OtherJob) -> None:
        """Record a change of another member's job."""
        if not self._is_on:
            return
        if not job.is_live:
            self._others.pop(job.job_id, None)
            self._keep_finished(job.job_id, job)
        elif len(self._others) < MOST_OTHERS or job.job_id in self._others:
            self._others[job.job_id] = job
        else:
            return
        self._note(job.job_id, is_own=False)

    def forget(self, member: str) -> None:
        """Forget the live jobs of another member: watchers of all jobs begin again, without them.

        Watchers of this gateway's own jobs do not: two members that watch each other would make each other begin again
        for ever.
        """
        gone = [job.job_id for job in self._others.values() if job.member == member]
        for job_id in gone:
            del self._others[job_id]
        if gone:
            self._note(None, is_own=False)

    def live(self, *, is_own: bool = False) -> Sequence[JobRecord | OtherJob]:
        """Return the accepted jobs that are not over.

        Parameters
        ----------
        is_own : bool
            Whether jobs that other members keep are left out.

        Returns
        -------
        sequence of JobRecord or OtherJob
            This gateway's own, the oldest first, then those of other members.
        """
        return [*self._list_live(), *(() if is_own else self._others.values())]

    def changed_since(self, number: int, *, is_own: bool = False) -> Sequence[FeedJob] | None:
        """Return the jobs that have changed since a number.

        Parameters
        ----------
        number : int
            `number` at the last look.
        is_own : bool
            Whether jobs that other members keep are left out.

        Returns
        -------
        sequence of FeedJob, or None
            None if too much has changed since then.
        """
        missed = self.number - number
        if not 0 <= missed <= len(self._changes):
            return None
        changes = list(self._changes)[len(self._changes) - missed :]
        ids = dict.fromkeys(job_id for job_id, of_this_one in changes if of_this_one or not is_own)
        found = [self._find(job_id) if job_id is not None else None for job_id in ids]
        return [job for job in found if job is not None] if None not in found else None

    def _look_away(self, job_id: str | None, watch: Watch) -> None:
        others = self._looking.get(job_id or "", set())
        others.discard(watch)
        if not others:
            self._looking.pop(job_id or "", None)

    def _find(self, job_id: str) -> FeedJob | None:
        followed = self._followed.get(job_id)
        return followed[0] if followed is not None else self._others.get(job_id) or self._finished.get(job_id)

    def _start(self) -> None:
        self._is_on = True
        self.id, self.number = uuid.uuid4().hex[:12], 0
        for record in self._list_live():
            self._follow(record)

    def _stop(self) -> None:
        self._is_on, self._ending = False, None
        for _, leave in self._followed.values():
            leave()
        self._followed.clear()
        self._others.clear()
        self._finished.clear()
        self._changes.clear()

    def _follow(self, record: JobRecord) -> None:
        self._followed[record.execution_id] = record, record.log.follow(partial(self._on_event, record))

    def _on_event(self, record: JobRecord, event: Event) -> None:
        if isinstance(event, LogLine):
            for watch in self._looking.get(record.execution_id, ()):
                watch.wake()
            return
        if isinstance(event, Finished):
            _, leave = self._followed.pop(record.execution_id)
            leave()
            self._keep_finished(record.execution_id, record.entry())
        self._note(record.execution_id, is_own=True)

    def _keep_finished(self, job_id: str, job: HistoryEntry | OtherJob) -> None:
        self._finished[job_id] = job
        if len(self._finished) > KEPT_FINISHED:
            self._finished.popitem(last=False)

    def _note(self, job_id: str | None, *, is_own: bool) -> None:
        self.number += 1
        self._changes.append((job_id, is_own))
        for watch in self._watches:
            watch.wake()
