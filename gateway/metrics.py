"""What a monitoring system sees: Prometheus metrics made from verdicts, requests, and a look at the service.

Names follow Prometheus' conventions (base units, ``_total`` for counters); where jupyter_server has a metric of the
same meaning, its name is used. Labels have few values: handler classes instead of URLs, failure codes instead of
messages.

=============================================  =============================================================
metric                                         meaning
=============================================  =============================================================
transform_gateway_jobs_total                   finished jobs by outcome and code
transform_gateway_job_requests_total           jobs asked for: finished, live and refused ones together
transform_gateway_jobs_refused_total           of these, refused by the service, by code
transform_gateway_job_duration_seconds         from the slot to the end, by outcome
transform_gateway_job_stage_duration_seconds   by stage; stage ``queue`` is the wait for a slot
transform_gateway_input_bytes_total,           bytes of tables in and results out
transform_gateway_output_bytes_total
transform_gateway_output_rows_total            rows of results
transform_gateway_kernel_peak_memory_bytes     peak memory of a job
transform_gateway_queue_depth, _queue_capacity jobs that wait, and how many may
transform_gateway_slots, _slots_busy           slots
transform_gateway_ready_kernels                kernels that wait for a job
transform_gateway_held_kernels                 kernels held for inspection or as a console
transform_gateway_ready_kernel_claims_total    claims that found one (hit) or had to wait (miss)
transform_gateway_fork_server_restarts_total
transform_gateway_sandbox_info                 tier and the layers that are on, always 1
transform_gateway_build_info                   version, always 1
http_request_duration_seconds                  by method, handler class and status (as jupyter_server)
kernel_currently_running_total                 kernels that run a job, by type (as jupyter_server)
process_*, python_*                            the gateway's own process
=============================================  =============================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway import __version__
from gateway.errors import FailureCode
from gateway.jobs.model import Verdict

if TYPE_CHECKING:
    from tornado.web import RequestHandler

    from gateway.jobs.service import JobService, ServiceStatus
    from gateway.jobs.store import JobRecord

PREFIX = "transform_gateway"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200)
BYTES = tuple(float(1 << power) for power in range(25, 36))


class Metrics:
    """The metrics of one gateway, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        registry = self.registry
        self._jobs = Counter(f"{PREFIX}_jobs", "Finished jobs.", ["outcome", "code"], registry=registry)
        self._refused = Counter(f"{PREFIX}_jobs_refused", "Jobs refused by the service.", ["code"], registry=registry)
        self._duration = Histogram(
            f"{PREFIX}_job_duration_seconds",
            "Seconds from the slot to the end.",
            ["outcome"],
            buckets=SECONDS,
            registry=registry,
        )
        self._stages = Histogram(
            f"{PREFIX}_job_stage_duration_seconds",
            "Seconds by stage; queue is the wait for a slot.",
            ["stage"],
            buckets=SECONDS,
            registry=registry,
        )
        self._bytes_in = Counter(f"{PREFIX}_input_bytes", "Bytes of input tables.", registry=registry)
        self._bytes_out = Counter(f"{PREFIX}_output_bytes", "Bytes of results.", registry=registry)
        self._rows_out = Counter(f"{PREFIX}_output_rows", "Rows of results.", registry=registry)
        self._peak = Histogram(
            f"{PREFIX}_kernel_peak_memory_bytes", "Peak memory of a job.", buckets=BYTES, registry=registry
        )
        self._requests = Histogram(
            "http_request_duration_seconds",
            "Seconds until a request was answered.",
            ["method", "handler", "status_code"],
            buckets=SECONDS,
            registry=registry,
        )

    def attach(self, service: JobService) -> None:
        """Show the state of `service` from now on."""
        self.registry.register(_ServiceCollector(service))

    def job_finished(self, record: JobRecord) -> None:
        """Count a finished job; give it to `JobService` as ``on_finished``."""
        if record.verdict is not None:
            self._count(record.verdict)

    def job_refused(self, code: str) -> None:
        """Count a job that the service did not take."""
        self._refused.labels(code).inc()

    def request_served(self, handler: RequestHandler, seconds: float) -> None:
        """Count an HTTP request.

        The handler's class is the label, not the URL: URLs hold ids, and each value of a label is a time series.
        """
        kind = type(handler)
        known = handler.request.method in handler.SUPPORTED_METHODS
        method = handler.request.method if known else "other"
        self._requests.labels(method, f"{kind.__module__}.{kind.__name__}", handler.get_status()).observe(seconds)

    def _count(self, verdict: Verdict) -> None:
        outcome = outcome_of(verdict)
        self._jobs.labels(outcome, verdict.code or "ok").inc()
        self._duration.labels(outcome).observe(verdict.execution_seconds)
        for stage, seconds in verdict.stages_seconds.items():
            self._stages.labels(stage).observe(seconds)
        self._bytes_in.inc(verdict.bytes_in)
        if verdict.output is not None:
            self._bytes_out.inc(verdict.output.output_bytes)
            self._rows_out.inc(verdict.output.rows)
        if verdict.peak_memory_bytes is not None:
            self._peak.observe(verdict.peak_memory_bytes)


