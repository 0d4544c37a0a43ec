"""``POST /v1/pause`` and ``POST /v1/resume``: the intake of jobs."""

from __future__ import annotations

from gateway.http.access.tokens import TokenKind
from gateway.http.base_handler.handler import BaseHandler
from gateway.http.schemas.gateway_state import PauseResponse


class PauseHandler(BaseHandler):
    """Refuses new jobs from now on, also after a restart; accepted jobs go on."""

    write_kind = TokenKind.ADMIN
    takes_local_token = True

    async def post(self) -> None:
        await self.context.service.set_paused(True)
        self.respond(PauseResponse(paused=True).body())


class ResumeHandler(BaseHandler):
    """Ends a pause."""

    write_kind = TokenKind.ADMIN
    takes_local_token = True

    async def post(self) -> None:
        await self.context.service.set_paused(False)
        self.respond(PauseResponse(paused=False).body())
