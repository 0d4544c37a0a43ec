"""``GET /`` and ``/page/...``: links to the routes or, for a browser, the page and its files."""

from __future__ import annotations

import html
import json
import secrets

from gateway.core.errors import NotFound
from gateway.core.formats import FORMATS
from gateway.core.version import VERSION
from gateway.http.base_handler.handler import BaseHandler
from gateway.http.schemas.gateway_state import RootResponse
from gateway.page.assets import Asset, asset

LINKS = {
    "docs": "/docs",
    "openapi": "/openapi.json",
    "status": "/v1/status",
    "metrics": "/metrics",
    "execute": "/v1/execute",
}

#: Nothing but this gateway's own files, and images that the page makes of bytes. The editor adds a style element, so it
#: has a nonce.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self' 'nonce-{nonce}'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)

#: Value of an attribute of the page: each format with the endings of its files.
FORMATS_VALUE = html.escape(json.dumps({name: facts.endings for name, facts in FORMATS.items()})).encode()

#: The names of all files but ``index.html`` contain a hash of their content.
FOREVER = "public, max-age=31536000, immutable"


class _PageFileHandler(BaseHandler):
    is_open = True

    def send_asset(self, found: Asset, plain: bytes | None = None) -> None:
        """Respond with a file, compressed if the client accepts that; `plain` replaces its content."""
        self.set_header("Content-Type", found.content_type)
        self.set_header("Cross-Origin-Resource-Policy", "same-origin")
        if plain is None and "gzip" in self.request.headers.get("Accept-Encoding", ""):
            self.set_header("Content-Encoding", "gzip")
            self.finish(found.packed)
        else:
            self.finish(plain or found.plain)


class RootHandler(_PageFileHandler):
    """Sends links to the other routes or, to a browser, the page."""

    def get(self) -> None:
        self.set_header("Vary", "Accept")
        page = asset("index.html") if self.context.settings.enable_page else None
        if page is None or "text/html" not in self.request.headers.get("Accept", ""):
            self.respond(RootResponse(name="transform-gateway", version=VERSION, links=LINKS).body())
            return
        nonce = secrets.token_urlsafe(16)
        self.set_header("Content-Security-Policy", POLICY.format(nonce=nonce))
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("Cross-Origin-Opener-Policy", "same-origin")
        self.set_header("X-Frame-Options", "DENY")
        self.send_asset(page, page.plain.replace(b"FORMATS", FORMATS_VALUE).replace(b"STYLE-NONCE", nonce.encode()))

    head = get


class PageFileHandler(_PageFileHandler):
    """Sends a file of the page."""

    def get(self, name: str) -> None:
        found = asset(name) if self.context.settings.enable_page and name != "index.html" else None
        if found is None:
            raise NotFound(f"the page has no file {name[:200]!r}")
        self.set_header("Cache-Control", FOREVER)
        self.set_header("Vary", "Accept-Encoding")
        self.send_asset(found)

    head = get