def outcome_of(verdict: Verdict) -> str:
    """Return ``succeeded``, ``timeout``, ``cancelled`` or ``failed``."""
    match verdict.code:
        case None:
            return "succeeded"
        case FailureCode.TIMEOUT:
            return "timeout"
        case FailureCode.CANCELLED:
            return "cancelled"
        case _:
            return "failed"


class _ServiceCollector(Collector):
    """Looks at the service when somebody asks, instead of following its every change."""

    def __init__(self, service: JobService) -> None:
        self._service = service

    def collect(self) -> Iterable[Metric]:
        """Yield the state of the service. Called by the registry at each scrape."""
        status = self._service.status()
        yield from _service_metrics(status)
        yield _gauge(
            "kernel_currently_running_total", "Kernels that run a job.", len(self._service.running()), "transform"
        )
        yield from _kernel_metrics(status)

    def describe(self) -> Iterable[Metric]:
        """Say nothing: the service may not be ready to be looked at when this is registered."""
        return ()


def _service_metrics(status: ServiceStatus) -> Iterator[Metric]:
    counters = status.counters
    requests = CounterMetricFamily(f"{PREFIX}_job_requests", "Jobs asked for, refused ones included.")
    requests.add_metric([], counters.total_requests)
    yield requests
    yield _gauge(f"{PREFIX}_queue_depth", "Jobs that wait for a slot.", status.queue_size)
    yield _gauge(f"{PREFIX}_queue_capacity", "Jobs that may wait for a slot.", status.max_queue_size)
    yield _gauge(f"{PREFIX}_slots", "Jobs that may run side by side.", status.slots)
    yield _gauge(f"{PREFIX}_slots_busy", "Slots that are taken.", status.busy_slots)
    yield _gauge(f"{PREFIX}_healthy", "1 when jobs are taken.", int(status.healthy))
    yield _info(f"{PREFIX}_build", "The gateway.", {"version": __version__})


def _kernel_metrics(status: ServiceStatus) -> Iterator[Metric]:
    ready = status.ready_kernels
    yield _gauge(f"{PREFIX}_ready_kernels", "Kernels that wait for a job.", _number(ready.get("ready")))
    held = _number(status.kernels.get("held"))
    yield _gauge(f"{PREFIX}_held_kernels", "Kernels held for inspection or as a console.", held)
    claims = CounterMetricFamily(
        f"{PREFIX}_ready_kernel_claims", "Claims that found a ready kernel, or not.", labels=["result"]
    )
    claims.add_metric(["hit"], _number(ready.get("hits")))
    claims.add_metric(["miss"], _number(ready.get("misses")))
    yield claims
    restarts = CounterMetricFamily(f"{PREFIX}_fork_server_restarts", "Times the fork server was started anew.")
    restarts.add_metric([], _number(status.fork_server.get("restarts")))
    yield restarts
    on = sorted(entry["layer"] for entry in status.sandbox.get("layers") or () if entry["state"] == "on")
    tier = {"tier": str(status.sandbox.get("tier", "")), "layers": ",".join(on)}
    yield _info(f"{PREFIX}_sandbox", "What confines a job.", tier)


def _gauge(name: str, text: str, value: float, kind: str | None = None) -> Metric:
    gauge = GaugeMetricFamily(name, text, labels=["type"] if kind else [])
    gauge.add_metric([kind] if kind else [], value)
    return gauge


def _info(name: str, text: str, labels: dict[str, str]) -> Metric:
    info = InfoMetricFamily(name, text)
    info.add_metric([], labels)
    return info


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
