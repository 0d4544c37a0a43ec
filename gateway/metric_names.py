"""The catalogue of exported metrics: names, types, labels and texts; `gateway.metrics` fills them, the docs list them.

Names follow Prometheus' conventions (base units, ``_total`` for counters); where jupyter_server has a metric of the
same meaning, its name is used. Labels have few values: handler classes instead of URLs, failure codes instead of
messages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PREFIX = "transform_gateway"


@dataclass(frozen=True, slots=True)
class MetricName:
    """One exported metric, under the name that a query uses; a histogram adds ``_bucket``, ``_sum``, ``_count``."""

    name: str
    kind: Literal["counter", "gauge", "histogram", "info"]
    text: str
    labels: tuple[str, ...] = ()

    @property
    def stem(self) -> str:
        """The name without what its type appends: prometheus_client adds that itself."""
        return self.name.removesuffix("_total" if self.kind == "counter" else "_info")


def _ours(name: str, kind: Literal["counter", "gauge", "histogram", "info"], text: str, *labels: str) -> MetricName:
    return MetricName(f"{PREFIX}_{name}", kind, text, labels)


JOB_REQUESTS = _ours("job_requests_total", "counter", "Requests to run a job, taken or refused.")
JOBS = _ours("jobs_total", "counter", "Finished jobs; the code is `ok` or a failure code.", "outcome", "code")
JOBS_REFUSED = _ours("jobs_refused_total", "counter", "Requests to run a job that were refused, by code.", "code")
JOBS_LIVE = _ours("jobs_live", "gauge", "Jobs that were taken and are not over.")
JOB_DURATION = _ours("job_duration_seconds", "histogram", "Time from the slot to the end of a job.", "outcome")
JOB_STAGES = _ours(
    "job_stage_duration_seconds", "histogram", "Time by stage of a job; `queue` is the wait for a slot.", "stage"
)
INPUT_BYTES = _ours("input_bytes_total", "counter", "Bytes of input tables.")
OUTPUT_BYTES = _ours("output_bytes_total", "counter", "Bytes of results.")
OUTPUT_ROWS = _ours("output_rows_total", "counter", "Rows of results.")
PEAK_MEMORY = _ours("kernel_peak_memory_bytes", "histogram", "Peak memory of a job, all of its processes together.")
HEALTHY = _ours("healthy", "gauge", "1 when jobs are taken, else 0.")
QUEUE_DEPTH = _ours("queue_depth", "gauge", "Jobs that wait for a slot.")
QUEUE_CAPACITY = _ours("queue_capacity", "gauge", "Jobs that may wait for a slot (QUEUE_LENGTH).")
SLOTS = _ours("slots", "gauge", "Jobs that may run side by side (SLOTS).")
SLOTS_BUSY = _ours("slots_busy", "gauge", "Slots that are taken.")
READY_KERNELS = _ours("ready_kernels", "gauge", "Kernels that wait for a job.")
HELD_KERNELS = _ours("held_kernels", "gauge", "Kernels held for inspection or as a console.")
STARTING_KERNELS = _ours("starting_kernels", "gauge", "Kernels on their way to be ready.")
CLAIMS = _ours(
    "ready_kernel_claims_total", "counter", "Claims that found a ready kernel (`hit`) or waited (`miss`).", "result"
)
KERNEL_STARTS = _ours("kernel_starts_total", "counter", "Kernels started: forked, or plainly where that failed.", "by")
KERNEL_START_FAILURES = _ours("kernel_start_failures_total", "counter", "Starts of kernels that failed.")
KERNELS_DISCARDED = _ours("kernels_discarded_total", "counter", "Kernels that died or grew old before a job came.")
FORK_SERVER_UP = _ours(
    "fork_server_up", "gauge", "1 when kernels are forked, 0 when each is started plainly; only with USE_FORK_SERVER."
)
FORK_SERVER_RESTARTS = _ours("fork_server_restarts_total", "counter", "Times the fork server was started anew.")
INTERNAL_S3_UP = _ours("internal_s3_up", "gauge", "1 when the embedded S3 server answers; only where it is enabled.")
SANDBOX = _ours("sandbox_info", "info", "What confines a job; always 1.", "tier", "layers", "gateway_has_root")
BUILD = _ours("build_info", "info", "The version of the gateway; always 1.", "version")
HTTP_REQUESTS = MetricName(
    "http_request_duration_seconds",
    "histogram",
    "Time until a request was answered; for a job that is its whole time (jupyter_server's name).",
    ("method", "handler", "status_code"),
)
MALFORMED = _ours("malformed_requests_total", "counter", "Requests that were no valid HTTP and reached no handler.")
KERNELS_RUNNING = MetricName(
    "kernel_currently_running_total", "gauge", "Kernels that run a job (jupyter_server's name).", ("type",)
)

CATALOGUE: tuple[MetricName, ...] = tuple(value for value in globals().values() if isinstance(value, MetricName))
"""All of them, in the order of this page; beside them stand ``process_*`` and ``python_*`` of the gateway itself."""
