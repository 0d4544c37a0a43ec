"""``GET /v1/results/{request_id}/...``: what the gateway kept of a job, streamed from disk."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from pathlib import Path
from typing import Any, BinaryIO

from tornado.iostream import StreamClosedError

from gateway.errors import NotFound
from gateway.http.base import BaseHandler
from gateway.http.lookup import require_by_text
from gateway.jobs.model import JobState, OutputFacts
from gateway.storage.results import KeptResult

CHUNK_BYTES = 1 << 18
CONTENT_TYPES = {
    "jsonl": "application/x-ndjson",
    "csv": "text/csv; charset=utf-8",
    "parquet": "application/vnd.apache.parquet",
    "arrow": "application/vnd.apache.arrow.file",
}


class ResultsHandler(BaseHandler):
    """Sends one of the three kept files."""

    async def get(self, request_id: str, what: str) -> None:
        """Stream the file; 404 names why there is none."""
        path, content_type, name = self._find(request_id, what)
        try:
            file = await asyncio.to_thread(path.open, "rb")
        except FileNotFoundError:
            raise NotFound(f"the result of {request_id[:200]!r} is no longer kept") from None
        with file:
            self.set_header("Content-Type", content_type)
            self.set_header("Content-Length", os.fstat(file.fileno()).st_size)
            self.set_header("Content-Disposition", f'attachment; filename="{name}"')
            await self._send(file)

    def _find(self, request_id: str, what: str) -> tuple[Path, str, str]:
        record = require_by_text(self.context.service, request_id)
        shown = repr(request_id[:200])
        if record.state is not JobState.FINISHED:
            raise NotFound(f"the job {shown} is {record.state}; its result comes when it is over")
        kept = self.context.service.results.get(record.execution_id)
        if kept is None:
            raise NotFound(f"no result of {shown} is kept here: it went to the request's URLs, or its time is over")
        if what == "events":
            return kept.events_path, CONTENT_TYPES["jsonl"], "events.jsonl"
        path = kept.output_path if what == "output" else kept.manifest_path
        if path is None:
            raise NotFound(f"the job {shown} failed and has no {what}")
        if what == "manifest":
            return path, "application/json", "manifest.json"
        output = record.verdict.output if record.verdict is not None else None
        data_format = output.data_format if output is not None else "jsonl"
        return path, CONTENT_TYPES[data_format], f"output.{data_format}"

    async def _send(self, file: BinaryIO) -> None:
        if self.request.method == "HEAD":
            return
        try:
            while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
                self.write(chunk)
                await self.flush()
        except StreamClosedError:
            self.hung_up()

    head = get


def read_inline(kept: KeptResult, output: OutputFacts, cap_bytes: int) -> dict[str, Any]:
    """Return the members of an answer that carry a small result itself; none when it is too large. Reads in place."""
    if kept.output_path is None or kept.manifest_path is None or kept.total_bytes > cap_bytes:
        return {}
    try:
        data = kept.output_path.read_bytes()
        members: dict[str, Any] = {"manifest": _object_in(kept.manifest_path.read_bytes())}
    except FileNotFoundError:
        return {}  # expired this very moment
    if output.data_format in ("jsonl", "csv"):
        return members | {"output": data.decode("utf-8", "replace"), "output_encoding": "utf-8"}
    return members | {"output": base64.b64encode(data).decode("ascii"), "output_encoding": "base64"}


def _object_in(manifest: bytes) -> dict[str, Any] | None:
    """The manifest, or None where the job wrote something else in its place: it is the job's file, as its data is."""
    try:
        value = json.loads(manifest)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
