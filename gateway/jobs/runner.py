"""The interface to the place where jobs run: `gateway.local` on this machine, `gateway.cluster` on hosts of a cluster.

No caller of this interface assumes that kernels are on this machine. The runner reports when it has a slot for a job,
sends events to a `JobLog`, gets a cancel as a `StopSignal`, and returns the end as a `Verdict`. Facts about its machine
are in details that only the runner interprets.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from gateway.core.cancellation import StopSignal
from gateway.core.events import JobLog
from gateway.core.job import HeldKernel, Job, RequestId, ResultPart, Verdict
from gateway.core.uploads import UploadPermit, Uploads
from gateway.storage import FetchedTable


@dataclass(frozen=True, slots=True)
class SlotCount:
    """How many jobs a runner can run at a time, and how many it runs now.

    Attributes
    ----------
    total : int
        All slots.
    busy : int
        Slots that cannot be taken now.
    ending : int
        Busy slots whose job is decided; they are free in a moment.
    wanted : int
        Jobs of other gateways that wait for these slots.
    """

    total: int
    busy: int = 0
    ending: int = 0
    wanted: int = 0


@dataclass(frozen=True, slots=True)
class RunnerStatus:
    """State of a runner.

    Attributes
    ----------
    healthy : bool
        Whether it can run jobs.
    slots : SlotCount
        Its slots.
    details : dict
        Facts about its machine, as members of ``/v1/status``. Callers without a token see them, so nothing in them is
        secret.
    """

    healthy: bool
    slots: SlotCount
    details: dict[str, dict[str, Any]] = field(default_factory=dict)


class PackageFacts(Protocol):
    """A package that jobs can import, and whether it is imported before a job begins."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def preloaded(self) -> bool: ...

    @property
    def added(self) -> bool: ...


class ResultReader(Protocol):
    """One part of a kept result, as a stream. It can be read to its end also when the result expires meanwhile."""

    @property
    def size_bytes(self) -> int: ...

    def blocks(self) -> AsyncGenerator[bytes]:
        """Yield the whole part, `size_bytes` in all.

        Raises
        ------
        OSError
            The part could not be read to its end.
        """


class KeptResult(Protocol):
    """A result that a runner keeps of a job, wherever it keeps it."""

    @property
    def part_bytes(self) -> Mapping[ResultPart, int]:
        """Size of each part that there is; a failed job has no output and no manifest."""

    def open(self, part: ResultPart) -> AbstractAsyncContextManager[ResultReader | None]:
        """Open a part during an ``async with`` block, which gets None if there is none or it is no longer kept."""


class JobRun(Protocol):
    """One job in a runner.

    The calls come in this order: `take_slot` until it returns True, `execute`, `leave_slot`, `deliver`, `close`. A job
    that never runs gets `fail` in place of the first three.
    """

    @property
    def inputs(self) -> Sequence[FetchedTable]:
        """The tables that were fetched, as files that stay until `close`.

        Only with ``keep_failed_jobs``; empty where the files are not on this machine.
        """

    @property
    def lost_verdict(self) -> Verdict | None:
        """After `execute`: the verdict, if the machine failed and not the job, so that another run may succeed.

        `close` may then follow at once, or `fail` with another verdict.
        """

    def take_slot(self) -> bool:
        """Take a slot if one is free now; return whether the job may run now."""

    async def execute(self) -> None:
        """Run the job in its slot, until its verdict is known and nothing of it can run any more but a held kernel.

        A failed job is a normal outcome and raises nothing.
        """

    def leave_slot(self) -> None:
        """Release the slot as soon as no process of the job is left; returns at once.

        The runner may wait for the job's answer first.
        """

    async def deliver(self) -> Verdict:
        """Deliver results and log to the places that the request names; return the final verdict. Needs no slot."""

    def fail(self, verdict: Verdict) -> None:
        """Set the failure of a job that never got a slot; `deliver` then delivers only the log."""

    async def close(self) -> None:
        """Free everything that the job held; called when its answer is known. Never raises."""


class RequestIdClaims(Protocol):
    """Keeps a request id to one job among several gateways that accept jobs."""

    def check(self, job: Job) -> None:
        """Refuse a job that no machine of the gateways could run."""

    def new_id(self) -> str:
        """Return an execution id for a job of this gateway."""

    async def claim(
        self, request_id: RequestId, token_name: str | None, execution_id: str, idempotency_key: bytes | None = None
    ) -> None:
        """Claim an id for a job, and its ``Idempotency-Key``, or raise a refusal."""

    async def announce(self, request_id: RequestId, token_name: str | None) -> None:
        """Let the other gateways find the newest job of a claimed id here, or raise a refusal."""

    async def release(self, execution_id: str) -> None:
        """Release the id of a job that has ended. Never raises."""

    async def withdraw(self, execution_id: str) -> None:
        """Release the id and the ``Idempotency-Key`` of a job that was not accepted. Never raises."""


class JobRunner(Protocol):
    """A place where jobs run."""

    def on_slot_free(self, callback: Callable[[], None]) -> None:
        """Set the function that is called whenever a slot has become free; it never blocks and never raises."""

    def slots(self) -> SlotCount:
        """Return how many slots there are, and how many of them are busy at this moment."""

    def open(
        self,
        job: Job,
        log: JobLog,
        stop: StopSignal,
        execution_id: str,
        uploads: Uploads | None,
        permit: UploadPermit | None = None,
    ) -> JobRun:
        """Accept a job and begin to fetch its inputs, while it may still be queued.

        Parameters
        ----------
        job : Job
            A validated job.
        log : JobLog
            Receives its events.
        stop : StopSignal
            Ends it before its time.
        execution_id : str
            The gateway's own id of the job.
        uploads : Uploads or None
            Files that came with the request; they stay the caller's, and stay there until `JobRun.close` has returned.
        permit : UploadPermit, optional
            Prepared when the job has ended, and awaited before the last block of each upload.

        Returns
        -------
        JobRun
            The run of the job; `JobRun.close` must be called.
        """

    def has_output(self, execution_id: str) -> bool:
        """Return whether an earlier process computed the output of a job, so that a run only delivers it.

        Asked before the job is opened.
        """

    def runs_elsewhere(self, job: Job) -> bool:
        """Return whether a job that was opened and waits may still begin on another machine while this one stops."""

    def status(self) -> RunnerStatus:
        """Return the known state, without a request to other processes; never blocks."""

    async def packages(self, *, renew: bool = False) -> Sequence[PackageFacts]:
        """Return the packages that jobs can import, by name.

        `renew` first applies added and removed packages to the kernels of later jobs.
        """

    def kept_result(self, execution_id: str) -> KeptResult | None:
        """Return the result that is kept of a job; None if it went elsewhere or is no longer kept."""

    def drop_result(self, execution_id: str) -> None:
        """Remove the result that is kept of a job, if there is one."""

    def held_kernels(self) -> list[HeldKernel]:
        """Return the kernels that are held for inspection or as a console, the oldest first."""

    async def release(self, name: str) -> None:
        """End the kernel with this `HeldKernel.id` and return when nothing of it is left.

        Raises
        ------
        NotFound
            No kernel of this name is held.
        Conflict
            The machine that holds it does not answer; the text names it, and the command that attaches there.
        """

    async def open_console(self, seconds: float) -> HeldKernel:
        """Hold a kernel that never had a job, as a console; return how to attach to it.

        Raises
        ------
        Conflict
            No more kernels may be held.
        JobFailed
            No kernel could be started.
        """

    async def aclose(self) -> None:
        """End every kernel and free everything."""
