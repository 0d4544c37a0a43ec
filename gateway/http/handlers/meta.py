"""The routes about the gateway itself: API description, its page, and packages."""

from __future__ import annotations

from gateway.http.access.tokens import TokenKind
from gateway.http.base_handler.handler import BaseHandler
from gateway.http.schemas.gateway_state import packages_response


class OpenApiHandler(BaseHandler):
    """Sends the API description."""

    is_open = True

    def get(self) -> None:
        self.finish(self.context.description().openapi)

    head = get


class DocsHandler(BaseHandler):
    """Sends the API description as a page without scripts and external files."""

    is_open = True

    def get(self) -> None:
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
        self.finish(self.context.description().page)

    head = get


class PackagesHandler(BaseHandler):
    """Lists the packages that jobs can import."""

    read_kind = TokenKind.READ

    async def get(self) -> None:
        self.respond(packages_response(await self.context.service.packages()).body())

    head = get


class ReloadPackagesHandler(BaseHandler):
    """Applies added and removed packages to the kernels of later jobs; jobs that run go on."""

    write_kind = TokenKind.ADMIN
    takes_local_token = True

    async def post(self) -> None:
        self.respond(packages_response(await self.context.service.packages(renew=True)).body())
