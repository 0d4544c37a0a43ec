"""The answer of ``GET /v1/stream``: the state of the gateway, jobs that have changed, and lines of one log."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from gateway.core.version import VERSION
from gateway.http.schemas.history import JobSummary, summary_members
from gateway.http.schemas.responses import ResponseModel, StageProgress, progress_of
from gateway.jobs.service import JobService
from gateway.jobs.store import HistoryEntry, JobRecord

#: Of the cluster in ``/v1/status``; its counters would change with each job.
CLUSTER_MEMBERS = ("member", "connected", "members", "missing")


class StreamedJob(JobSummary):
    """One job in the stream."""

    progress: list[StageProgress] = Field(description="Of a job that is not finished.")
    timeout: float | None = Field(description="Seconds from the slot, of a job that is not finished.")


class GatewayState(ResponseModel):
    """The members of the gateway's state that change while it runs."""

    version: str
    healthy: bool
    draining: bool
    paused: bool
    slots: int
    busy_slots: int
    queue_size: int
    max_queue_size: int
    ready_kernels: dict[str, Any]
    held: int = Field(description="Kernels that are held for inspection.")
    held_limit: int
    completed: int = Field(description="Jobs that ended since the start of the gateway.")
    failed: int
    rejected: int
    execution_seconds: float = Field(description="Seconds of all jobs that ended, from the slot to the end.")
    failures_by_code: dict[str, int]
    outbox_jobs: int = Field(description="Results that are computed and not yet delivered.")
    cluster: dict[str, Any] | None = Field(
        default=None, description="In a cluster: this member's name, the members, and those that vanished."
    )
    missing_members: list[str] | None = Field(
        default=None, description="In a cluster, the members that do not answer, so that their jobs are not streamed."
    )


def streamed_job(job: JobRecord | HistoryEntry, member: str | None = None) -> StreamedJob:
    """Return a job as it is streamed; in a cluster it names the member that keeps it."""
    named: dict[str, Any] = {} if member is None else {"member": member}
    if isinstance(job, HistoryEntry):
        return StreamedJob(**summary_members(job, None), **named, progress=[], timeout=None)
    timeout = job.job.timeout_seconds if job.job is not None else None
    members = summary_members(job.entry(), job.log) | named
    return StreamedJob(**members, progress=progress_of(job.log), timeout=timeout)


def gateway_state(service: JobService, missing_members: list[str] | None = None) -> GatewayState:
    """Return the state of this moment."""
    of_cluster: dict[str, Any] = {}
    status = service.status()
    counters, kernels = status.counters, status.details.get("kernels", {})
    cluster = status.details.get("cluster")
    if cluster:
        of_cluster["cluster"] = {name: cluster[name] for name in CLUSTER_MEMBERS}
    if missing_members is not None:
        of_cluster["missing_members"] = missing_members
    return GatewayState(
        version=VERSION,
        healthy=status.healthy,
        draining=status.draining,
        paused=status.paused,
        slots=status.slots,
        busy_slots=status.busy_slots,
        queue_size=status.queue_size,
        max_queue_size=status.max_queue_size,
        ready_kernels=status.details.get("ready_kernels", {}),
        held=kernels.get("held", 0),
        held_limit=kernels.get("held_limit", 0),
        completed=counters.completed,
        failed=counters.failed,
        rejected=counters.rejected,
        execution_seconds=round(counters.total_execution_seconds, 3),
        failures_by_code={str(code): count for code, count in counters.failures_by_code.items()},
        outbox_jobs=status.details.get("outbox", {}).get("jobs", 0),
        **of_cluster,
    )
