"""``POST /v1/cancel``, and ``POST /cancel`` of the first form, which is the same."""

from __future__ import annotations

from gateway.http.answers import CancelAnswer
from gateway.http.base import BaseHandler
from gateway.http.intake import Intake
from gateway.http.models import CancelRequest
from gateway.http.validation import validate


class CancelHandler(BaseHandler):
    """Ends one job, wherever it stands; any other is left alone."""

    def open_intake(self) -> Intake:
        """Take a JSON object."""
        return self.json_intake()

    async def post(self) -> None:
        """Answer at once; the call to execute that waits for the job answers when it is gone. 404: unknown or over."""
        self.check_intake()
        settings = self.context.settings
        request = await self.off_loop(lambda: validate(CancelRequest, self.json_value(), settings))
        record = self.context.service.cancel(request.request_id)
        answer = CancelAnswer(
            message=f"Cancellation requested for {record.request_id}",
            request_id=record.request_id,
            execution_id=record.execution_id,
        )
        self.answer(answer.body())
