"""``GET /v1/results/{request_id}/...``: the kept result of a job, streamed from disk."""

from __future__ import annotations

import base64
from contextlib import aclosing
from typing import Any

from pydantic_core import from_json
from tornado.iostream import StreamClosedError

from gateway.core.errors import NotFound
from gateway.core.formats import DEFAULT_FORMAT, FORMATS
from gateway.core.job import JobState, OutputFacts, ResultPart
from gateway.http.base_handler.elsewhere import anywhere
from gateway.http.base_handler.handler import BaseHandler
from gateway.http.handlers.job_lookup import asked_in_path, require_by_text
from gateway.jobs.runner import KeptResult, ResultReader
from gateway.jobs.store import JobRecord


class KeptFileHandler(BaseHandler):
    """Base of the routes that send a kept result."""

    async def send_kept(self, record: JobRecord, what: ResultPart, job: str) -> None:
        """Stream the output, manifest or events of a job.

        Parameters
        ----------
        record : JobRecord
            The job.
        what : {'output', 'manifest', 'events'}
            Which part.
        job : str
            The id in the request, for messages.

        Raises
        ------
        NotFound
            There is no such part; the text says why.
        """
        kept = self._find(record, what, repr(job[:200]))
        async with kept.open(what) as reader:
            if reader is None:
                raise NotFound(f"the result of {job[:200]!r} is no longer kept")
            content_type, name = _type_and_name(record, what)
            self.set_header("Content-Type", content_type)
            self.set_header("Content-Length", reader.size_bytes)
            self.set_header("Content-Disposition", f'attachment; filename="{name}"')
            if self.request.method != "HEAD":
                await send_blocks(self, reader)

    def _find(self, record: JobRecord, what: ResultPart, shown: str) -> KeptResult:
        if record.state is not JobState.FINISHED:
            raise NotFound(f"the job {shown} is {record.state}; its result is available when it is finished")
        kept = self.context.service.kept_result(record)
        if kept is None:
            raise NotFound(f"no result of {shown} is kept: it was uploaded to the request's URLs, or has expired")
        if what not in kept.part_bytes:
            raise NotFound(f"the job {shown} failed and has no {what}")
        return kept


async def send_blocks(handler: BaseHandler, reader: ResultReader) -> None:
    """Send a file as the rest of an answer; a caller that disconnects is not an error."""
    try:
        async with aclosing(reader.blocks()) as blocks:
            async for block in blocks:
                handler.write(block)
                await handler.flush()
    except StreamClosedError:
        handler.handle_disconnect()


def _type_and_name(record: JobRecord, what: ResultPart) -> tuple[str, str]:
    """Return the content type of a part, and the name of the file that a browser saves."""
    if what == "events":
        return FORMATS["jsonl"].content_type, "events.jsonl"
    if what == "manifest":
        return "application/json", "manifest.json"
    output = record.verdict.output if record.verdict is not None else None
    data_format = output.data_format if output is not None else DEFAULT_FORMAT
    charset = "; charset=utf-8" if data_format == "csv" else ""  # text/csv without it may be read as US-ASCII
    return FORMATS[data_format].content_type + charset, f"output.{data_format}"


class ResultsHandler(KeptFileHandler):
    """Sends the output, manifest or events of a kept result."""

    checks_query = True

    @anywhere(asked_in_path)
    async def get(self, request_id: str, what: ResultPart) -> None:
        record = await require_by_text(self.context.service, request_id, self.scope)
        await self.send_kept(record, what, request_id)

    head = get


async def read_inline(kept: KeptResult, output: OutputFacts, cap_bytes: int) -> dict[str, Any]:
    """Return the members of a response with the result itself, or none when it is too large."""
    if sum(kept.part_bytes.values()) > cap_bytes:
        return {}
    data, manifest = await _read(kept, "output"), await _read(kept, "manifest")
    if data is None or manifest is None:
        return {}  # expired at this moment
    members: dict[str, Any] = {"manifest": _object_in(manifest)}
    if FORMATS[output.data_format].is_text:
        return members | {"output": data.decode("utf-8", "replace"), "output_encoding": "utf-8"}
    return members | {"output": base64.b64encode(data).decode("ascii"), "output_encoding": "base64"}


async def _read(kept: KeptResult, part: ResultPart) -> bytes | None:
    async with kept.open(part) as reader:
        return None if reader is None else b"".join([block async for block in reader.blocks()])


def _object_in(manifest: bytes) -> dict[str, Any] | None:
    """Return the manifest, or None when it is not a JSON object: the job wrote it, so it may contain anything.

    This parser refuses what the answer cannot hold: depth above 200 (pydantic writes 255), and half a surrogate pair.
    """
    try:
        value = from_json(manifest)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
