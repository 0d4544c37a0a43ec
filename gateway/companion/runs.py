"""Runs of a notebook's transforms: through a gateway of the companion's own, or through the one that runs.

What a person sees in the notebook is what production says because it is a gateway that says it, with all of its limits
and causes of failure.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gateway.client import TransformClient, TransformFailed, TransformResult
from gateway.client_http import GatewayUnreachable, TransformError
from gateway.commands.common import local_url
from gateway.commands.own_gateway import OwnGateway
from gateway.companion.tables import Table
from gateway.companion.wire import RunTransform
from gateway.jobs.events import Event, LogLine, Progress, StateChanged
from gateway.runfile import DaemonError, find_running

OWN = "a gateway of this notebook"
Tell = Callable[..., None]


class Gateways:
    """The gateways of one notebook; `cancel` and `close` may be called from another thread."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._own: OwnGateway | None = None
        self._lock = threading.Lock()
        self._going_on: tuple[TransformClient, str] | None = None
        self._cancelled = threading.Event()
        self._closed = False

    def run(self, request: RunTransform, tables: dict[str, Table], output: Path, tell: Tell) -> dict[str, Any]:
        """Run a script and return how it ended; its log goes to `tell` while it goes on.

        Parameters
        ----------
        request : RunTransform
            What to run, and how.
        tables : dict
            By parameter name.
        output : Path
            Where the result goes.
        tell : callable
            Called with ``"log"``, ``"state"`` or ``"progress"`` and the event's fields.

        Raises
        ------
        GatewayUnreachable, GatewayRefused
            Nothing ran.
        """
        self._cancelled.clear()
        if request.running:
            url = _running_url()
            return self._run(TransformClient(url, os.environ.get("AUTH_TOKEN", "")), url, request, tables, output, tell)
        for attempt in ("first", "again"):
            gateway = self._own_gateway(tell)
            client = TransformClient(gateway.url, gateway.token)
            try:
                return self._run(client, OWN, request, tables, output, tell)
            except GatewayUnreachable:
                self._stack.close()
                self._own = None
                if attempt == "again":
                    raise
        raise AssertionError("the second attempt returns or raises")

    def cancel(self) -> None:
        """End the job that is going on, if there is one."""
        self._cancelled.set()
        with self._lock:
            going_on = self._going_on
        if going_on is not None:
            with contextlib.suppress(TransformError):
                going_on[0].cancel(going_on[1])

    def close(self) -> None:
        """End our own gateway."""
        with self._lock:
            self._closed = True
        self._stack.close()

    def _own_gateway(self, tell: Tell) -> OwnGateway:
        if self._own is None:
            tell("state", state="starting a gateway")
            gateway = OwnGateway()
            with self._lock:
                if self._closed:
                    raise GatewayUnreachable("the notebook is being closed")
                self._own = self._stack.enter_context(gateway)
        return self._own

    def _run(
        self,
        client: TransformClient,
        where: str,
        request: RunTransform,
        tables: dict[str, Table],
        output: Path,
        tell: Tell,
    ) -> dict[str, Any]:
        request_id = f"notebook-{uuid.uuid4().hex}"
        with self._lock:
            self._going_on = (client, request_id)
        cancelled = False

        def on_event(event: Event) -> None:
            nonlocal cancelled
            _pass_on(event, tell)
            # a cancel that came before the gateway knew the job
            if self._cancelled.is_set() and not cancelled:
                cancelled = True
                with contextlib.suppress(TransformError):
                    client.cancel(request_id)

        try:
            result = client.execute(
                request.code,
                {name: table.data_path for name, table in tables.items()},
                library=request.library,
                timeout=request.timeout,
                output=output,
                output_format=request.output_format,
                manifests={name: t.manifest_path for name, t in tables.items() if t.manifest_path is not None},
                request_id=request_id,
                on_event=on_event,
                hold_minutes=request.hold_minutes,
            )
        except TransformFailed as failure:
            return {"where": where, **_failed(failure)}
        finally:
            with self._lock:
                self._going_on = None
        return {"where": where, **_succeeded(result, output)}


def _running_url() -> str:
    """Return the gateway that TRANSFORM_GATEWAY_URL names, else that of STATE_DIR, else the one by HOST and PORT."""
    if url := os.environ.get("TRANSFORM_GATEWAY_URL"):
        return url
    with contextlib.suppress(DaemonError, OSError):
        running = find_running(Path(os.environ.get("STATE_DIR") or ".state"))
        if running is not None:
            return running.url
    return local_url()


def _pass_on(event: Event, tell: Tell) -> None:
    match event:
        case LogLine(_, stream, message):
            tell("log", stream=stream, message=message)
        case StateChanged(state, stage):
            tell("state", state=stage or str(state))
        case Progress(stage, table, rows, done_bytes):
            tell("progress", stage=stage, table=table, rows=rows, bytes=done_bytes)
        case _:
            pass


def _failed(failure: TransformFailed) -> dict[str, Any]:
    answer = failure.answer
    return {
        "code": failure.code,
        "error": failure.message,
        "exit_code": failure.exit_code,
        "stages": answer.get("stages") or {},
        "seconds": answer.get("execution_time") or 0.0,
        "peak_memory_bytes": answer.get("peak_memory_bytes"),
        "held": answer.get("held"),
        "not_held": answer.get("not_held"),
        "log": _log(failure.log),
        "output_path": None,
    }


def _succeeded(result: TransformResult, output: Path) -> dict[str, Any]:
    manifest_path = output.with_name("manifest.json")
    manifest_path.write_text(json.dumps(result.manifest))
    with output.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "code": "ok",
        "error": None,
        "exit_code": 0,
        "stages": result.stages_seconds,
        "seconds": result.execution_seconds,
        "peak_memory_bytes": result.peak_memory_bytes,
        "rows": result.rows,
        "output_bytes": result.output_bytes,
        "sha256": digest,
        "data_format": result.data_format,
        "log": _log(result.log),
        "output_path": str(output),
        "manifest_path": str(manifest_path),
    }


def _log(lines: tuple[LogLine, ...]) -> list[list[str]]:
    return [[line.stream, line.message] for line in lines]
