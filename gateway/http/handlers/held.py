"""Held kernels: ``GET /v1/held``, ``POST /v1/release`` and ``POST /v1/console``.

They need a token of kind ``admin``, or the one in the pid file: a user who can read that file can attach to the kernels
anyway.
"""

from __future__ import annotations

from gateway.core.errors import GatewayError, JobFailed, ShuttingDown
from gateway.http.access.tokens import TokenKind
from gateway.http.base_handler.handler import BaseHandler
from gateway.http.bodies.receivers import BodyReceiver
from gateway.http.schemas.requests import ConsoleRequest, ReleaseRequest
from gateway.http.schemas.responses import HeldListResponse, ReleasedResponse, held_response
from gateway.http.schemas.validation import Model, validate


class HeldHandler(BaseHandler):
    """Lists the held kernels."""

    read_kind = TokenKind.ADMIN
    takes_local_token = True

    def get(self) -> None:
        held = [held_response(kernel) for kernel in self.context.service.held_kernels()]
        self.respond(HeldListResponse(held=held, limit=self.context.settings.held_kernels).body())

    head = get


class _ByJson(BaseHandler):
    write_kind = TokenKind.ADMIN
    takes_local_token = True

    def body_receiver(self) -> BodyReceiver:
        return self.json_body()

    def asked(self, model: type[Model]) -> Model:
        """Return the validated request."""
        self.check_body()
        return validate(model, self.json_value(), self.context.settings)


class ReleaseHandler(_ByJson):
    """Releases one held kernel."""

    async def post(self) -> None:
        """Respond when the kernel has ended; 404 when no kernel of this id is held."""
        request = self.asked(ReleaseRequest)
        await self.context.service.release(request.id)
        self.respond(ReleasedResponse(released=request.id).body())


class ConsoleHandler(_ByJson):
    """Holds a ready kernel for a console."""

    async def post(self) -> None:
        """Respond with the command that attaches a console; 409 when no more kernels may be held."""
        request = self.asked(ConsoleRequest)
        if self.context.service.draining:
            raise ShuttingDown("the gateway is shutting down")
        try:
            held = await self.context.service.open_console(60.0 * request.minutes)
        except JobFailed as failure:
            raise GatewayError(f"no kernel could be started: {failure.message}") from None
        self.respond(held_response(held).body())
