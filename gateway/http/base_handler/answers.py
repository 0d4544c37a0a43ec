"""The responses of all handlers: headers, ids, JSON, refusals, and the log line of a failure."""

from __future__ import annotations

import json
import logging
import re
import uuid
from types import TracebackType
from typing import Any

from tornado.web import HTTPError, RequestHandler

from gateway.core.errors import BadRequest, GatewayError, InsufficientScope, MethodNotAllowed
from gateway.core.version import VERSION
from gateway.storage.parcels import ROUTE

log = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = 5

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_ID = re.compile(r"[A-Za-z0-9._:+/=@-]{1,128}")
_TRACE_PARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


class AnsweringHandler(RequestHandler):
    """Answers requests.

    Attributes
    ----------
    call_id : str
        ``X-Request-Id`` of the caller, or one of our own.
    trace_parent : str or None
        The caller's W3C ``traceparent``.
    client_disconnected : bool
        Whether nothing can be sent any more.
    """

    client_disconnected = False
    trace_parent: str | None
    call_id: str

    def set_default_headers(self) -> None:
        # Tornado calls this before `initialize` and again before error pages
        headers = self.request.headers
        given = headers.get("X-Request-Id", "")
        self.call_id = given if _ID.fullmatch(given) else getattr(self, "call_id", "") or uuid.uuid4().hex
        parent = headers.get("traceparent", "").strip()
        self.trace_parent = parent if _TRACE_PARENT.fullmatch(parent) else None
        self.set_header("Server", "transform-gateway")
        self.set_header("X-Gateway-Version", VERSION)
        self.set_header("Content-Type", "application/json")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Request-Id", self.call_id)
        if self.trace_parent:
            self.set_header("traceparent", self.trace_parent)

    def compute_etag(self) -> None:
        """Return None: a hash over a result of gigabytes would cost more than any cache saves."""

    @classmethod
    def allowed_methods(cls) -> tuple[str, ...]:
        """Return the methods of this route."""
        return tuple(m for m in METHODS if getattr(cls, m.lower()) is not getattr(RequestHandler, m.lower()))

    def respond(self, body: dict[str, Any], status: int = 200) -> None:
        """Send a JSON object, unless the client has disconnected."""
        if self.client_disconnected:
            return
        self.set_status(status)
        if status == 503:
            self.set_header("Retry-After", RETRY_AFTER_SECONDS)
        self.finish(self._encode(body))

    def send_refusal(self, refusal: GatewayError, *, close: bool = False) -> None:
        """Respond with an error; `close` announces that the connection closes, because the body was not read."""
        if self.client_disconnected or self._finished:
            return
        self.clear()
        self._set_error(refusal)
        if close:
            self.set_header("Connection", "close")
        self.finish(self._encode(refusal.body()))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs["exc_info"][1] if "exc_info" in kwargs else None
        refusal = error if isinstance(error, GatewayError) else _generic(status_code, self.request.method or "")
        self._set_error(refusal)
        self.finish(self._encode(refusal.body()))

    def log_exception(
        self, typ: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None
    ) -> None:
        # refusals are not logged, and never the query string, which Tornado would log
        if isinstance(value, HTTPError | GatewayError):
            return
        if typ is not None and value is not None:
            log.error(
                "%s %s failed (call %s)",
                self.request.method,
                shown_path(self.request.path),
                self.call_id,
                exc_info=(typ, value, tb),
            )

    def _set_error(self, refusal: GatewayError) -> None:
        self.set_status(refusal.status)
        if refusal.status == 401:
            self.set_header("WWW-Authenticate", "Bearer")
        if isinstance(refusal, InsufficientScope):
            self.set_header("WWW-Authenticate", 'Bearer error="insufficient_scope"')  # RFC 6750, section 3.1
        if refusal.status == 405:
            self.set_header("Allow", ", ".join(refusal.details.get("allowed", self.allowed_methods())))
        if refusal.status == 503:
            self.set_header("Retry-After", RETRY_AFTER_SECONDS)

    @staticmethod
    def _encode(body: dict[str, Any]) -> bytes:
        # a lone surrogate in a user's message must not turn a response into a failure
        return json.dumps(body, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace") + b"\n"


def shown_path(path: str) -> str:
    """Return a path for logs: without the token of a parcel, and as one word of bounded length."""
    if path.startswith(ROUTE):
        path = f"{ROUTE}..."
    return re.sub(r"[^\x21-\x7e]", "?", path)[:200]


def _generic(status: int, method: str) -> GatewayError:
    if status == 405:
        return MethodNotAllowed(f"the method {method[:20]} is not accepted here")
    if status == 400:  # the only error of this status that Tornado raises here
        return BadRequest("the path or the query of the URL is not valid UTF-8 when its percent-escapes are decoded")
    return GatewayError("the gateway itself failed; see its log")
