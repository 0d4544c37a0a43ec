"""What every route has in common: checks before the body is read, answers in JSON, ids, and an orderly end.

All handlers stream their body (`stream_request_body`), also those that need none: only so does `prepare` run before
the first byte of it is read, and only so can a request be refused without reading 64 MB first.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import uuid
from collections.abc import Callable
from http.client import responses
from types import TracebackType
from typing import Any, ClassVar, TypeVar

from tornado.web import HTTPError, RequestHandler, stream_request_body

from gateway.errors import BadRequest, GatewayError, MethodNotAllowed, NotFound, UnsupportedMediaType
from gateway.http.context import Context
from gateway.http.intake import Intake, JsonBody, NoBody, too_large
from gateway.http.linger import LINGER_BYTES, answer_and_linger

log = logging.getLogger(__name__)

CLIENT_CLOSED_REQUEST = 499
RETRY_AFTER_SECONDS = 5
ON_LOOP_BYTES = 262_144
"""A larger JSON body is parsed in a thread: 1 MB of small objects takes some 40 ms, and others would wait for it."""

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
T = TypeVar("T")
_OUR_CODES = {400: BadRequest, 404: NotFound, 405: MethodNotAllowed, 415: UnsupportedMediaType}
_ID = re.compile(r"[A-Za-z0-9._:+/=@-]{1,128}")
_TRACE_PARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


@stream_request_body
class BaseHandler(RequestHandler):
    """The common part of all routes.

    Attributes
    ----------
    is_open : bool
        Whether the route answers without a token.
    takes_local_token : bool
        Whether the token in the state directory serves as well.
    """

    is_open: ClassVar[bool] = False
    takes_local_token: ClassVar[bool] = False
    context: Context
    intake: Intake
    trace_parent: str | None
    call_id: str

    def initialize(self, context: Context) -> None:
        """Take what the application shares. Called by Tornado for each request."""
        self.context = context
        self.intake = NoBody()
        self.gone = False

    def set_default_headers(self) -> None:
        """Put the headers that every answer has. Tornado calls this before `initialize` and before error pages."""
        headers = self.request.headers
        given = headers.get("X-Request-Id", "")
        self.call_id = given if _ID.fullmatch(given) else getattr(self, "call_id", "") or uuid.uuid4().hex
        parent = headers.get("traceparent", "").strip()
        self.trace_parent = parent if _TRACE_PARENT.fullmatch(parent) else None
        self.set_header("Server", "transform-gateway")
        self.set_header("Content-Type", "application/json")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Request-Id", self.call_id)
        if self.trace_parent:
            self.set_header("traceparent", self.trace_parent)

    def compute_etag(self) -> None:
        """Nothing here is worth caching, and hashing a result of gigabytes less so."""

    # --- before the body

    def prepare(self) -> None:
        """Refuse, on headers alone, what need not be read; must not wait, see `detach` in Tornado."""
        try:
            self._admit()
        except GatewayError as refusal:
            if not self._expects_body():
                self.send_refusal(refusal, close=True)
            else:
                self._refuse_unread(refusal)

    def open_intake(self) -> Intake:
        """Return where this request's body goes; the place to look at the Content-Type."""
        return NoBody()

    def json_intake(self) -> JsonBody:
        """Return an intake for a JSON body, or refuse another type.

        Raises
        ------
        UnsupportedMediaType
        """
        # a browser sends other types across origins without asking first; this one it does not
        kind = self.request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and not re.fullmatch(r"application/[a-z0-9.-]+\+json", kind):
            raise UnsupportedMediaType("expected `Content-Type: application/json`")
        return JsonBody(self.context.settings.max_body_bytes)

    def _admit(self) -> None:
        if not self.is_open:
            self.context.guard.check(self.request, local=self.takes_local_token)
        allowed = self.allowed_methods()
        if self.request.method not in allowed:
            raise MethodNotAllowed(f"this route takes {', '.join(allowed)}", allowed=list(allowed))
        self._check_framing()
        self.intake = self.open_intake()
        length = self.request.headers.get("Content-Length")
        if length is not None and int(length.partition(",")[0]) > self.intake.cap_bytes:
            raise too_large(self.intake.cap_bytes)

    def _check_framing(self) -> None:
        """Refuse in words what Tornado would refuse with a bare status line."""
        headers = self.request.headers
        lengths = {part.strip() for value in headers.get_list("Content-Length") for part in value.split(",")}
        if lengths and (len(lengths) > 1 or not re.fullmatch(r"[0-9]{1,18}", next(iter(lengths)))):
            raise BadRequest("expected one Content-Length that is a whole number")
        coding = headers.get("Transfer-Encoding")
        if coding is not None and (lengths or coding.strip().lower() != "chunked"):
            raise BadRequest("expected either Content-Length or `Transfer-Encoding: chunked`")
        if headers.get("Content-Encoding", "identity").strip().lower() not in ("identity", ""):
            raise UnsupportedMediaType("compressed request bodies are not taken; leave out Content-Encoding")

    @classmethod
    def allowed_methods(cls) -> tuple[str, ...]:
        """Return the methods that this route has."""
        return tuple(m for m in METHODS if getattr(cls, m.lower()) is not getattr(RequestHandler, m.lower()))

    def _expects_body(self) -> bool:
        headers = self.request.headers
        return headers.get("Content-Length", "0").strip() != "0" or "Transfer-Encoding" in headers

    def _refuse_unread(self, refusal: GatewayError) -> None:
        """Answer and close without reading the body; see `gateway.http.linger`."""
        self.clear()
        self._set_error(refusal)
        body = self._encode(refusal.body())
        self.set_header("Content-Length", len(body))
        self.set_header("Connection", "close")
        status = self.get_status()
        head = f"HTTP/1.1 {status} {responses.get(status, 'Unknown')}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in self._headers.get_all()) + "\r\n"
        stream = self.detach()
        answer_and_linger(stream, head.encode("latin-1") + (b"" if self.request.method == "HEAD" else body))
        self.application.log_request(self)

    # --- the body

    async def data_received(self, chunk: bytes) -> None:
        """Take the next piece of the body; Tornado reads no further until this returns."""
        if self._finished:
            return
        try:
            await self.intake.feed(chunk)
        except GatewayError as refusal:
            self._refuse_midway(refusal)

    def _refuse_midway(self, refusal: GatewayError) -> None:
        length = self.request.headers.get("Content-Length", "")
        if length.isdigit() and int(length) <= LINGER_BYTES:
            # little is left to come: reading it all lets the caller read the answer
            self._close_intake()
            self.intake = _Failed(refusal)
        else:
            self.send_refusal(refusal, close=True)

    def check_intake(self) -> None:
        """Raise what the body was found guilty of while it was read."""
        if isinstance(self.intake, _Failed):
            raise self.intake.refusal

    def json_value(self) -> dict[str, Any]:
        """Return the JSON object of a body that `json_intake` took; {} for another.

        Raises
        ------
        BadRequest
        """
        return self.intake.value() if isinstance(self.intake, JsonBody) else {}

    async def off_loop(self, read: Callable[[], T]) -> T:
        """Return what `read` makes of the body: in a thread where it is so large that others would wait for it.

        Parsing holds the interpreter's lock, but gives it up between the objects of a body; only one long text or list
        of numbers is read in one go, at some hundred megabytes a second.
        """
        if self.intake.json_bytes <= ON_LOOP_BYTES:
            return read()
        return await asyncio.to_thread(read)

    def on_connection_close(self) -> None:
        """The caller hung up, while sending or while waiting. Tornado calls this; `on_finish` is not called then."""
        super().on_connection_close()
        self.hung_up()

    def hung_up(self) -> None:
        """Log, once, that the caller did not wait for the answer, and free what the request held."""
        if not self._finished and not self.gone:
            self.gone = True
            self._auto_finish = False  # Tornado would answer into the void, and log the request a second time
            self.set_status(CLIENT_CLOSED_REQUEST, "Client Closed Request")
            self.application.log_request(self)
        self._close_intake()

    def on_finish(self) -> None:
        """Free what the request held."""
        self._close_intake()

    def _close_intake(self) -> None:
        rest = self.intake.close()
        if rest is not None:
            self.context.background(rest)

    # --- answers

    def answer(self, body: dict[str, Any], status: int = 200) -> None:
        """Send a JSON object, unless the caller is gone."""
        if self.gone:
            return
        self.set_status(status)
        if status == 503:
            self.set_header("Retry-After", RETRY_AFTER_SECONDS)
        self.finish(self._encode(body))

    def send_refusal(self, refusal: GatewayError, *, close: bool = False) -> None:
        """Answer with an error; `close` announces the end of the connection, which comes when the body was not read."""
        if self.gone or self._finished:
            return
        self.clear()
        self._set_error(refusal)
        if close:
            self.set_header("Connection", "close")
        self.finish(self._encode(refusal.body()))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Turn whatever ended the request into a JSON error; Tornado's page for errors."""
        error = kwargs["exc_info"][1] if "exc_info" in kwargs else None
        refusal = error if isinstance(error, GatewayError) else _generic(status_code, self.request.method or "")
        self._set_error(refusal)
        self.finish(self._encode(refusal.body()))

    def log_exception(
        self, typ: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Log faults of ours, and nothing for refusals; never the query string, as Tornado would."""
        if isinstance(value, HTTPError | GatewayError):
            return
        if typ is not None and value is not None:
            log.error(
                "%s %s failed (call %s)",
                self.request.method,
                self.request.path,
                self.call_id,
                exc_info=(typ, value, tb),
            )

    def _set_error(self, refusal: GatewayError) -> None:
        self.set_status(refusal.status)
        if refusal.status == 401:
            self.set_header("WWW-Authenticate", "Bearer")
        if refusal.status == 405:
            self.set_header("Allow", ", ".join(refusal.details.get("allowed", self.allowed_methods())))
        if refusal.status == 503:
            self.set_header("Retry-After", RETRY_AFTER_SECONDS)

    @staticmethod
    def _encode(body: dict[str, Any]) -> bytes:
        # a lone surrogate in a user's message must not turn an answer into a failure
        return json.dumps(body, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace") + b"\n"


class _Failed:
    """Stands in for an intake that refused: swallows the rest."""

    cap_bytes = LINGER_BYTES
    json_bytes = 0

    def __init__(self, refusal: GatewayError) -> None:
        self.refusal = refusal

    async def feed(self, chunk: bytes) -> None:
        """Forget it."""

    def close(self) -> None:
        """Nothing is held."""


def _generic(status: int, method: str) -> GatewayError:
    if status == 405:
        return MethodNotAllowed(f"the method {method[:20]} is not taken here")
    kind = _OUR_CODES.get(status, GatewayError)
    text = responses.get(status, "the request failed") if status != 500 else "the gateway itself failed; see its log"
    return kind(text)


class NotFoundHandler(BaseHandler):
    """Answers what no route matches."""

    is_open = True

    def prepare(self) -> None:
        """Refuse, whatever the method."""
        refusal = NotFound(f"there is no route {self.request.path[:200]!r}; see /openapi.json")
        if self._expects_body():
            self._refuse_unread(refusal)
        else:
            self.send_refusal(refusal, close=True)
