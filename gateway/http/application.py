"""The Tornado application: routes and access log."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from functools import cache

from tornado.log import gen_log
from tornado.web import Application, RequestHandler

from gateway.core.settings import Settings
from gateway.http.access.auth import Guard
from gateway.http.access.peer_connection import PeerConnection
from gateway.http.access.tokens import Token, TokenKind
from gateway.http.base_handler.context import Context, Description
from gateway.http.base_handler.handler import BaseHandler, NotFoundHandler, shown_path
from gateway.http.openapi import describe
from gateway.http.routes import MEMBER_ROUTES, PARCEL_ROUTES, ROUTES, Route
from gateway.jobs.refusal_log import RefusalLog
from gateway.jobs.service import JobService
from gateway.telemetry.metrics import Metrics

access_log = logging.getLogger("gateway.access")


def make_app(
    service: JobService,
    settings: Settings,
    metrics: Metrics | None = None,
    guard: Guard | None = None,
    refusals: RefusalLog | None = None,
    routes: Sequence[Route] = ROUTES,
) -> Application:
    """Return the application, to be served by `gateway.http.server.make_server`.

    Parameters
    ----------
    service : JobService
        Runs the jobs.
    settings : Settings
        Of the gateway.
    metrics : Metrics, optional
        To which `service` reports its finished jobs.
    guard : Guard, optional
        Checks tokens; by default that of `Settings.auth_token`.
    refusals : RefusalLog, optional
        Writes the reason of a refused job to its events URL.
    routes : sequence of Route, optional
        All by default.
    """
    # at level info Tornado quotes malformed headers, and one of them may be an Authorization with the token
    gen_log.setLevel(logging.WARNING)
    metrics = metrics or Metrics()
    metrics.attach(service)
    if guard is None:
        guard = Guard(settings, [Token(None, TokenKind.ADMIN, settings.auth_token)] if settings.auth_token else [])
    context = Context(service, settings, metrics, guard, _description(routes), refusals)
    arguments = {"context": context}
    queries: dict[tuple[str, type[BaseHandler]], list[str]] = {}
    for route in routes:
        queries.setdefault((route.path, route.handler), []).extend(route.query)
    return Application(
        [(_pattern(path), handler, arguments | {"query_names": names}) for (path, handler), names in queries.items()],
        default_handler_class=NotFoundHandler,
        default_handler_args=arguments,
        log_function=log_request,
    )


def log_request(handler: RequestHandler) -> None:
    """Write one log line for a request, without query string and headers, which may contain secrets."""
    request = handler.request
    status, seconds = handler.get_status(), request.request_time()
    call_id = getattr(handler, "call_id", "-")
    trace = getattr(handler, "trace_parent", None) or "-"
    extra = {"call_id": call_id, "trace_parent": trace, "status": status, "seconds": round(seconds, 4)}
    # the asking member logs a member's question, if it comes from a caller
    usual = logging.DEBUG if isinstance(request.connection, PeerConnection) else logging.INFO
    access_log.log(
        logging.WARNING if status >= 500 else usual,
        "%s %s %d %.1f ms from %s call=%s trace=%s",
        request.method,
        shown_path(request.path),
        status,
        1000 * seconds,
        request.remote_ip,
        call_id,
        trace,
        extra=extra,
    )
    if isinstance(handler, BaseHandler):
        handler.context.metrics.request_served(handler, seconds)


def _description(routes: Sequence[Route]) -> Callable[[], Description]:
    # made at the first request: it takes 60 ms, and most gateways never send it
    return cache(lambda: describe([route for route in routes if route not in MEMBER_ROUTES + PARCEL_ROUTES]))


def _pattern(path: str) -> str:
    """Return the regular expression of a path such as ``/v1/results/{request_id}/{what}``."""
    named = {"what": "(output|manifest|events)"}
    return re.sub(r"{(\w+)}", lambda match: named.get(match[1], "([^/]+)"), path)
