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
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class _GoingOn:
    """A job on its way, and the event that says whether it is still wanted."""

    client: TransformClient
    request_id: str
    cancelled: threading.Event


class Gateways:
    """The gateways of one notebook; `cancel` and `close` may be called from another thread."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._own: OwnGateway | None = None
        self._lock = threading.Lock()
        self._going_on: _GoingOn | None = None
        self._closed = False

    def run(
        self,
        request: RunTransform,
        tables: dict[str, Table],
        output: Path,
        tell: Tell,
        cancelled: threading.Event,
    ) -> dict[str, Any]:
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
        cancelled : threading.Event
            Set by whoever does not want this run any more, who then calls `cancel` with it.

        Raises
        ------
        GatewayUnreachable, GatewayRefused
            Nothing ran.
        """
        if request.running:
            url = _running_url()
            try:
                client = TransformClient(url, os.environ.get("AUTH_TOKEN", ""))
            except ValueError as error:
                raise GatewayUnreachable(
                    f"TRANSFORM_GATEWAY_URL, which is set where Jupyter is started: {error}"
                ) from None
            return self._run(client, url, request, tables, output, tell, cancelled)
        for attempt in ("first", "again"):
            gateway = self._own_gateway(tell)
            client = TransformClient(gateway.url, gateway.token)
            try:
                return self._run(client, OWN, request, tables, output, tell, cancelled)
            except GatewayUnreachable:
                self._stack.close()
                self._own = None
                if attempt == "again":
                    raise
        raise AssertionError("the second attempt returns or raises")

    def cancel(self, cancelled: threading.Event) -> None:
        """End the job that goes on for whoever holds this event, if it does."""
        with self._lock:
            going_on = self._going_on
        if going_on is not None and going_on.cancelled is cancelled:
            with contextlib.suppress(TransformError):
                going_on.client.cancel(going_on.request_id)

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
        cancelled: threading.Event,
    ) -> dict[str, Any]:
        request_id = f"notebook-{uuid.uuid4().hex}"
        with self._lock:
            self._going_on = _GoingOn(client, request_id, cancelled)
        cancel_sent = False

        def on_event(event: Event) -> None:
            nonlocal cancel_sent
            _pass_on(event, tell)
            # a cancel that came before the gateway knew the job
            if cancelled.is_set() and not cancel_sent:
                cancel_sent = True
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
