"""The narrow seam behind which a job runs: local slots implement it first, a cluster of kernel hosts can be the second.

Nothing above this seam assumes that the kernel is on this machine: cancel travels by a `StopSignal`, logs by an
`EventSink`, and the end is a `Verdict`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from gateway.jobs.events import EventLog
from gateway.jobs.model import HeldKernel, Job, Verdict
from gateway.jobs.stop import StopSignal


@dataclass(frozen=True, slots=True)
class RunnerStatus:
    """What a runner tells about itself; each part is shown to callers without a token, so nothing secret stands
    here.
    """

    healthy: bool
    ready_kernels: dict[str, Any]
    kernels: dict[str, Any]
    sandbox: dict[str, Any]
    fork_server: dict[str, Any]


class JobRun(Protocol):
    """One job on its way. The calls come in this order; `settle` beside `deliver`, `close` always."""

    async def execute(self) -> None:
        """Run the job in a slot, until its verdict is known and nothing of it can run any more, but for a held kernel.

        A failed job is a normal outcome and raises nothing.
        """

    async def settle(self) -> None:
        """Return when nothing of the job lives, and the slot is free for the next. Never raises."""

    async def deliver(self) -> Verdict:
        """Bring results and log to where the request asked, and return the final verdict. Needs no slot."""

    def fail(self, verdict: Verdict) -> None:
        """Take a verdict from above, for a job that never got a slot; `deliver` then brings only the log."""

    async def close(self) -> None:
        """Free everything that the job held. Never raises."""


class JobRunner(Protocol):
    """Where jobs run."""

    def open(self, job: Job, log: EventLog, stop: StopSignal, execution_id: str) -> JobRun:
        """Take on a job; its inputs are fetched from now on, while it may still queue."""

    def status(self) -> RunnerStatus:
        """Return what is known without asking anybody; never blocks."""

    def held_kernels(self) -> list[HeldKernel]:
        """Return the kernels that are held for a person, oldest first."""

    async def release(self, name: str) -> None:
        """End a held kernel and return when nothing of it is left; raises `NotFound`."""

    async def open_console(self, seconds: float) -> HeldKernel:
        """Hold a ready kernel for a person; raises `Conflict` when no more may be held."""

    async def aclose(self) -> None:
        """End every kernel and free everything."""
