"""A synchronous client: run a transform on a gateway, with tables from files and the result to a file.

>>> client = TransformClient("http://localhost:5001", token="...")                          # doctest: +SKIP
>>> client.execute(open("totals.py").read(), {"orders": "orders.csv"}, output="totals.csv")  # doctest: +SKIP

    TransformError
    ├── GatewayUnreachable   nobody answers at the URL, or the connection broke
    ├── GatewayRefused       the request was refused and nothing ran: ``status``, ``code``, ``retryable``
    └── TransformFailed      the job ran and failed: ``code``, ``exit_code``, the whole answer

It stands on `http.client`: tables are streamed out and results in without holding either, one connection per
request needs no pool, and whoever installs the client alone gets no further dependency for it.
"""

from __future__ import annotations

import contextlib
import threading
import time
import urllib.parse
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.client_http import GatewayHttp, GatewayRefused, GatewayUnreachable, TransformError
from gateway.client_log import Follower, OnEvent, id_query, log_line
from gateway.client_tables import Frame, TableFiles
from gateway.jobs.events import LogLine
from gateway.jobs.model import DataFormat, RequestId

__all__ = [
    "GatewayRefused",
    "GatewayUnreachable",
    "TransformClient",
    "TransformError",
    "TransformFailed",
    "TransformResult",
]

POLL_SECONDS = 0.2
CANCEL_SECONDS = 10.0

FORMAT_OF_ENDING: dict[str, DataFormat] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}


class TransformFailed(TransformError):
    """The job was run and failed.

    Attributes
    ----------
    code : str
        Stable; see the table of failures in the documentation.
    exit_code : int
    answer : dict
        The whole answer to ``execute``.
    log : tuple of LogLine
        What the job printed, with the reason as its last line.
    """

    def __init__(self, answer: dict[str, Any], log: tuple[LogLine, ...]) -> None:
        super().__init__(str(answer.get("error") or "the job failed"), str(answer.get("code") or "internal"))
        self.exit_code = int(answer.get("exit_code", 1))
        self.answer = answer
        self.log = log


@dataclass(frozen=True, slots=True)
class TransformResult:
    """A job that succeeded.

    Attributes
    ----------
    output_path : Path or None
        Where the result was written, when that was asked for.
    output : bytes or None
        The result itself otherwise.
    manifest : dict
        Names and types of the columns.
    log : tuple of LogLine
    stages_seconds : dict
    """

    request_id: RequestId
    execution_id: str
    data_format: DataFormat
    rows: int
    fields: int
    output_bytes: int
    output_path: Path | None
    output: bytes | None
    manifest: dict[str, Any]
    log: tuple[LogLine, ...]
    execution_seconds: float
    stages_seconds: dict[str, float]
    peak_memory_bytes: int | None


@dataclass(slots=True)
class _Call:
    """The blocking request in its thread."""

    done: threading.Event = field(default_factory=threading.Event)
    answer: dict[str, Any] | None = None
    error: Exception | None = None


