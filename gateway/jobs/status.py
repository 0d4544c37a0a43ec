"""The counters and the status of a job service."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gateway.core.job import Verdict


@dataclass(slots=True)
class JobCounters:
    """Counts jobs since the start: the counters of the legacy API, failures by code, attempts, and recovered jobs."""

    total_requests: int = 0
    completed: int = 0
    succeeded: int = 0
    failed: int = 0
    timeouts: int = 0
    rejected: int = 0
    cancelled: int = 0
    total_execution_seconds: float = 0.0
    failures_by_code: dict[str, int] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=lambda: {"first": 0, "again": 0})
    recovered: dict[str, int] = field(default_factory=lambda: {"run_again": 0, "cancelled": 0, "gateway_restarted": 0})

    def count(self, verdict: Verdict) -> None:
        """Count one finished job.

        Parameters
        ----------
        verdict : Verdict
            How it ended.
        """
        self.completed += 1
        self.total_execution_seconds += verdict.execution_seconds
        if verdict.code is None:
            self.succeeded += 1
            return
        self.failed += 1
        self.timeouts += verdict.timed_out
        self.cancelled += verdict.cancelled
        self.failures_by_code[verdict.code] = self.failures_by_code.get(verdict.code, 0) + 1


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """State of the whole gateway; nothing in it is secret.

    Attributes
    ----------
    healthy, draining, paused : bool
        Whether it accepts jobs; whether it is about to stop; whether an operator paused it.
    queue_size, max_queue_size : int
        Jobs that wait, and places for them.
    slots, busy_slots : int
        Jobs that may run at a time, and slots that cannot be taken now.
    counters : JobCounters
        Since the start.
    details : dict
        The runner's description of its machine, as members of ``/v1/status``.
    limits : dict
        Limits of a job and bounds of a request.
    internal_s3 : dict or None
        State of the embedded S3 server, if there is one.
    """

    healthy: bool
    draining: bool
    paused: bool
    queue_size: int
    max_queue_size: int
    slots: int
    busy_slots: int
    counters: JobCounters
    details: dict[str, dict[str, Any]]
    limits: dict[str, Any]
    internal_s3: dict[str, Any] | None
