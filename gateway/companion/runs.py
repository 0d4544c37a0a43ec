"""Run a notebook's transforms on an ephemeral gateway or on the running one.

A run in the notebook has the limits and failures of production, because a real gateway runs it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from gateway.client.client import TransformClient
from gateway.client.ephemeral_gateway import EphemeralGateway
from gateway.client.errors import GatewayUnreachable, TransformError, TransformFailed
from gateway.client.result import TransformResult
from gateway.companion.protocol import RunTransform
from gateway.companion.tables import LoadedTable
from gateway.core.events import Event, LogLine, Progress, StateChanged
from gateway.process.pidfile import DaemonError, find_running, url_by_environment
from gateway.process.tls import local_trust
from gateway.telemetry.waterfall import lay_out

OWN = "a gateway of this notebook"
_NO_GATEWAY = "start a gateway, or name one in TRANSFORM_GATEWAY_URL where you start Jupyter"
#: How long a cancelled run may take to end. A gateway that hangs must not hold up the notebook.
CANCEL_SECONDS = 10.0
_LOOK_SECONDS = 0.2
SendEvent = Callable[..., None]


@dataclass(frozen=True, slots=True)
class _RunningJob:
    """The running job, and the event that is set when its run is cancelled."""

    client: TransformClient
    request_id: str
    cancelled: threading.Event


class Gateways:
    """The gateways of one notebook; `cancel` and `close` are safe to call from another thread."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._ephemeral: EphemeralGateway | None = None
        self._lock = threading.Lock()
        self._running_job: _RunningJob | None = None
        self._cancels: list[threading.Thread] = []
        self._closed = False

    def run(
        self,
        request: RunTransform,
        tables: dict[str, LoadedTable],
        output: Path,
        send: SendEvent,
        cancelled: threading.Event,
    ) -> dict[str, Any]:
        """Run a script and return its outcome.

        Parameters
        ----------
        request : RunTransform
            The script and its options.
        tables : dict
            Parameter name to table.
        output : Path
            File for the result.
        send : callable
            Called with ``"log"``, ``"state"`` or ``"progress"`` and the event's fields while the job runs.
        cancelled : threading.Event
            Set to cancel the run, before the call of `cancel`.

        Returns
        -------
        dict
            The result of the request, in the form that the notebook expects.

        Raises
        ------
        GatewayUnreachable, GatewayRefused
            Nothing ran.
        """
        if request.running:
            url, certificate = _running_gateway()
            try:
                client = TransformClient(url, os.environ.get("AUTH_TOKEN", ""), trust=local_trust(certificate))
            except ValueError as error:
                raise GatewayUnreachable(
                    f"TRANSFORM_GATEWAY_URL, which is set where Jupyter is started: {error}"
                ) from None
            try:
                return self._run(client, url, request, tables, output, send, cancelled)
            except GatewayUnreachable as error:
                if os.environ.get("TRANSFORM_GATEWAY_URL") or cancelled.is_set():
                    raise
                raise GatewayUnreachable(f"{error}; {_NO_GATEWAY}") from None
        gateway = self._ephemeral_gateway(send)
        client = TransformClient(gateway.url, gateway.token)
        try:
            return self._run(client, OWN, request, tables, output, send, cancelled)
        except GatewayUnreachable:  # not run again: the job may have begun, and may be the reason
            self._end_ephemeral()
            raise

    def cancel(self, cancelled: threading.Event) -> None:
        """Have the job of the run with this event cancelled, if it is running; do not wait for the gateway."""
        with self._lock:
            running_job = self._running_job
        if running_job is None or running_job.cancelled is not cancelled:
            return

        def send() -> None:
            with contextlib.suppress(TransformError):
                running_job.client.cancel(running_job.request_id)

        thread = threading.Thread(target=send, name="cancel", daemon=True)
        thread.start()
        self._cancels = [*filter(threading.Thread.is_alive, self._cancels), thread]

    def close(self) -> None:
        """End the ephemeral gateway, after the cancels were sent."""
        with self._lock:
            self._closed = True
        for thread in self._cancels:
            thread.join(CANCEL_SECONDS)
        self._stack.close()

    def _end_ephemeral(self) -> None:
        self._stack.close()
        self._ephemeral = None

    def _ephemeral_gateway(self, send: SendEvent) -> EphemeralGateway:
        if self._ephemeral is not None and not self._ephemeral.is_running:
            self._end_ephemeral()
        if self._ephemeral is None:
            send("state", state="starting a gateway")
            gateway = EphemeralGateway()
            with self._lock:
                if self._closed:
                    raise GatewayUnreachable("the notebook is being closed")
                self._ephemeral = self._stack.enter_context(gateway)
        return self._ephemeral

    def _run(
        self,
        client: TransformClient,
        where: str,
        request: RunTransform,
        tables: dict[str, LoadedTable],
        output: Path,
        send: SendEvent,
        cancelled: threading.Event,
    ) -> dict[str, Any]:
        request_id = f"notebook-{uuid.uuid4().hex}"
        with self._lock:
            self._running_job = _RunningJob(client, request_id, cancelled)
        cancel_sent = False

        def on_event(event: Event) -> None:
            nonlocal cancel_sent
            _pass_on(event, send)
            # the run was cancelled before the gateway knew the job
            if cancelled.is_set() and not cancel_sent:
                cancel_sent = True
                with contextlib.suppress(TransformError):
                    client.cancel(request_id)

        def run() -> TransformResult:
            return client.run(
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
                profile=request.profile,
            )

        try:
            result = _awaited(run, where, cancelled)
        except TransformFailed as failure:
            outcome = _failed(failure)
            job_id, count = str(failure.answer.get("execution_id")), failure.answer.get("displays")
        else:
            outcome = _succeeded(result, output)
            job_id, count = result.execution_id, result.display_count
        finally:
            with self._lock:
                self._running_job = None
        return {"where": where, **outcome, "displays": _displays(client, job_id) if count else []}


