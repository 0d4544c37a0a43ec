"""The gateway's log: text or JSON lines, one line for each job, without code, data, tokens and queries of URLs."""

from __future__ import annotations

import datetime
import json
import logging
import re
import sys

import orjson

from gateway.core.settings import Settings
from gateway.jobs.store import JobRecord
from gateway.telemetry.metrics import outcome_of

jobs = logging.getLogger("gateway.job")

_OURS = ("gateway", "kernel_spec")
_PLAIN_FIELDS = frozenset(logging.LogRecord("", 0, "", 0, "", (), None).__dict__) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """Formats each record as one JSON object, with ``extra`` as members."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "timestamp": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(
                timespec="milliseconds"
            ),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update({name: value for name, value in record.__dict__.items() if name not in _PLAIN_FIELDS})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        try:
            return orjson.dumps(line, default=str).decode()
        except TypeError:  # a lone surrogate or a number beyond 64 bits: json is slower but takes them
            return json.dumps(line, default=str)


def configure_logging(settings: Settings) -> None:
    """Send our log and the warnings of libraries to stderr, as text or, with `log_json`, as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if settings.log_json else text)
    for name in _OURS:
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)


def log_job(record: JobRecord) -> None:
    """Write the log line of a finished job: ids, outcome, stage times in milliseconds, bytes.

    The message of a failure is left out, because it may quote a user's data.
    """
    verdict = record.verdict
    if verdict is None:
        return
    outcome, code = outcome_of(verdict.code), str(verdict.code or "ok")
    stages = {name: round(seconds * 1000, 1) for name, seconds in verdict.stages_seconds.items()}
    bytes_out = verdict.output.output_bytes if verdict.output else 0
    facts = {
        "request_id": record.request_id,
        "execution_id": record.execution_id,
        "token_name": record.token_name,
        "call_id": record.call_id,
        "trace_parent": record.trace_parent,
        "outcome": outcome,
        "code": code,
        "exit_code": verdict.exit_code,
        "execution_seconds": round(verdict.execution_seconds, 3),
        "stages_ms": stages,
        "bytes_in": verdict.bytes_in,
        "bytes_out": bytes_out,
        "rows_out": verdict.output.rows if verdict.output else 0,
        "peak_memory_bytes": verdict.peak_memory_bytes,
    }
    timings = " ".join(f"{name}={milliseconds:g}ms" for name, milliseconds in stages.items())
    jobs.info(
        "job %s (%s) %s %s %s in=%dB out=%dB token=%s call=%s trace=%s",
        _printable(str(record.request_id)),
        record.execution_id,
        outcome,
        code,
        timings,
        verdict.bytes_in,
        bytes_out,
        record.token_name or "-",
        record.call_id or "-",
        record.trace_parent or "-",
        extra=facts,
    )


def _printable(text: str) -> str:
    """Return `text` without characters that would begin a new line in the log or control a terminal."""
    return re.sub(r"[^\x21-\x7e]", "?", text)
