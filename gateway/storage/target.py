"""A URL as an HTTP request needs it, not a byte of it changed: presigned ones die with any change."""

from __future__ import annotations

import urllib.parse
from dataclasses import dataclass


class ExchangeError(Exception):
    """The exchange broke off; the text names the host, never the path or query of the URL."""


@dataclass(frozen=True, slots=True)
class Target:
    """A URL taken apart without changing a byte of it.

    Attributes
    ----------
    request_target : str
        Path and query as they stand in the URL.
    authority : str
        Host and port as they stand in the URL: what a signature covers as the ``Host`` header.
    """

    scheme: str
    host: str
    port: int
    authority: str
    request_target: str
    user_info: str

    @classmethod
    def parse(cls, url: str) -> Target:
        """Take `url` apart.

        Raises
        ------
        ExchangeError
            It is not http(s), has no host, or holds characters that do not belong into a request line.
        """
        if any(not "!" <= character <= "~" for character in url):
            raise ExchangeError("its URL holds a space, a control character or a letter beyond ASCII")
        scheme, separator, rest = url.partition("://")
        if not separator or scheme.lower() not in ("http", "https"):
            raise ExchangeError("its URL is neither http nor https")
        end = min((i for i in map(rest.find, "/?#") if i >= 0), default=len(rest))
        user_info, _, authority = rest[:end].rpartition("@")
        try:
            parts = urllib.parse.urlsplit(f"//{authority}")
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if not host:
            raise ExchangeError("its URL names no host, or a port that is none")
        target = rest[end:].partition("#")[0]
        if not target.startswith("/"):
            target = "/" + target
        default_port = 443 if scheme.lower() == "https" else 80
        return cls(scheme.lower(), host, port or default_port, authority, target, user_info)