class TransformClient:
    """Talks to one gateway; safe to use from several threads.

    Parameters
    ----------
    url : str
        ``http://host:port``, with a path in front of ``/v1`` if the gateway stands behind a proxy.
    token : str
        The gateway's AUTH_TOKEN; empty when it has none.
    timeout_seconds : float
        For everything but the execution itself.
    """

    def __init__(self, url: str, token: str = "", timeout_seconds: float = 30.0) -> None:
        self._http = GatewayHttp(url, token, timeout_seconds)

    def execute(
        self,
        code: str,
        tables: Mapping[str, str | Path | Frame] | None = None,
        *,
        library: Mapping[str, str] | None = None,
        timeout: float | None = None,
        output: str | Path | None = None,
        output_format: DataFormat | None = None,
        manifests: Mapping[str, str | Path | Mapping[str, Any]] | None = None,
        request_id: RequestId | None = None,
        hold_minutes: float | None = None,
        on_event: OnEvent | None = None,
    ) -> TransformResult:
        """Run a transform and wait for its end.

        Parameters
        ----------
        code : str
            The script that defines ``transform()``.
        tables : mapping, optional
            Parameter name to a file (jsonl, csv, parquet, arrow by its ending) or to a data frame.
        library : mapping, optional
            Module name to source text.
        timeout : float, optional
            Seconds the job may run; the gateway's default otherwise.
        output : path, optional
            Where the result goes; it appears there whole or not at all. Without it, `TransformResult.output` holds it.
        output_format : str, optional
            By the ending of `output`, else jsonl.
        manifests : mapping, optional
            Table name to its manifest: a file or the object itself.
        request_id : int or str, optional
            Under which `logs` and `cancel` find the job; made up otherwise.
        hold_minutes : float, optional
            Keep the kernel that long if the job fails in it; `TransformFailed.answer` then has ``held``.
        on_event : callable, optional
            Called in this thread with each `LogLine`, `Progress` and `StateChanged` while the job is on its way.

        Raises
        ------
        TransformFailed, GatewayRefused, GatewayUnreachable
        OSError
            A file could not be read or written.

        Notes
        -----
        An exception that comes while this waits (KeyboardInterrupt, or one of `on_event`) cancels the job.
        """
        request_id = f"client-{uuid.uuid4().hex}" if request_id is None else request_id
        path = None if output is None else Path(output)
        output_format = output_format or (format_of(path) if path is not None else "jsonl")
        request = _request(code, request_id, library, output_format, timeout, hold_minutes)
        with TableFiles(tables or {}, manifests or {}, format_of) as files:
            follower = Follower(self._http, request_id, on_event or (lambda event: None))
            answer = self._run(request, files, follower)
        follower.catch_up()
        if answer.get("exit_code") != 0:
            raise TransformFailed(answer, tuple(follower.lines))
        return self._collect(request_id, answer, path, output_format, tuple(follower.lines))

    def submit(
        self,
        code: str,
        tables: Mapping[str, str | Path | Frame] | None = None,
        *,
        library: Mapping[str, str] | None = None,
        timeout: float | None = None,
        output_format: DataFormat = "jsonl",
        manifests: Mapping[str, str | Path | Mapping[str, Any]] | None = None,
        request_id: RequestId | None = None,
        hold_minutes: float | None = None,
    ) -> RequestId:
        """Hand over a job without waiting for its end, and return its id for `follow`, `cancel` and `fetch`.

        A gateway that cannot answer at once answers when the job is over; this then returns no earlier.

        Raises
        ------
        GatewayRefused, GatewayUnreachable
        OSError
            A file could not be read.
        """
        request_id = f"client-{uuid.uuid4().hex}" if request_id is None else request_id
        request = _request(code, request_id, library, output_format, timeout, hold_minutes)
        with TableFiles(tables or {}, manifests or {}, format_of) as files:
            self._http.post_job(request, files, wait=False)
        return request_id

    def fetch(self, request_id: RequestId, output: str | Path) -> Path:
        """Write a kept result to a file.

        Raises
        ------
        GatewayRefused
            There is none (404): the job is not over, failed, or its result was kept long enough.
        """
        path = Path(output)
        self._http.download(_result_path(request_id, "output"), path, None)
        return path

    def logs(self, request_id: RequestId | None = None) -> list[LogLine]:
        """Return what a job has said so far; without an id, the one that runs, waits or ended last."""
        answer = self._http.get_json("/v1/logs" + id_query(request_id))
        return [log_line(event) for event in answer.get("events", [])]

    def follow(self, request_id: RequestId, on_event: OnEvent) -> None:
        """Call `on_event` with everything a job says, from the beginning to its end."""
        follower = Follower(self._http, request_id, on_event)
        while not follower.finished:
            follower.poll()
            if not follower.finished:
                time.sleep(POLL_SECONDS)

    def cancel(self, request_id: RequestId) -> None:
        """End a job.

        Raises
        ------
        GatewayRefused
            404 when it is unknown or over.
        """
        self._http.post_json("/v1/cancel", {"request_id": request_id})

    def status(self, request_id: RequestId | None = None) -> dict[str, Any]:
        """Return where a job stands, or without an id how the gateway is; ``healthy`` is false if it is not well."""
        try:
            return self._http.get_json("/v1/status" + id_query(request_id))
        except GatewayRefused as refusal:
            if request_id is None and refusal.body.get("healthy") is False:
                return refusal.body  # 503, and the same answer
            raise

    def held(self) -> list[dict[str, Any]]:
        """Return the kernels that are held for inspection or as a console, oldest first."""
        return list(self._http.get_json("/v1/held").get("held", []))

    def release(self, held_id: str) -> None:
        """End a held kernel.

        Raises
        ------
        GatewayRefused
            404 when there is none of this id (any more).
        """
        self._http.post_json("/v1/release", {"id": held_id})

    def open_console(self, minutes: float = 60.0) -> dict[str, Any]:
        """Have a ready kernel held for a console, and return it as `held` would."""
        return self._http.post_json("/v1/console", {"minutes": minutes})

    def _run(self, request: dict[str, Any], files: TableFiles, follower: Follower) -> dict[str, Any]:
        """Keep the blocking request in a thread and follow the log in this one, until the answer is there."""
        call = _Call()

        def post() -> None:
            try:
                call.answer = self._http.post_job(request, files, wait=True)
            except Exception as error:  # handed over: it is raised again by the caller's thread
                call.error = error
            finally:
                call.done.set()

        # a daemon, so that an interpreter that must end does not wait for a gateway
        threading.Thread(target=post, name="transform-execute", daemon=True).start()
        try:
            while not call.done.wait(POLL_SECONDS):
                follower.poll()
        except BaseException:
            self._give_up(request["request_id"], call)
            raise
        if call.error is not None:
            raise call.error
        answer = call.answer or {}
        return answer if "exit_code" in answer else self._await_result(request["request_id"], follower)

    def _give_up(self, request_id: RequestId, call: _Call) -> None:
        with contextlib.suppress(TransformError):
            self.cancel(request_id)
        call.done.wait(CANCEL_SECONDS)

    def _await_result(self, request_id: RequestId, follower: Follower) -> dict[str, Any]:
        """Wait for a job that was accepted with 202."""
        try:
            while not follower.finished:
                follower.poll()
                time.sleep(POLL_SECONDS)
        except BaseException:
            with contextlib.suppress(TransformError):
                self.cancel(request_id)
            raise
        result = self.status(request_id).get("result")
        return result if isinstance(result, dict) else {}

    def _collect(
        self,
        request_id: RequestId,
        answer: dict[str, Any],
        path: Path | None,
        output_format: DataFormat,
        log: tuple[LogLine, ...],
    ) -> TransformResult:
        sha256 = answer.get("sha256")
        content = self._http.download(_result_path(request_id, "output"), path, sha256)
        manifest = self._http.get_json(_result_path(request_id, "manifest"))
        return TransformResult(
            request_id=request_id,
            execution_id=str(answer.get("execution_id", "")),
            data_format=output_format,
            rows=int(answer.get("rows") or 0),
            fields=int(answer.get("fields") or 0),
            output_bytes=int(answer.get("bytes_out") or 0),
            output_path=path,
            output=content,
            manifest=manifest,
            log=log,
            execution_seconds=float(answer.get("execution_time") or 0.0),
            stages_seconds=dict(answer.get("stages") or {}),
            peak_memory_bytes=answer.get("peak_memory_bytes"),
        )


def _request(
    code: str,
    request_id: RequestId,
    library: Mapping[str, str] | None,
    output_format: DataFormat,
    timeout: float | None,
    hold_minutes: float | None,
) -> dict[str, Any]:
    request: dict[str, Any] = {"code": code, "request_id": request_id, "output_format": output_format}
    request["library"] = dict(library or {})
    if timeout is not None:
        request["timeout"] = timeout
    if hold_minutes is not None:
        request["hold_minutes"] = hold_minutes
    return request


def format_of(path: Path) -> DataFormat:
    """Return the format that a file's ending stands for.

    Raises
    ------
    ValueError
        None of the endings that are known.
    """
    try:
        return FORMAT_OF_ENDING[path.suffix.lower()]
    except KeyError:
        known = ", ".join(FORMAT_OF_ENDING)
        raise ValueError(f"{path}: the ending {path.suffix!r} is none of {known}") from None


def _result_path(request_id: RequestId, what: str) -> str:
    return f"/v1/results/{urllib.parse.quote(str(request_id), safe='')}/{what}"
