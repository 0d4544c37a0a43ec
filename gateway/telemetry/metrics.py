"""Prometheus metrics of verdicts, requests and the state of the service.

`gateway.telemetry.metric_names` has their names and meaning. At any time

    job_requests_total = jobs_total + jobs_refused_total + jobs_live

holds exactly, because all four change on the event loop, and a job moves from one to the next in a single step.
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
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.core.errors import FailureCode, refusal_kinds
from gateway.core.job import Verdict
from gateway.core.version import VERSION
from gateway.telemetry import metric_names as names
from gateway.telemetry.metric_names import MetricName

if TYPE_CHECKING:
    from tornado.web import RequestHandler

    from gateway.jobs.service import JobService
    from gateway.jobs.status import ServiceStatus
    from gateway.jobs.store import JobRecord

# the creation time of each series would double their number for no use
disable_created_metrics()  # type: ignore[no-untyped-call]

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200)
COMMIT_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)
BYTES = tuple(float(1 << power) for power in range(25, 36))


class Metrics:
    """The metrics of one gateway, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._asked = self._counter(names.JOB_REQUESTS)
        self._jobs = self._counter(names.JOBS)
        self._refused = self._counter(names.JOBS_REFUSED)
        self._duration = self._histogram(names.JOB_DURATION, SECONDS)
        self._stages = self._histogram(names.JOB_STAGES, SECONDS)
        self._bytes_in = self._counter(names.INPUT_BYTES)
        self._bytes_out = self._counter(names.OUTPUT_BYTES)
        self._rows_out = self._counter(names.OUTPUT_ROWS)
        self._peak = self._histogram(names.PEAK_MEMORY, BYTES)
        self._requests = self._histogram(names.HTTP_REQUESTS, SECONDS)
        self._commits = self._histogram(names.STORE_COMMITS, COMMIT_SECONDS)
        self._leases = self._histogram(names.LEASE_CONFIRM, COMMIT_SECONDS)
        self._malformed = self._counter(names.MALFORMED)
        self._connections_dropped = self._counter(names.CONNECTIONS_DROPPED)
        # an alert would miss the first failure: a series that begins with its first event shows no increase for it
        for code in (None, *FailureCode):
            self._jobs.labels(outcome_of(code), code or "ok")
        for refusal in refusal_kinds():
            self._refused.labels(refusal.code)
        for kind in ("idle", "refused"):
            self._connections_dropped.labels(kind)

    def attach(self, service: JobService) -> None:
        """Export the state of `service`, read at each scrape."""
        self.registry.register(_ServiceCollector(service))

    def job_taken(self) -> None:
        """Count a job that the service accepted."""
        self._asked.inc()

    def store_committed(self, seconds: float) -> None:
        """Count a commit of the job store; safe to call from any thread."""
        self._commits.observe(seconds)

    def lease_confirmed(self, seconds: float) -> None:
        """Count a write of a lease that the broker of the cluster has confirmed."""
        self._leases.observe(seconds)

    def job_refused(self, code: str) -> None:
        """Count a request to run a job that was refused, by HTTP layer or service."""
        self._asked.inc()
        self._refused.labels(code).inc()

    def job_finished(self, record: JobRecord) -> None:
        """Count a finished job; the callback ``on_finished`` of `JobService`."""
        if record.verdict is not None:
            self._count(record.verdict)

    def malformed_request(self) -> None:
        """Count a request that is not valid HTTP."""
        self._malformed.inc()

    def connection_dropped(self, kind: str) -> None:
        """Count a connection that was closed at MAX_CONNECTIONS: ``idle`` or ``refused``."""
        self._connections_dropped.labels(kind).inc()

    def request_served(self, handler: RequestHandler, seconds: float) -> None:
        """Count an HTTP request.

        The handler's class is the label, not the URL: URLs hold ids, and each value of a label is a time series.
        """
        kind = type(handler)
        known = handler.request.method in handler.SUPPORTED_METHODS
        method = handler.request.method if known else "other"
        self._requests.labels(method, f"{kind.__module__}.{kind.__name__}", handler.get_status()).observe(seconds)

    def _count(self, verdict: Verdict) -> None:
        outcome = outcome_of(verdict.code)
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

    def _counter(self, name: MetricName) -> Counter:
        return Counter(name.stem, name.text, name.labels, registry=self.registry)

    def _histogram(self, name: MetricName, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name.stem, name.text, name.labels, buckets=buckets, registry=self.registry)


def outcome_of(code: FailureCode | None) -> str:
    """Return ``succeeded``, ``timeout``, ``cancelled`` or ``failed``."""
    match code:
        case None:
            return "succeeded"
        case FailureCode.TIMEOUT:
            return "timeout"
        case FailureCode.CANCELLED:
            return "cancelled"
        case _:
            return "failed"


class _ServiceCollector(Collector):
    """Reads the state of the service at each scrape, instead of at each change."""

    def __init__(self, service: JobService) -> None:
        self._service = service

    def collect(self) -> Iterable[Metric]:
        status = self._service.status()
        running = len(self._service.running())
        yield _family(names.JOBS_LIVE, running + len(self._service.queued()))
        yield from _service_metrics(status)
        yield _family(names.KERNELS_RUNNING, {("transform",): running})
        yield from _kernel_metrics(status)
        yield from _outbox_metrics(status)
        yield from _disk_metrics(status, self._service.settings.min_free_disk_bytes)
        yield from _sandbox_metrics(status)
        yield from _cluster_metrics(status)

    def describe(self) -> Iterable[Metric]:
        # the service may not have a state yet when this is registered
        return ()


