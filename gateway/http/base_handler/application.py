"""A Tornado application of some routes, and its access log."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable, Sequence

from tornado.log import gen_log
from tornado.web import Application, RequestHandler

from gateway.http.access.peer_connection import PeerConnection
from gateway.http.base_handler.answers import shown_path
from gateway.http.base_handler.context import Context
from gateway.http.base_handler.handler import BaseHandler, NotFoundHandler

access_log = logging.getLogger("gateway.access")


def application_of(context: Context, paths: Iterable[tuple[str, type[BaseHandler], Sequence[str]]]) -> Application:
    """Return the application, to be served by `gateway.http.server.make_server`.

    Parameters
    ----------
    context : Context
        Of all handlers.
    paths : iterable of (str, type, sequence of str)
        Path as in an API description, its handler, and the names of its query parameters.
    """
    # at level info Tornado quotes malformed headers, and one of them may be an Authorization with the token
    gen_log.setLevel(logging.WARNING)
    context.metrics.attach(context.service)
    arguments = {"context": context}
    return Application(
        [(_pattern(path), handler, arguments | {"query_names": names}) for path, handler, names in paths],
        default_handler_class=NotFoundHandler,
        default_handler_args=arguments,
        log_function=log_request,
    )


def log_request(handler: RequestHandler) -> None:
    """Write one log line for a request, without query string and headers, which may contain secrets."""
    request = handler.request
    status, now = handler.get_status(), time.monotonic()
    seconds = now - getattr(handler, "began_at", now)
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


def _pattern(path: str) -> str:
    """Return the regular expression of a path such as ``/v1/results/{request_id}/{what}``."""
    named = {"what": "(output|manifest|events)"}
    return re.sub(r"{(\w+)}", lambda match: named.get(match[1], "([^/]+)"), path)
