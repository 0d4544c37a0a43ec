"""``GET /v1/logs``: what a job has said so far."""

from __future__ import annotations

from gateway.errors import BadRequest, NotFound
from gateway.http.answers import LogsAnswer, progress_of
from gateway.http.base import BaseHandler
from gateway.http.lookup import require_by_text
from gateway.jobs.store import JobRecord
from gateway.storage.events_object import log_event


class LogsHandler(BaseHandler):
    """Sends log lines while a job runs and for a while after.

    Metabase compares `execution_id` with the id of its run including the JSON type, so it is the id as it was sent,
    not as it stands in the URL.
    """

    def get(self) -> None:
        """Answer 404 when nothing is known: Metabase goes on asking then, and stops at any other status."""
        offset = self._offset()
        record = self._record()
        lines, next_offset = record.log.lines_from(offset)
        answer = LogsAnswer(
            execution_id=record.request_id,
            state=record.state,
            stage=record.log.stage,
            events=[],
            next_offset=next_offset,
            progress=progress_of(record.log),
        )
        # a model for each of 20,000 lines at each poll costs more than all the rest
        self.answer(answer.body() | {"events": [log_event(line) for line in lines]})

    head = get

    def _record(self) -> JobRecord:
        text = self.get_query_argument("request_id", None, strip=False)
        if text is not None:
            return require_by_text(self.context.service, text)
        record = self.context.service.current()
        if record is None:
            raise NotFound("no job is running, waiting or lately finished")
        return record

    def _offset(self) -> int:
        text = self.get_query_argument("offset", "0")
        if not (text.isascii() and text.isdigit() and len(text) <= 18):
            raise BadRequest("offset: expected a whole number of lines, 0 or more", field="offset")
        return int(text)
