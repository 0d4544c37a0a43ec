"""The routes about the gateway itself: root, API description, its page, and metrics."""

from __future__ import annotations

from prometheus_client.exposition import choose_encoder

from gateway import __version__
from gateway.http.answers import RootAnswer
from gateway.http.base import BaseHandler

LINKS = {
    "docs": "/docs",
    "openapi": "/openapi.json",
    "status": "/v1/status",
    "metrics": "/metrics",
    "execute": "/v1/execute",
}


class RootHandler(BaseHandler):
    """Tells a stranger what answers here."""

    is_open = True

    def get(self) -> None:
        """Name the other routes."""
        self.answer(RootAnswer(name="transform-gateway", version=__version__, links=LINKS).body())

    head = get


class OpenApiHandler(BaseHandler):
    """Sends the API description."""

    is_open = True

    def get(self) -> None:
        """Send it; made once."""
        self.finish(self.context.description.openapi)

    head = get


class DocsHandler(BaseHandler):
    """Sends the API description as a page."""

    is_open = True

    def get(self) -> None:
        """Send it; it loads nothing from anywhere and runs no script."""
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
        self.finish(self.context.description.page)

    head = get


class MetricsHandler(BaseHandler):
    """Sends the metrics, in the text form or in that of OpenMetrics."""

    is_open = True

    def get(self) -> None:
        """Collect and send."""
        encode, content_type = choose_encoder(self.request.headers.get("Accept", ""))
        self.set_header("Content-Type", content_type)
        self.finish(encode(self.context.metrics.registry))

    head = get
