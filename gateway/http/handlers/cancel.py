"""``POST /v1/cancel``, and the same route of the legacy API, ``POST /cancel``."""

from __future__ import annotations

from gateway.core.job import RequestId
from gateway.http.base_handler.elsewhere import anywhere
from gateway.http.base_handler.handler import BaseHandler
from gateway.http.bodies.receivers import BodyReceiver
from gateway.http.schemas.fields import whole_number
from gateway.http.schemas.requests import CancelRequest
from gateway.http.schemas.responses import CancelResponse
from gateway.http.schemas.validation import validate


def _asked(handler: BaseHandler) -> tuple[RequestId, ...] | None:
    handler.check_body()
    value = whole_number(handler.json_value().get("request_id"))
    return (value,) if isinstance(value, int | str) and not isinstance(value, bool) else None  # refused below


class CancelHandler(BaseHandler):
    """Cancels one job, whether it runs or waits."""

    def body_receiver(self) -> BodyReceiver:
        return self.json_body()

    @anywhere(_asked)
    async def post(self) -> None:
        """Respond when the cancel cannot be lost; the call to execute that waits responds when the job has stopped.

        404 means that the job is unknown or finished.
        """
        self.check_body()
        request = validate(CancelRequest, self.json_value(), self.context.settings)
        record = await self.context.service.cancel(request.request_id, self.scope)
        self.respond(CancelResponse.of(record).body())
