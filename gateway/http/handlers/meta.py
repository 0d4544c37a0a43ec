"""The routes about the gateway itself: API description, its page, packages, metrics, and probes."""

from __future__ import annotations

from prometheus_client.exposition import choose_encoder

from gateway.http.access.tokens import TokenKind
from gateway.http.base_handler.handler import BaseHandler
from gateway.http.schemas.responses import LiveResponse, ReadyResponse, packages_response


class OpenApiHandler(BaseHandler):
    """Sends the API description."""

    is_open = True

    def get(self) -> None:
        self.finish(self.context.description().openapi)

    head = get


class DocsHandler(BaseHandler):
    """Sends the API description as a page without scripts and external files."""

    is_open = True

    def get(self) -> None:
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
        self.finish(self.context.description().page)

    head = get


class MetricsHandler(BaseHandler):
    """Sends the metrics, in Prometheus' text format or in OpenMetrics."""

    is_open = True

    def get(self) -> None:
        encode, content_type = choose_encoder(self.request.headers.get("Accept", ""))
        self.set_header("Content-Type", content_type)
        self.finish(encode(self.context.metrics.registry))

    head = get


class PackagesHandler(BaseHandler):
    """Lists the packages that jobs can import."""

    read_kind = TokenKind.READ

    async def get(self) -> None:
        self.respond(packages_response(await self.context.service.packages()).body())

    head = get


class ReloadPackagesHandler(BaseHandler):
    """Applies added and removed packages to the kernels of later jobs; jobs that run go on."""

    write_kind = TokenKind.ADMIN
    takes_local_token = True

    async def post(self) -> None:
        self.respond(packages_response(await self.context.service.packages(renew=True)).body())


class LiveHandler(BaseHandler):
    """Confirms that the process answers: an orchestrator restarts it when it does not."""

    is_open = True

    def get(self) -> None:
        self.respond(LiveResponse(live=True).body())

    head = get


class ReadyHandler(BaseHandler):
    """Reports whether jobs are accepted: a load balancer sends them elsewhere while they are not."""

    is_open = True

    def get(self) -> None:
        """Respond with 200 when jobs are accepted, else with 503."""
        ready = self.context.service.status().healthy
        self.respond(ReadyResponse(ready=ready).body(), 200 if ready else 503)

    head = get
