"""Probes and metrics, and the application of a process that has nothing else: one that only runs jobs of a cluster.

It imports none of the API's routes and schemas, which take 5 MiB.
"""

from __future__ import annotations

from prometheus_client.exposition import choose_encoder
from tornado.web import Application

from gateway.core.errors import NotFound
from gateway.core.settings import Settings
from gateway.http.access.auth import Guard
from gateway.http.base_handler.application import application_of
from gateway.http.base_handler.context import Context, Description
from gateway.http.base_handler.handler import BaseHandler
from gateway.jobs.service import JobService
from gateway.telemetry.metrics import Metrics


def make_probes_app(service: JobService, settings: Settings, metrics: Metrics) -> Application:
    """Return the application of a process that accepts no jobs.

    Parameters
    ----------
    service : JobService
        Runs the jobs.
    settings : Settings
        Of the gateway.
    metrics : Metrics
        To which `service` reports its finished jobs.
    """
    context = Context(service, settings, metrics, Guard(settings, []), _no_description, None)
    paths: list[tuple[str, type[BaseHandler]]] = [
        ("/healthz/live", LiveHandler),
        ("/healthz/ready", ReadyHandler),
        ("/metrics", MetricsHandler),
    ]
    return application_of(context, [(path, handler, ()) for path, handler in paths])


class MetricsHandler(BaseHandler):
    """Sends the metrics, in Prometheus' text format or in OpenMetrics."""

    is_open = True

    def get(self) -> None:
        encode, content_type = choose_encoder(self.request.headers.get("Accept", ""))
        self.set_header("Content-Type", content_type)
        self.finish(encode(self.context.metrics.registry))

    head = get


class LiveHandler(BaseHandler):
    """Confirms that the process answers: an orchestrator restarts it when it does not."""

    is_open = True

    def get(self) -> None:
        self.respond({"live": True})

    head = get


class ReadyHandler(BaseHandler):
    """Reports whether jobs are accepted: a load balancer sends them elsewhere while they are not."""

    is_open = True

    def get(self) -> None:
        """Respond with 200 when jobs are accepted, else with 503."""
        ready = self.context.service.status().healthy
        self.respond({"ready": ready}, 200 if ready else 503)

    head = get


def _no_description() -> Description:
    raise NotFound("this process has no API")
