"""Responses about the gateway itself: its state, its packages, and links to the other routes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field

from gateway.http.schemas.responses import ResponseModel
from gateway.jobs.runner import PackageFacts


class RootResponse(ResponseModel):
    """Links to the other routes."""

    name: str
    version: str
    links: dict[str, str]


class StatusMetrics(ResponseModel):
    """Counters since the start of the gateway."""

    total_requests: int
    completed: int
    succeeded: int
    failed: int
    success_rate: float = Field(description="Share of completed jobs that succeeded, 0 to 1.")
    timeouts: int
    cancelled: int
    rejected: int
    avg_execution_time: float
    failures_by_code: dict[str, int]


class StatusResponse(ResponseModel):
    """The state of the gateway. It has no secrets and needs no token."""

    healthy: bool
    draining: bool
    paused: bool = Field(description="Whether an operator has paused the intake of jobs.")
    version: str
    state: Literal["idle", "queued", "running", "finished"] = Field(
        description="State of the current job, else of the last one."
    )
    result: dict[str, Any] | None = Field(
        description="Outcome of the last job when `state` is finished; its message only for callers with the token."
    )
    queue_size: int
    max_queue_size: int
    slots: int
    busy_slots: int
    currently_executing: bool
    current_execution_id: int | str | None
    metrics: StatusMetrics
    ready_kernels: dict[str, Any]
    kernels: dict[str, Any]
    sandbox: dict[str, Any]
    launcher: dict[str, Any]
    fork_server: dict[str, Any]
    outbox: dict[str, Any]
    disk: dict[str, Any]
    internal_s3: dict[str, Any] | None
    cluster: dict[str, Any] | None = None
    limits: dict[str, Any]


class PauseResponse(ResponseModel):
    """Whether the gateway is paused now."""

    paused: bool


class LiveResponse(ResponseModel):
    """The gateway answers."""

    live: Literal[True]


class ReadyResponse(ResponseModel):
    """Whether the gateway accepts jobs; `/v1/status` has the reason if it does not."""

    ready: bool


class PackageResponse(ResponseModel):
    """A package that jobs can import."""

    name: str
    version: str
    preloaded: bool = Field(description="Whether it is imported before a job begins, so that its import takes no time.")
    added: bool = Field(description="Whether the operator has added it with `transform-gateway packages add`.")


class PackagesResponse(ResponseModel):
    """The packages that jobs can import, by name."""

    packages: list[PackageResponse]


def packages_response(packages: Iterable[PackageFacts]) -> PackagesResponse:
    """Return the list of packages."""
    return PackagesResponse(packages=[PackageResponse.model_validate(each, from_attributes=True) for each in packages])
