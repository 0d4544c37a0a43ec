"""Kernels that are held for a person: ``GET /v1/held``, ``POST /v1/release`` and ``POST /v1/console``.

They take the gateway's token, or the one that the gateway writes into its state directory: who may read that may attach
to the kernels anyway.
"""

from __future__ import annotations

from gateway.errors import GatewayError, JobFailed, ShuttingDown
from gateway.http.answers import HeldListAnswer, ReleasedAnswer, held_answer
from gateway.http.base import BaseHandler
from gateway.http.intake import Intake, JsonBody
from gateway.http.models import ConsoleRequest, ReleaseRequest
from gateway.http.validation import Model, validate


class HeldHandler(BaseHandler):
    """Lists what is held."""

    takes_local_token = True

    def get(self) -> None:
        """Answer with everything that is held, oldest first."""
        held = [held_answer(kernel) for kernel in self.context.service.held_kernels()]
        self.answer(HeldListAnswer(held=held, limit=self.context.settings.held_kernels).body())

    head = get


class _ByJson(BaseHandler):
    takes_local_token = True

    def open_intake(self) -> Intake:
        """Take a JSON object."""
        return self.json_intake()

    def asked(self, model: type[Model]) -> Model:
        """Return the validated request."""
        self.check_intake()
        value = self.intake.value() if isinstance(self.intake, JsonBody) else {}
        return validate(model, value, self.context.settings)


class ReleaseHandler(_ByJson):
    """Ends one held kernel."""

    async def post(self) -> None:
        """Answer when nothing of it is left; 404 when none of this id is held."""
        request = self.asked(ReleaseRequest)
        await self.context.service.release(request.id)
        self.answer(ReleasedAnswer(released=request.id).body())


class ConsoleHandler(_ByJson):
    """Takes a ready kernel out for a console; it counts as held, and no job is waiting for it."""

    async def post(self) -> None:
        """Answer with how to attach; 409 when no more kernels may be held."""
        request = self.asked(ConsoleRequest)
        if self.context.service.draining:
            raise ShuttingDown("the gateway is shutting down")
        try:
            held = await self.context.service.open_console(60.0 * request.minutes)
        except JobFailed as failure:
            raise GatewayError(f"no kernel could be had: {failure.message}") from None
        self.answer(held_answer(held).body())