def _service_metrics(status: ServiceStatus) -> Iterator[Metric]:
    yield _family(names.HEALTHY, int(status.healthy))
    yield _family(names.PAUSED, int(status.paused))
    yield _family(names.QUEUE_DEPTH, status.queue_size)
    yield _family(names.QUEUE_CAPACITY, status.max_queue_size)
    yield _family(names.JOB_ATTEMPTS, {(attempt,): count for attempt, count in status.counters.attempts.items()})
    yield _family(names.JOBS_RECOVERED, {(end,): count for end, count in status.counters.recovered.items()})
    yield _family(names.SLOTS, status.slots)
    yield _family(names.SLOTS_BUSY, status.busy_slots)
    if status.internal_s3 is not None:
        yield _family(names.INTERNAL_S3_UP, int(bool(status.internal_s3.get("healthy"))))
        yield _family(names.INTERNAL_S3_RESTARTS, _number(status.internal_s3.get("restarts")))
    yield _family(names.BUILD, {(VERSION,): 1})


def _kernel_metrics(status: ServiceStatus) -> Iterator[Metric]:
    if "ready_kernels" not in status.details:  # a member of a cluster that runs no jobs: no alarm about its launcher
        return
    ready, fork_server = status.details.get("ready_kernels", {}), status.details.get("fork_server", {})
    yield _family(names.READY_KERNELS, _number(ready.get("ready")))
    yield _family(names.STARTING_KERNELS, _number(ready.get("starting")))
    yield _family(names.CLAIMS, {("hit",): _number(ready.get("hits")), ("miss",): _number(ready.get("misses"))})
    started, plain = _number(ready.get("started")), _number(ready.get("plain_starts"))
    yield _family(names.KERNEL_STARTS, {("fork",): started - plain, ("plain",): plain})
    yield _family(names.KERNEL_START_FAILURES, _number(ready.get("start_failures")))
    yield _family(names.HELD_KERNELS, _number(status.details.get("kernels", {}).get("held")))
    yield _family(names.PERSONAL_KERNELS, _number(status.details.get("kernels", {}).get("personal")))
    yield _family(names.KERNELS_DISCARDED, _number(ready.get("discarded")))
    launcher = status.details.get("launcher", {})
    yield _family(names.LAUNCHER_UP, int(bool(launcher.get("up"))))
    yield _family(names.LAUNCHER_RESTARTS, _number(launcher.get("restarts")))
    if fork_server.get("state") != "off":  # no alarm where it is switched off
        yield _family(names.FORK_SERVER_UP, int(fork_server.get("state") == "ready"))
    yield _family(names.FORK_SERVER_RESTARTS, _number(fork_server.get("restarts")))


def _outbox_metrics(status: ServiceStatus) -> Iterator[Metric]:
    outbox = status.details.get("outbox", {})
    yield _family(names.OUTBOX_JOBS, _number(outbox.get("jobs")))
    yield _family(names.OUTBOX_BYTES, _number(outbox.get("bytes")))
    yield _family(names.OUTBOX_OLDEST, _number(outbox.get("oldest_seconds")))
    yield _family(names.DELIVERY_RETRIES, _number(outbox.get("retries")))


def _disk_metrics(status: ServiceStatus, floor_bytes: int) -> Iterator[Metric]:
    disk = status.details.get("disk", {})
    for name, member in ((names.DISK_FREE, "free_bytes"), (names.INODES_FREE, "free_inodes")):
        if disk.get(member) is not None:
            yield _family(name, _number(disk[member]))
    yield _family(names.DISK_FLOOR, floor_bytes)


def _sandbox_metrics(status: ServiceStatus) -> Iterator[Metric]:
    sandbox = status.details.get("sandbox", {})
    on = sorted(entry["layer"] for entry in sandbox.get("layers") or () if entry["state"] == "on")
    has_root = str(bool(sandbox.get("gateway_has_root"))).lower()
    yield _family(names.SANDBOX, {(str(sandbox.get("tier", "")), ",".join(on), has_root): 1})


def _cluster_metrics(status: ServiceStatus) -> Iterator[Metric]:
    cluster = status.details.get("cluster")
    if cluster is None:
        return
    hosts = {(each["name"],): each for each in cluster["members"] if each["slots"]}
    yield _family(names.HOSTS, len(hosts))
    yield _family(names.HOST_SLOTS, {name: _number(each["slots"]) for name, each in hosts.items()})
    yield _family(names.HOST_BUSY, {name: _number(each["busy"]) for name, each in hosts.items()})
    yield _family(names.MEMBERS_MISSING, len(cluster["missing"]))
    for name, member in (
        (names.ATTEMPTS, "attempts"),
        (names.FENCED, "fenced"),
        (names.HOSTS_LOST, "hosts_lost"),
        (names.REPUBLISHED, "republished"),
    ):
        yield _family(name, _number(cluster[member]))


def _family(name: MetricName, value: float | dict[tuple[str, ...], float]) -> Metric:
    """Return one metric with its samples: a number, or one for each combination of labels."""
    samples: dict[tuple[str, ...], float] = value if isinstance(value, dict) else {(): value}
    family: CounterMetricFamily | GaugeMetricFamily | InfoMetricFamily
    if name.kind == "info":
        family = InfoMetricFamily(name.stem, name.text)
        for labels in samples:
            family.add_metric([], dict(zip(name.labels, labels, strict=True)))
        return family
    kind = CounterMetricFamily if name.kind == "counter" else GaugeMetricFamily
    family = kind(name.stem, name.text, labels=name.labels)
    for labels, number in samples.items():
        family.add_metric(labels, number)
    return family


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
