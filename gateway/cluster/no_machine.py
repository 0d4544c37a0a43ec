"""The runner of a member that only accepts jobs (SLOTS=0): it runs none."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gateway.core.cancellation import StopSignal
from gateway.core.errors import Conflict, FailureCode, JobFailed, NotFound
from gateway.core.events import JobLog
from gateway.core.job import HeldKernel, Job, Verdict
from gateway.core.uploads import UploadPermit, Uploads
from gateway.jobs.runner import KeptResult, PackageFacts, RunnerStatus, SlotCount
from gateway.storage import FetchedTable, KeptResultStore

TEXT = "this member of the cluster runs no jobs itself (SLOTS=0)"


class NoMachine:
    """A `gateway.jobs.runner.JobRunner` without slots.

    Parameters
    ----------
    results : KeptResultStore
        Has the results that hosts uploaded; owned from now on.
    """

    def __init__(self, results: KeptResultStore) -> None:
        self._results = results

    def on_slot_free(self, callback: Callable[[], None]) -> None:
        """Do nothing: there is no slot."""

    def slots(self) -> SlotCount:
        return SlotCount(0)

    def open(
        self,
        job: Job,
        log: JobLog,
        stop: StopSignal,
        execution_id: str,
        uploads: Uploads | None,
        permit: UploadPermit | None = None,
    ) -> NoRun:
        return NoRun(log)

    def has_output(self, execution_id: str) -> bool:
        return False

    def runs_elsewhere(self, job: Job) -> bool:
        return False

    def status(self) -> RunnerStatus:
        return RunnerStatus(healthy=True, slots=SlotCount(0))

    async def packages(self, *, renew: bool = False) -> Sequence[PackageFacts]:
        return ()

    def kept_result(self, execution_id: str) -> KeptResult | None:
        return self._results.get(execution_id)

    def drop_result(self, execution_id: str) -> None:
        self._results.drop(execution_id)

    def held_kernels(self) -> list[HeldKernel]:
        return []

    async def release(self, name: str) -> None:
        raise NotFound(f"no kernel {name[:100]!r} is held here: {TEXT}")

    async def open_console(self, seconds: float) -> HeldKernel:
        raise Conflict(f"no kernel can be held here: {TEXT}")

    async def aclose(self) -> None:
        self._results.close()


class NoRun:
    """A job that was accepted when this member had slots, and whose files are on its machine; it fails at once."""

    lost_verdict: Verdict | None = None
    inputs: Sequence[FetchedTable] = ()

    def __init__(self, log: JobLog) -> None:
        self._log = log
        self._verdict = Verdict.of(JobFailed(FailureCode.GATEWAY_RESTARTED, f"The job cannot run: {TEXT}"))

    def take_slot(self) -> bool:
        return True

    async def execute(self) -> None:
        self._log.line("stderr", f"ERROR: {self._verdict.message}")

    def leave_slot(self) -> None:
        """Do nothing: it has none."""

    async def deliver(self) -> Verdict:
        return self._verdict

    def fail(self, verdict: Verdict) -> None:
        self._verdict = verdict

    async def close(self) -> None:
        """Do nothing: it holds nothing."""
