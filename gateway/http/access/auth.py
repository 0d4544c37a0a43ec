"""Access control: bearer tokens and, where no token is set, protection against requests from web pages."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable

from tornado.httputil import HTTPServerRequest

from gateway.core.addresses import is_loopback
from gateway.core.errors import Forbidden, InsufficientScope, Unauthorized
from gateway.core.settings import Settings
from gateway.http.access.peer_connection import PeerConnection
from gateway.http.access.tokens import Token, TokenKind

#: The token of every caller where no token is needed.
NO_TOKEN = Token(None, TokenKind.ADMIN, "")

UNSAFE_METHODS = frozenset({"POST", "PUT", "PATCH", "DELETE"})


class Guard:
    """Decides by the headers alone, before the body is read.

    Parameters
    ----------
    settings : Settings
        Whether the gateway listens on loopback only.
    tokens : iterable of Token
        The accepted tokens. Without any, no token is needed. Such a gateway trusts every program on this machine,
        and a browser runs the code of foreign web pages, so requests of web pages are refused.
    local_token : str, optional
        A second token for calls of `check` with `takes_local_token`; see `gateway.process.pidfile`.
    """

    def __init__(self, settings: Settings, tokens: Iterable[Token] = (), local_token: str = "") -> None:
        self._source = "AUTH_TOKEN_FILE" if settings.auth_token_file else "AUTH_TOKEN"
        self._local = [Token(None, TokenKind.ADMIN, local_token)] if local_token else []
        self._loopback = is_loopback(settings.host)
        self._host = settings.host.lower()
        self.replace(tokens)

    def replace(self, tokens: Iterable[Token]) -> None:
        """Accept these tokens instead of the earlier ones, from the next request on."""
        self._tokens = [*tokens]

    @property
    def has_names(self) -> bool:
        """Whether several callers, who must not see the jobs of each other, share this gateway."""
        return any(token.name is not None for token in self._tokens)

    def find(self, request: HTTPServerRequest) -> Token | None:
        """Return the caller's token; None if it has no valid one."""
        try:
            return self._token_of(request)
        except Unauthorized:
            return None

    def check(
        self, request: HTTPServerRequest, kind: TokenKind = TokenKind.RUN, *, takes_local_token: bool = False
    ) -> Token:
        """Return the caller's token, if it permits the request.

        Parameters
        ----------
        request : HTTPServerRequest
            With its headers.
        kind : TokenKind
            The least that the token must permit.
        takes_local_token : bool
            Whether the token in the pid file is valid as well.

        Raises
        ------
        Unauthorized
            There is no valid token.
        InsufficientScope
            The token permits less.
        Forbidden
            No token is needed, and the request came from a web page.
        """
        token = self._token_of(request, takes_local_token=takes_local_token)
        if token.kind < kind:
            raise InsufficientScope(
                f"the token {token.name!r} is of kind {token.kind.label!r}; this needs a token of kind {kind.label!r}"
            )
        if not self._tokens and not isinstance(request.connection, PeerConnection):
            self._check_origin(request)
        return token

    def _token_of(self, request: HTTPServerRequest, *, takes_local_token: bool = False) -> Token:
        if isinstance(request.connection, PeerConnection):  # another member has checked it
            return request.connection.token
        if not self._tokens:
            return NO_TOKEN
        given = request.headers.get_list("Authorization")
        scheme, _, secret = given[0].partition(" ") if given else ("", "", "")
        if len(given) > 1 or scheme.lower() != "bearer":
            # of several headers, a proxy in front may use another one than this gateway would
            text = "expected one header `Authorization: Bearer TOKEN`" + (", not several" if len(given) > 1 else "")
            raise Unauthorized(text)
        # Tornado decodes headers as latin-1, so this encoding restores the bytes that were sent
        sent = _digest(secret.strip().encode("latin-1"))
        found: Token | None = None
        # all of them are compared, and as digests: so the time reveals neither which one is right nor its length
        for token in (*self._tokens, *(self._local if takes_local_token else ())):
            if hmac.compare_digest(sent, _digest(token.secret.encode("utf-8"))):
                found = token
        if found is None:
            raise Unauthorized(f"the token is not one of this gateway's ({self._source})")
        return found

    def _check_origin(self, request: HTTPServerRequest) -> None:
        if self._loopback and not self._is_own_name(request.host_name):
            # DNS rebinding: a page's own host name points at 127.0.0.1, so the gateway has the page's origin
            raise Forbidden("without AUTH_TOKEN only requests to localhost or an IP address are accepted")
        origin = request.headers.get("Origin")
        if request.method in UNSAFE_METHODS and origin is not None and origin.partition("://")[2] != request.host:
            raise Forbidden("without AUTH_TOKEN requests from other web pages are not accepted")

    def _is_own_name(self, name: str) -> bool:
        name = name.strip("[]")
        return name == self._host or name == "localhost" or name.endswith(".localhost") or _is_address(name)


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
