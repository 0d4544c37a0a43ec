"""The base of all handlers: checks before the body is read, the body, and clean-up.

All handlers stream their body (`stream_request_body`), also those that need none: only then Tornado calls `prepare`
before it reads the first byte, so a request can be refused without reading 64 MB first.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Collection
from http.client import responses
from typing import Any, ClassVar, TypeVar

from tornado.web import stream_request_body

from gateway.core.errors import (
    BadRequest,
    GatewayError,
    MethodNotAllowed,
    NotFound,
    UnsupportedMediaType,
)
from gateway.core.job import Scope
from gateway.http.access.peer_connection import PeerConnection, is_for_peers
from gateway.http.access.tokens import Token, TokenKind
from gateway.http.base_handler.answers import AnsweringHandler
from gateway.http.base_handler.context import Context
from gateway.http.base_handler.lingering_close import LINGER_BYTES, answer_and_linger
from gateway.http.bodies.receivers import SMALL_BODY_BYTES, BodyReceiver, JsonBody, NoBody, too_large
from gateway.http.schemas.query import check_names

CLIENT_CLOSED_REQUEST = 499

#: A larger JSON body is parsed in a thread: 1 MB of small objects takes some 40 ms, which would delay other requests.
PARSED_ON_LOOP_BYTES = 262_144

T = TypeVar("T")


@stream_request_body
class BaseHandler(AnsweringHandler):
    """Base class of all handlers.

    Attributes
    ----------
    is_open : bool
        Whether the route needs no token.
    read_kind : TokenKind
        Least kind of a token for GET and HEAD.
    write_kind : TokenKind
        The same for other methods.
    takes_local_token : bool
        Whether the token in the pid file is valid as well.
    checks_query : bool
        Whether unknown query parameters are refused, unless the known ``request_id`` names the job: then they may be
        those of a newer caller.
    token : Token
        Of the caller; not set on open routes.
    """

    is_open: ClassVar[bool] = False
    read_kind: ClassVar[TokenKind] = TokenKind.RUN
    write_kind: ClassVar[TokenKind] = TokenKind.RUN
    takes_local_token: ClassVar[bool] = False
    checks_query: ClassVar[bool] = False
    context: Context
    token: Token
    body: BodyReceiver
    began_at: float

    def initialize(self, context: Context, query_names: Collection[str] = ()) -> None:
        self.context = context
        # Tornado's request_time() is by the wall clock, which may jump by hours
        self.began_at = time.monotonic()
        self._query_names = query_names
        self.body = NoBody()

    @property
    def scope(self) -> Scope:
        """The jobs that the caller may see."""
        return self.token.scope

    # --- before the body

    def prepare(self) -> None:
        # not a coroutine: Tornado's `detach` does not allow one
        try:
            self._admit()
        except GatewayError as refusal:
            if not self._expects_body():
                self.send_refusal(refusal, close=True)
            else:
                self._refuse_unread(refusal)

    def body_receiver(self) -> BodyReceiver:
        """Return the receiver of this request's body, by its Content-Type."""
        return NoBody()

    def json_body(self, *, is_small: bool = True) -> JsonBody:
        """Return the receiver of a JSON body.

        Parameters
        ----------
        is_small : bool
            Whether it has `SMALL_BODY_BYTES` at most; otherwise the settings limit it.

        Raises
        ------
        UnsupportedMediaType
            The body has another type.
        """
        # a browser sends some other types to foreign origins without a preflight request, but not this one
        kind = self.request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and not re.fullmatch(r"application/[a-z0-9.-]+\+json", kind):
            raise UnsupportedMediaType("expected `Content-Type: application/json`")
        most_bytes = self.context.settings.max_body_bytes
        return JsonBody(min(SMALL_BODY_BYTES, most_bytes)) if is_small else JsonBody(most_bytes, "MAX_BODY_BYTES")

    def _admit(self) -> None:
        is_of_peer = isinstance(self.request.connection, PeerConnection)
        if is_of_peer and not is_for_peers(getattr(self, (self.request.method or "").lower(), None)):
            raise NotFound("another member of the cluster can only ask about jobs")
        if not self.is_open:
            kind = self.kind_for(self.request.method or "")
            self.token = self.context.guard.check(self.request, kind, takes_local_token=self.takes_local_token)
            self.protect_connection()
        allowed = self.allowed_methods()
        if self.request.method not in allowed:
            raise MethodNotAllowed(f"this route accepts {', '.join(allowed)}", allowed=list(allowed))
        names = self.request.query_arguments
        if self.checks_query and not ("request_id" in names and "request_id" in self._query_names):
            check_names(names, self._query_names)
        self._check_framing()
        self.body = self.body_receiver()
        if self.is_open and isinstance(self.body, NoBody) and self._expects_body():
            # a caller without a token could send one slowly, from as many connections as there may be
            raise BadRequest("this route takes no body")
        length = self.request.headers.get("Content-Length")
        if length is not None and int(length.partition(",")[0]) > self.body.cap_bytes:
            raise too_large(self.body.cap_bytes, self.body.setting)

    def protect_connection(self) -> None:
        """Tell the server that the caller may be here, so that no new connection replaces this one."""
        protect = getattr(self.request.connection, "protect", None)
        if protect is not None:  # there is no server where another member asks
            protect()

    def _check_framing(self) -> None:
        """Refuse, with a message, headers that Tornado would refuse with a bare status line."""
        headers = self.request.headers
        lengths = {part.strip() for value in headers.get_list("Content-Length") for part in value.split(",")}
        if lengths and (len(lengths) > 1 or not re.fullmatch(r"[0-9]{1,18}", next(iter(lengths)))):
            raise BadRequest("expected one Content-Length that is a whole number")
        coding = headers.get("Transfer-Encoding")
        if coding is not None and (lengths or coding.strip().lower() != "chunked"):
            raise BadRequest("expected either Content-Length or `Transfer-Encoding: chunked`")
        if headers.get("Content-Encoding", "identity").strip().lower() not in ("identity", ""):
            raise UnsupportedMediaType("compressed request bodies are not accepted; leave out Content-Encoding")

    @classmethod
    def kind_for(cls, method: str) -> TokenKind:
        """Return the least kind of a token for a method of this route."""
        return cls.read_kind if method in ("GET", "HEAD") else cls.write_kind

    def _expects_body(self) -> bool:
        if isinstance(self.request.connection, PeerConnection):
            return False  # the body has arrived already
        headers = self.request.headers
        return headers.get("Content-Length", "0").strip() != "0" or "Transfer-Encoding" in headers

    def _refuse_unread(self, refusal: GatewayError) -> None:
        """Respond and close without reading the body; see `gateway.http.base_handler.lingering_close`."""
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
        # Tornado reads no further until this returns
        if self._finished:
            return
        try:
            await self.body.feed(chunk)
        except GatewayError as refusal:
            self._refuse_midway(refusal)

    def _refuse_midway(self, refusal: GatewayError) -> None:
        length = self.request.headers.get("Content-Length", "")
        if length.isdigit() and int(length) <= LINGER_BYTES:
            # the rest is small: once all of it is read, the caller can read the response
            self._close_body()
            self.body = _RefusedBody(refusal)
        else:
            self.send_refusal(refusal, close=True)

    def check_body(self) -> None:
        """Raise the refusal of a body that was found wrong while it was read."""
        if isinstance(self.body, _RefusedBody):
            raise self.body.refusal

    def json_value(self) -> dict[str, Any]:
        """Return the JSON object of a body that `json_body` received, else an empty one.

        Raises
        ------
        BadRequest
            The body is not a JSON object.
        """
        return self.body.value() if isinstance(self.body, JsonBody) else {}

    async def run_in_thread_if_large(self, read: Callable[[], T]) -> T:
        """Return the result of `read`, which parses the body; it runs in a thread if it would delay other requests.

        Parsing holds the interpreter's lock but releases it between the objects of a body. A single long text or list
        of numbers is read without a release, at some hundred megabytes a second.
        """
        if self.body.json_bytes <= PARSED_ON_LOOP_BYTES:
            return read()
        return await asyncio.to_thread(read)

    def on_connection_close(self) -> None:
        # Tornado does not call `on_finish` then
        super().on_connection_close()
        self.handle_disconnect()

    def handle_disconnect(self) -> None:
        """Log, once, that the client disconnected before the response, and free the request's resources."""
        if not self._finished and not self.client_disconnected:
            self.client_disconnected = True
            self._auto_finish = False  # Tornado would write to a closed connection and log the request again
            self.set_status(CLIENT_CLOSED_REQUEST, "Client Closed Request")
            self.application.log_request(self)
        self._close_body()

    def on_finish(self) -> None:
        self._close_body()

    def _close_body(self) -> None:
        rest = self.body.close()
        if rest is not None:
            self.context.background(rest)


class _RefusedBody:
    """Drops the rest of a body that was refused."""

    cap_bytes = LINGER_BYTES
    setting = ""
    json_bytes = 0

    def __init__(self, refusal: GatewayError) -> None:
        self.refusal = refusal

    async def feed(self, chunk: bytes) -> None:
        pass

    def close(self) -> None:
        pass


class NotFoundHandler(BaseHandler):
    """Handles requests that match no route."""

    is_open = True

    def prepare(self) -> None:
        refusal = NotFound(f"there is no route {self.request.path[:200]!r}; see /openapi.json")
        if self._expects_body():
            self._refuse_unread(refusal)
        else:
            self.send_refusal(refusal, close=True)
