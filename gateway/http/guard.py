"""Who may come in: the bearer token, and, where none is set, nobody's web page."""

from __future__ import annotations

import hmac
import ipaddress
from urllib.parse import urlsplit

from tornado.httputil import HTTPServerRequest

from gateway.errors import Forbidden, Unauthorized
from gateway.settings import Settings

UNSAFE_METHODS = frozenset({"POST", "PUT", "PATCH", "DELETE"})


class Guard:
    """Decides before the body is read, on headers alone.

    Parameters
    ----------
    settings : Settings
        `auth_token` empty means that nobody needs one; then requests that a browser sends on behalf of some web page
        are refused: such a gateway trusts everything on this machine, and a browser on it runs strangers' code.
    local_token : str, optional
        Serves as well where `check` is told so; see `gateway.local_access`.
    """

    def __init__(self, settings: Settings, local_token: str = "") -> None:
        self._token = settings.auth_token.encode("utf-8")
        self._local_token = local_token.encode("ascii")
        self._loopback = _is_loopback(settings.host)
        self._host = settings.host.lower()

    @property
    def needs_token(self) -> bool:
        """Whether a token is configured."""
        return bool(self._token)

    def has_token(self, request: HTTPServerRequest) -> bool:
        """Whether the request may see everything."""
        try:
            self._check_token(request)
        except Unauthorized:
            return False
        return True

    def check(self, request: HTTPServerRequest, *, local: bool = False) -> None:
        """Let the request pass or raise; with `local`, the token of the state directory serves as well.

        Raises
        ------
        Unauthorized, Forbidden
        """
        self._check_token(request, local=local)
        if not self._token:
            self._check_origin(request)

    def _check_token(self, request: HTTPServerRequest, *, local: bool = False) -> None:
        if not self._token:
            return
        given = request.headers.get_list("Authorization")
        if len(given) != 1:
            # two headers may be read differently by a proxy in front: neither is believed
            text = "expected one header `Authorization: Bearer TOKEN`" + (", not several" if given else "")
            raise Unauthorized(text)
        scheme, _, token = given[0].partition(" ")
        # headers arrive decoded as latin-1; encoding them so gives back the very bytes that were sent
        sent = token.strip().encode("latin-1")
        right = hmac.compare_digest(sent, self._token)
        if local and self._local_token:
            right |= hmac.compare_digest(sent, self._local_token)
        if scheme.lower() != "bearer" or not right:
            raise Unauthorized("the token is not the one that this gateway was started with")

    def _check_origin(self, request: HTTPServerRequest) -> None:
        if self._loopback and not self._is_own_name(request.host_name):
            # DNS rebinding: a page's own name made to point at 127.0.0.1, which makes us "same origin" to it
            raise Forbidden("without a token only requests to localhost or an IP address are taken")
        origin = request.headers.get("Origin")
        if request.method in UNSAFE_METHODS and origin is not None and urlsplit(origin).netloc != request.host:
            raise Forbidden("without a token requests from other web pages are not taken")

    def _is_own_name(self, name: str) -> bool:
        name = name.strip("[]")
        return name == self._host or name == "localhost" or name.endswith(".localhost") or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)
