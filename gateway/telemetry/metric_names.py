"""The catalogue of exported metrics: names, types, labels and help texts.

`gateway.telemetry.metrics` exports them, and the docs list them.

Names follow Prometheus' conventions (base units, ``_total`` for counters); a metric with the meaning of one of
jupyter_server has its name. Labels have few values: handler classes instead of URLs, failure codes instead of messages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PREFIX = "transform_gateway"


@dataclass(frozen=True, slots=True)
class MetricName:
    """One exported metric by its name in queries; a histogram adds ``_bucket``, ``_sum``, ``_count``."""

    name: str
    kind: Literal["counter", "gauge", "histogram", "info"]
    text: str
    labels: tuple[str, ...] = ()

    @property
    def stem(self) -> str:
        """The name without the suffix of its type, which prometheus_client adds."""
        return self.name.removesuffix("_total" if self.kind == "counter" else "_info")


def _ours(name: str, kind: Literal["counter", "gauge", "histogram", "info"], text: str, *labels: str) -> MetricName:
    return MetricName(f"{PREFIX}_{name}", kind, text, labels)


JOB_REQUESTS = _ours("job_requests_total", "counter", "Requests to run a job, accepted or refused.")
JOBS = _ours("jobs_total", "counter", "Finished jobs; the code is `ok` or a failure code.", "outcome", "code")
JOBS_REFUSED = _ours("jobs_refused_total", "counter", "Requests to run a job that were refused, by code.", "code")
JOBS_LIVE = _ours("jobs_live", "gauge", "Accepted jobs that are not finished.")
JOB_ATTEMPTS = _ours(
    "job_attempts_total",
    "counter",
    "Times that a job began to run: `first`, or `again` after the end of the gateway or its launcher, or a fault of "
    "its disk.",
    "attempt",
)
JOBS_RECOVERED = _ours(
    "jobs_recovered_total",
    "counter",
    "Unfinished jobs of an earlier process, by outcome: `run_again`, `cancelled` or `gateway_restarted`.",
    "end",
)
STORE_COMMITS = _ours(
    "store_commit_duration_seconds", "histogram", "Time of a commit of the job store, its fsync included."
)
JOB_DURATION = _ours("job_duration_seconds", "histogram", "Time from the slot to the end of a job.", "outcome")
JOB_STAGES = _ours(
    "job_stage_duration_seconds", "histogram", "Time of each stage of a job; `queue` is the wait for a slot.", "stage"
)
INPUT_BYTES = _ours("input_bytes_total", "counter", "Bytes of input tables.")
OUTPUT_BYTES = _ours("output_bytes_total", "counter", "Bytes of results.")
OUTPUT_ROWS = _ours("output_rows_total", "counter", "Rows of results.")
PEAK_MEMORY = _ours("kernel_peak_memory_bytes", "histogram", "Peak memory of a job, all of its processes together.")
HEALTHY = _ours("healthy", "gauge", "1 when jobs are accepted, else 0.")
PAUSED = _ours("paused", "gauge", "1 while an operator has paused the intake of jobs, else 0.")
QUEUE_DEPTH = _ours("queue_depth", "gauge", "Jobs that wait for a slot.")
QUEUE_CAPACITY = _ours("queue_capacity", "gauge", "Jobs that may wait for a slot (QUEUE_LENGTH).")
SLOTS = _ours("slots", "gauge", "Jobs that may run at the same time (SLOTS); in a cluster those of all members.")
SLOTS_BUSY = _ours("slots_busy", "gauge", "Slots that are in use; in a cluster those of all members.")
READY_KERNELS = _ours("ready_kernels", "gauge", "Kernels that wait for a job.")
HELD_KERNELS = _ours("held_kernels", "gauge", "Kernels held for inspection or as a console.")
PERSONAL_KERNELS = _ours("personal_kernels", "gauge", "Kernels that notebooks on this machine have taken.")
STARTING_KERNELS = _ours("starting_kernels", "gauge", "Kernels that are starting.")
CLAIMS = _ours(
    "ready_kernel_claims_total",
    "counter",
    "Jobs that found a ready kernel (`hit`) or waited for one (`miss`).",
    "result",
)
KERNEL_STARTS = _ours(
    "kernel_starts_total", "counter", "Started kernels: forked, or started without the fork server.", "by"
)
KERNEL_START_FAILURES = _ours("kernel_start_failures_total", "counter", "Failed starts of kernels.")
KERNELS_DISCARDED = _ours("kernels_discarded_total", "counter", "Kernels that died or expired before a job used them.")
LAUNCHER_UP = _ours("launcher_up", "gauge", "1 when the launcher of kernels runs, 0 while it restarts.")
LAUNCHER_RESTARTS = _ours("launcher_restarts_total", "counter", "Restarts of the launcher of kernels.")
FORK_SERVER_UP = _ours(
    "fork_server_up", "gauge", "1 when kernels are forked, 0 when the fork server is down; only with USE_FORK_SERVER."
)
FORK_SERVER_RESTARTS = _ours("fork_server_restarts_total", "counter", "Restarts of the fork server.")
INTERNAL_S3_UP = _ours("internal_s3_up", "gauge", "1 when the embedded S3 server responds; only where it is enabled.")
INTERNAL_S3_RESTARTS = _ours(
    "internal_s3_restarts_total", "counter", "Restarts of the embedded S3 server; only where it is enabled."
)
OUTBOX_JOBS = _ours("outbox_jobs", "gauge", "Computed results that are not delivered yet.")
OUTBOX_BYTES = _ours("outbox_bytes", "gauge", "Bytes of computed results that are not delivered yet.")
OUTBOX_OLDEST = _ours("outbox_oldest_seconds", "gauge", "Age of the oldest result that is not delivered; 0 if none.")
DELIVERY_RETRIES = _ours("delivery_retries_total", "counter", "Repeated attempts to upload an output, manifest or log.")
DISK_FREE = _ours("disk_free_bytes", "gauge", "Free bytes on the disk of STATE_DIR.")
INODES_FREE = _ours("disk_free_inodes", "gauge", "Free inodes on the disk of STATE_DIR, where they are limited.")
DISK_FLOOR = _ours("disk_floor_bytes", "gauge", "Free bytes below which jobs are refused (MIN_FREE_DISK_BYTES).")
SANDBOX = _ours("sandbox_info", "info", "The sandbox of jobs; always 1.", "tier", "layers", "gateway_has_root")
BUILD = _ours("build_info", "info", "The version of the gateway; always 1.", "version")
HTTP_REQUESTS = MetricName(
    "http_request_duration_seconds",
    "histogram",
    "Time of a request until its response; for a job that is its whole time (jupyter_server's name).",
    ("method", "handler", "status_code"),
)
CONNECTIONS_DROPPED = _ours(
    "connections_dropped_total",
    "counter",
    "Connections closed at MAX_CONNECTIONS: `idle` ones for new ones, or new ones (`refused`) while all were in use.",
    "kind",
)
MALFORMED = _ours("malformed_requests_total", "counter", "Requests that are not valid HTTP and reached no handler.")
KERNELS_RUNNING = MetricName(
    "kernel_currently_running_total", "gauge", "Kernels that run a job (jupyter_server's name).", ("type",)
)

HOSTS = _ours("hosts", "gauge", "Live hosts of the cluster; a `transform-gateway host` counts only itself.")
HOST_SLOTS = _ours("host_slots", "gauge", "Slots of each host of the cluster that is known to this process.", "host")
HOST_BUSY = _ours("host_busy", "gauge", "Slots in use of each host that is known to this process.", "host")
MEMBERS_MISSING = _ours(
    "members_missing", "gauge", "Members of the cluster that vanished within a day without a last message."
)
ATTEMPTS = _ours("attempts_total", "counter", "Jobs of the cluster that this machine has begun.")
FENCED = _ours("fenced_total", "counter", "Jobs that this machine ended because it lost their lease.")
HOSTS_LOST = _ours(
    "hosts_lost_total", "counter", "Times that a job of this member went to another host because its own was lost."
)
REPUBLISHED = _ours("republished_total", "counter", "Times that this member put a waiting job into the queue again.")
LEASE_CONFIRM = _ours(
    "lease_confirm_duration_seconds", "histogram", "Time until the broker confirms a write of a lease."
)

#: All metrics, in the order of this module; ``process_*`` and ``python_*`` of the gateway's process come in addition.
CATALOGUE: tuple[MetricName, ...] = tuple(value for value in globals().values() if isinstance(value, MetricName))
