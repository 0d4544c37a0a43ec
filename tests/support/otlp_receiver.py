"""A collector for tests: takes OTLP over HTTP, decodes it with the protocol's own classes, and keeps the spans."""

from __future__ import annotations

import gzip
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass
class Span:
    """One received span, with the attributes as plain values and times in nanoseconds since the epoch."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    begin: int
    end: int
    status: int
    attributes: dict[str, Any]
    service: str


@dataclass
class OtlpReceiver:
    """Listens on loopback; `hold` makes it take requests and answer none of them until the end."""

    hold: bool = False
    spans: list[Span] = field(default_factory=list)
    raw: bytes = b""
    asked: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> OtlpReceiver:
        receiver = self
        self._release = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.asked.set()
                if receiver.hold:
                    receiver._release.wait()
                    return
                receiver.take(gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def take(self, data: bytes) -> None:
        self.raw += data
        for resource in ExportTraceServiceRequest.FromString(data).resource_spans:
            service = {a.key: a.value.string_value for a in resource.resource.attributes}["service.name"]
            for scope in resource.scope_spans:
                for span in scope.spans:
                    attributes = {a.key: getattr(a.value, str(a.value.WhichOneof("value"))) for a in span.attributes}
                    self.spans.append(
                        Span(
                            span.name,
                            span.trace_id.hex(),
                            span.span_id.hex(),
                            span.parent_span_id.hex(),
                            span.start_time_unix_nano,
                            span.end_time_unix_nano,
                            span.status.code,
                            attributes,
                            service,
                        )
                    )
