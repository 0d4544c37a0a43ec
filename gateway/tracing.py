"""Traces for OpenTelemetry: one span a job with a child for each stage; off unless asked for (``ENABLE_TRACING``).

Spans are made when a job is over, from the same verdict that metrics and log line are made from; that takes 0.2 ms. A
thread of the SDK exports them in batches; what cannot be exported is dropped, and nobody waits for it. Where
they go stands in the standard variables: ``OTEL_EXPORTER_OTLP_ENDPOINT``, ``OTEL_EXPORTER_OTLP_HEADERS``,
``OTEL_SERVICE_NAME``, ``OTEL_TRACES_SAMPLER`` and their kin.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway import __version__
from gateway.errors import ConfigurationError
from gateway.metrics import outcome_of

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Tracer

    from gateway.jobs.model import Verdict
    from gateway.jobs.store import JobRecord

log = logging.getLogger(__name__)

FLUSH_SECONDS = 5.0
"""How long the end of the gateway waits for the last spans to be taken; a collector that is down costs no more."""

INSIDE_EXECUTE = ("read", "import", "transform", "write")


@dataclass(frozen=True, slots=True)
class StageSpan:
    """When one stage ran, in seconds since the epoch; `parent` is the stage that it is a part of."""

    name: str
    begin: float
    end: float
    parent: str | None = None


class JobTracing:
    """Makes and exports the spans of finished jobs.

    Raises
    ------
    ConfigurationError
        The extra `otel` is not installed.
    """

    def __init__(self) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise ConfigurationError(
                f"ENABLE_TRACING (--enable-tracing) needs the extra otel, and {error.name} is missing: "
                "pip install 'transform-gateway[otel]'"
            ) from None
        ours = Resource({"service.name": "transform-gateway", "service.version": __version__})
        # our own flush has a deadline; the one that the SDK would do at exit has none
        self._provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer: Tracer = self._provider.get_tracer("transform-gateway", __version__)

    def job_finished(self, record: JobRecord) -> None:
        """Make the spans of a finished job and hand them to the exporting thread; never blocks."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        verdict = record.verdict
        if verdict is None or record.finished_at is None:
            return
        parent = TraceContextTextMapPropagator().extract({"traceparent": record.trace_parent or ""})
        job = self._tracer.start_span(
            "job", parent, SpanKind.SERVER, _attributes(record, verdict), start_time=_nanoseconds(record.created_at)
        )
        if not verdict.ok:
            # the code only: a message may quote a user's data
            job.set_status(Status(StatusCode.ERROR, str(verdict.code)))
        contexts: dict[str | None, Context] = {None: set_span_in_context(job)}
        for stage in lay_out(verdict.stages_seconds, record.created_at, record.started_at, record.finished_at):
            span = self._tracer.start_span(stage.name, contexts[stage.parent], start_time=_nanoseconds(stage.begin))
            contexts[stage.name] = set_span_in_context(span)
            span.end(_nanoseconds(stage.end))
        job.end(_nanoseconds(record.finished_at))

    def close(self) -> None:
        """Export what is left, within `FLUSH_SECONDS`. Blocks that long at most."""
        # a thread that may be left behind: shutdown of the SDK waits for a collector that does not answer
        flush = threading.Thread(target=self._provider.shutdown, name="traces-flush", daemon=True)
        flush.start()
        flush.join(FLUSH_SECONDS)
        if flush.is_alive():
            log.warning("the last traces could not be exported within %g s", FLUSH_SECONDS)


def lay_out(stages: dict[str, float], created: float, started: float | None, finished: float) -> list[StageSpan]:
    """Return when each stage ran, from how long each took; all times in seconds, `created` and so on since the epoch.

    Fetching begins as soon as the job is taken, while it may still wait for a slot; claim, execute and kill follow one
    another from when both are done; delivery is the end of the job. Stages inside ``execute`` come before it ends.
    """
    spans: list[StageSpan] = []
    after_queue = started if started is not None else created + stages.get("queue", 0.0)
    if "queue" in stages:
        spans.append(StageSpan("queue", created, after_queue))
    now = after_queue
    if "fetch" in stages:
        spans.append(StageSpan("fetch", created, created + stages["fetch"]))
        now = max(now, created + stages["fetch"])
    for name in ("claim", "execute", "kill"):
        if name in stages:
            spans.append(StageSpan(name, now, now + stages[name]))
            now += stages[name]
    for execute in [span for span in spans if span.name == "execute"]:
        begin = execute.end - sum(stages.get(name, 0.0) for name in INSIDE_EXECUTE)
        for name in INSIDE_EXECUTE:
            if name in stages:
                spans.append(StageSpan(name, begin, begin + stages[name], "execute"))
                begin += stages[name]
    if "deliver" in stages:
        spans.append(StageSpan("deliver", finished - stages["deliver"], finished))
    return spans


def _attributes(record: JobRecord, verdict: Verdict) -> dict[str, str | int | float]:
    found: dict[str, str | int | float | None] = {
        "job.request_id": str(record.request_id),
        "job.execution_id": record.execution_id,
        "job.call_id": record.call_id,
        "job.form": record.job_form,
        "job.outcome": outcome_of(verdict.code),
        "job.code": str(verdict.code or "ok"),
        "job.exit_code": verdict.exit_code,
        "job.bytes_in": verdict.bytes_in,
        "job.bytes_out": verdict.output.output_bytes if verdict.output else 0,
        "job.rows": verdict.output.rows if verdict.output else 0,
        "job.peak_memory_bytes": verdict.peak_memory_bytes,
    }
    return {name: value for name, value in found.items() if value is not None}


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
