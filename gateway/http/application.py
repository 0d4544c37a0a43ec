"""The Tornado application: routes and access log."""

from __future__ import annotations

import logging
import re

from tornado.log import gen_log
from tornado.web import Application, RequestHandler

from gateway.http.base import BaseHandler, NotFoundHandler
from gateway.http.context import Context
from gateway.http.guard import Guard
from gateway.http.openapi import describe
from gateway.http.routes import ROUTES
from gateway.jobs.service import JobService
from gateway.metrics import Metrics
from gateway.settings import Settings

access_log = logging.getLogger("gateway.access")


def make_app(
    service: JobService, settings: Settings, metrics: Metrics | None = None, local_token: str = ""
) -> Application:
    """Return the application, to be served by `gateway.http.server.make_server`.

    `metrics` is the one that `service` reports its finished jobs to, `local_token` that of `gateway.local_access`.
    """
    # at info it quotes malformed headers, and one of them may be an Authorization with the token in it
    gen_log.setLevel(logging.WARNING)
    metrics = metrics or Metrics()
    metrics.attach(service)
    context = Context(service, settings, metrics, Guard(settings, local_token), describe(ROUTES))
    arguments = {"context": context}
    paths = dict.fromkeys((route.path, route.handler) for route in ROUTES)
    return Application(
        [(_pattern(path), handler, arguments) for path, handler in paths],
        default_handler_class=NotFoundHandler,
        default_handler_args=arguments,
        log_function=log_request,
    )


def log_request(handler: RequestHandler) -> None:
    """Write one line for a request: never its query string or headers, which may hold secrets."""
    request = handler.request
    status, seconds = handler.get_status(), request.request_time()
    call_id = getattr(handler, "call_id", "-")
    trace = getattr(handler, "trace_parent", None) or "-"
    path = re.sub(r"[^\x21-\x7e]", "?", request.path)[:200]
    extra = {"call_id": call_id, "trace_parent": trace, "status": status, "seconds": round(seconds, 4)}
    access_log.log(
        logging.WARNING if status >= 500 else logging.INFO,
        "%s %s %d %.1f ms from %s call=%s trace=%s",
        request.method,
        path,
        status,
        1000 * seconds,
        request.remote_ip,
        call_id,
        trace,
        extra=extra,
    )
    if isinstance(handler, BaseHandler):
        handler.context.metrics.request_served(handler, seconds)


def _pattern(path: str) -> str:
    """Return the regular expression of a path such as ``/v1/results/{request_id}/{what}``."""
    named = {"what": "(output|manifest|events)"}
    return re.sub(r"{(\w+)}", lambda match: named.get(match[1], "([^/]+)"), path)
