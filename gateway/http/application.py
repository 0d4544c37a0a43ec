"""The Tornado application of the API."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from tornado.web import Application

from gateway.core.settings import Settings
from gateway.http.access.auth import Guard
from gateway.http.access.tokens import Token, TokenKind
from gateway.http.base_handler.application import application_of
from gateway.http.base_handler.context import Context, Description
from gateway.http.base_handler.handler import BaseHandler
from gateway.http.openapi import describe
from gateway.http.route import Route
from gateway.http.routes import MEMBER_ROUTES, PARCEL_ROUTES, ROUTES
from gateway.jobs.refusal_log import RefusalLog
from gateway.jobs.service import JobService
from gateway.telemetry.metrics import Metrics


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
    metrics = metrics or Metrics()
    if guard is None:
        guard = Guard(settings, [Token(None, TokenKind.ADMIN, settings.auth_token)] if settings.auth_token else [])
    context = Context(service, settings, metrics, guard, _description(routes), refusals)
    queries: dict[tuple[str, type[BaseHandler]], list[str]] = {}
    for route in routes:
        queries.setdefault((route.path, route.handler), []).extend(route.query)
    return application_of(context, [(path, handler, names) for (path, handler), names in queries.items()])


def _description(routes: Sequence[Route]) -> Callable[[], Description]:
    # made at the first request: it takes 60 ms, and most gateways never send it
    return cache(lambda: describe([route for route in routes if route not in MEMBER_ROUTES + PARCEL_ROUTES]))