def _awaited(run: Callable[[], TransformResult], where: str, cancelled: threading.Event) -> TransformResult:
    """Return the result of a run, unless it is cancelled and the gateway does not end it."""
    outcome: Future[TransformResult] = Future()

    def work() -> None:
        try:
            outcome.set_result(run())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=work, name="run", daemon=True).start()
    deadline: float | None = None
    while not outcome.done():
        wait([outcome], _LOOK_SECONDS)
        if not cancelled.is_set():
            continue
        deadline = deadline or time.monotonic() + CANCEL_SECONDS
        if time.monotonic() > deadline:
            raise GatewayUnreachable(f"{where} does not answer the cancel: the job may go on there")
    return outcome.result()


def _running_gateway() -> tuple[str, str]:
    """Return the URL by TRANSFORM_GATEWAY_URL, else by the pid file in STATE_DIR, else by HOST and PORT.

    With it comes the file of the gateway's certificate, if it is one on this machine.
    """
    if url := os.environ.get("TRANSFORM_GATEWAY_URL"):
        return url, ""
    with contextlib.suppress(DaemonError, OSError):
        running = find_running(Path(os.environ.get("STATE_DIR") or ".state"))
        if running is not None:
            return running.url, running.cert
    return url_by_environment(), os.environ.get("TLS_CERT_FILE", "")


def _pass_on(event: Event, send: SendEvent) -> None:
    match event:
        case LogLine(_, stream, message, display):
            send("log", stream=stream, message=message, display=display)
        case StateChanged(state, stage):
            send("state", state=stage or str(state))
        case Progress():
            send("progress", **msgspec.structs.asdict(event))
        case _:
            pass


def _failed(failure: TransformFailed) -> dict[str, Any]:
    answer = failure.answer
    return {
        "code": failure.code,
        "error": failure.message,
        "exit_code": failure.exit_code,
        **_stages(answer.get("stages") or {}),
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
        **_stages(result.stages_seconds),
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


def _stages(stages_seconds: dict[str, float]) -> dict[str, Any]:
    return {"stages": stages_seconds, "waterfall": [msgspec.structs.asdict(span) for span in lay_out(stages_seconds)]}


def _displays(client: TransformClient, job_id: str) -> list[Any]:
    """Return the displays of a job; a failure to fetch them must not fail the run."""
    with contextlib.suppress(TransformError):
        return [msgspec.to_builtins(display) for display in client.displays(job_id)]
    return []


def _log(lines: tuple[LogLine, ...]) -> list[list[str]]:
    return [[line.stream, line.message] for line in lines]
