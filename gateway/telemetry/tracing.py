"""Traces for OpenTelemetry (``ENABLE_TRACING``): one span for each job with a child for each stage.

Spans are made of the verdict when a job is finished, which takes 0.2 ms. A thread of the SDK exports them in batches;
spans that cannot be exported are dropped, and no job waits for them. The standard variables configure the export:
``OTEL_EXPORTER_OTLP_ENDPOINT``, ``OTEL_EXPORTER_OTLP_HEADERS``, ``OTEL_SERVICE_NAME``, ``OTEL_TRACES_SAMPLER`` etc.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from gateway.core.errors import ConfigurationError
from gateway.core.version import VERSION
from gateway.telemetry.metrics import outcome_of
from gateway.telemetry.waterfall import lay_out

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Tracer

    from gateway.core.job import Verdict
    from gateway.jobs.store import JobRecord

log = logging.getLogger(__name__)

#: Time that the gateway waits at its end for the export of the last spans, also when the collector is down.
FLUSH_SECONDS = 5.0


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
        ours = Resource({"service.name": "transform-gateway", "service.version": VERSION})
        # our own flush has a deadline; the flush of the SDK at exit has none
        self._provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer: Tracer = self._provider.get_tracer("transform-gateway", VERSION)

    def job_finished(self, record: JobRecord) -> None:
        """Make the spans of a finished job and pass them to the exporting thread; never blocks."""
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
        """Export the remaining spans; blocks for `FLUSH_SECONDS` at most."""
        # a daemon thread that may stay behind: shutdown of the SDK waits for a collector that does not respond
        flush = threading.Thread(target=self._provider.shutdown, name="traces-flush", daemon=True)
        flush.start()
        flush.join(FLUSH_SECONDS)
        if flush.is_alive():
            log.warning("the last traces could not be exported within %g s", FLUSH_SECONDS)


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
