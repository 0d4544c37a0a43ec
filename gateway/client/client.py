"""A client of a gateway: run a transform with tables from files and data frames, and get its result.

>>> client = TransformClient("http://localhost:5001", token="...")          # doctest: +SKIP
>>> client.run(Path("totals.py"), {"orders": orders}).frame()               # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import dataclasses
import ssl
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from gateway.client.errors import GatewayRefused, GatewayUnreachable, TransformFailed
from gateway.client.job_stream import StreamEvent, read_stream
from gateway.client.log_follower import Follower, OnEvent, OnLost, id_query, log_line
from gateway.client.output import Output, result_path
from gateway.client.request import job_request, new_request_id, source_of
from gateway.client.result import TransformResult
from gateway.client.tables import Frame, TableFiles
from gateway.client.transport import GatewayHttp
from gateway.client.waiting import PendingJob
from gateway.core.displays import Display, DisplayedProfile
from gateway.core.events import LogLine
from gateway.core.formats import DEFAULT_FORMAT, DataFormat
from gateway.core.job import RequestId

__all__ = ["TransformClient"]


class TransformClient:
    """Client of one gateway; safe to use from several threads.

    Parameters
    ----------
    url : str
        ``http://host:port``, with a path before ``/v1`` if a proxy adds one.
    token : str
        Its AUTH_TOKEN, or one of its AUTH_TOKEN_FILE; empty if it needs none.
    timeout_seconds : float
        Timeout of every request except the execution of a job.
    trust : ssl.SSLContext, optional
        For ``https``; default: the authorities of the system, or those of the file in ``SSL_CERT_FILE``.
    """

    def __init__(
        self, url: str, token: str = "", timeout_seconds: float = 30.0, trust: ssl.SSLContext | None = None
    ) -> None:
        self._http = GatewayHttp(url, token, timeout_seconds, trust)

    def run(
        self,
        script: str | Path,
        tables: Mapping[str, str | Path | Frame] | None = None,
        *,
        library: Mapping[str, str | Path] | None = None,
        timeout: float | None = None,
        output: str | Path | None = None,
        output_format: DataFormat | None = None,
        manifests: Mapping[str, str | Path | Mapping[str, Any]] | None = None,
        request_id: RequestId | None = None,
        hold_minutes: float | None = None,
        label: str | None = None,
        output_schema: Mapping[str, Any] | None = None,
        profile: bool = False,
        on_event: OnEvent | None = None,
    ) -> TransformResult:
        """Run a transform and wait for its result.

        Parameters
        ----------
        script : str or Path
            The source that defines ``transform()``, or its file.
        tables : mapping, optional
            Parameter name to a file, whose ending gives the format (also ``.json``, ``.csv.gz`` and ``.xlsx``), or to a
            data frame.
        library : mapping, optional
            Module name to its source, or the `Path` of its file.
        timeout : float, optional
            Seconds that the job may run; default: the gateway's.
        output : path, optional
            File for the result, which appears complete or not at all. Without it, the result is in memory. The ending
            decides the format: also ``.json`` (an array), ``.csv.gz`` and ``.xlsx``.
        output_format : str, optional
            Default: by the ending of `output`, else arrow, which keeps all types. If given, `output` has this format.
        manifests : mapping, optional
            Table name to its manifest: a file or the object itself.
        request_id : int or str, optional
            Id for `logs` and `cancel`; default: a random one.
        hold_minutes : float, optional
            Minutes to hold the kernel if the job fails in it; `TransformFailed.answer` then has ``held``.
        label : str, optional
            Your description of the job, shown in the history.
        output_schema : mapping, optional
            The output contract: ``{"columns": {name: rules}}``.
        profile : bool, optional
            Profile the columns of the result, which takes time of the job; `TransformResult.profile` then has it.
        on_event : callable, optional
            Called in this thread with each `LogLine`, `Progress` and `StateChanged` of the job.

        Returns
        -------
        TransformResult
            Its `TransformResult.frame` is the result as a data frame.

        Raises
        ------
        TransformFailed
            The job ran and failed; `failures` has a subclass for each code.
        GatewayRefused
            Nothing ran; `refusals` has a subclass for each code.
        GatewayUnreachable, VersionMismatch
            The connection broke, or the gateway's version does not fit the client's.
        OSError
            A file could not be read or written.

        Notes
        -----
        An exception while this waits (KeyboardInterrupt, or one raised by `on_event`) cancels the job.
        """
        request_id = new_request_id() if request_id is None else request_id
        place = Output.of(output, output_format)
        request = job_request(
            source_of(script),
            request_id,
            place.data_format,
            library=library,
            timeout=timeout,
            hold_minutes=hold_minutes,
            label=label,
            output_schema=output_schema,
            profile=profile,
        )
        with TableFiles(tables or {}, manifests or {}) as files:
            follower = Follower(self._http, f"/v1/logs{id_query(request_id)}", on_event or (lambda event: None))
            answer = PendingJob(self._http, request).run(files, follower)
        follower.catch_up()
        log = tuple(follower.lines)
        if answer.get("exit_code") != 0:
            raise TransformFailed.of(answer, log)
        found = place.fetch(self._http, request_id, answer, log)
        if not profile:
            return found
        profiles: list[DisplayedProfile] = []
        with contextlib.suppress(GatewayRefused, GatewayUnreachable):  # the result is there already
            profiles = [each for each in self.displays(found.execution_id) if isinstance(each, DisplayedProfile)]
        return dataclasses.replace(found, profile=profiles[0] if profiles else None)

    def submit(
        self,
        script: str | Path,
        tables: Mapping[str, str | Path | Frame] | None = None,
        *,
        library: Mapping[str, str | Path] | None = None,
        timeout: float | None = None,
        output_format: DataFormat = DEFAULT_FORMAT,
        manifests: Mapping[str, str | Path | Mapping[str, Any]] | None = None,
        request_id: RequestId | None = None,
        hold_minutes: float | None = None,
        label: str | None = None,
        output_schema: Mapping[str, Any] | None = None,
    ) -> RequestId:
        """Submit a job without waiting for its end, and return its id for `follow`, `cancel` and `fetch`.

        The parameters are those of `run`; the default of `output_format` is jsonl.

        Raises
        ------
        GatewayRefused, GatewayUnreachable
            The job was not accepted.
        OSError
            A file could not be read.
        """
        request_id = new_request_id() if request_id is None else request_id
        request = job_request(
            source_of(script),
            request_id,
            output_format,
            library=library,
            timeout=timeout,
            hold_minutes=hold_minutes,
            label=label,
            output_schema=output_schema,
        )
        with TableFiles(tables or {}, manifests or {}) as files:
            self._http.post_job(request, files, wait=False)
        return request_id

    def fetch(self, request_id: RequestId, output: str | Path) -> Path:
        """Write a kept result to a file, and return its path.

        Raises
        ------
        GatewayRefused
            There is no result (404): the job is not finished or failed, or the result has expired.
        """
        path = Path(output)
        self._http.download(result_path(request_id, "output"), path, None)
        return path

    def jobs(self, /, **query: str | float) -> dict[str, Any]:
        """Return one page of the history: ``jobs``, and the ``cursor`` of the next page.

        Parameters
        ----------
        **query : str or float
            ``state``, ``code``, ``since``, ``until``, ``request_id``, ``label``, ``min_duration``, ``min_rows``,
            ``sort``, ``limit``, ``cursor``; see ``GET /v1/jobs``.

        Returns
        -------
        dict

        Raises
        ------
        GatewayRefused, GatewayUnreachable
            A parameter is wrong (400), or the connection broke.
        """
        return self._http.get_json("/v1/jobs" + (f"?{urllib.parse.urlencode(query)}" if query else ""))

    def packages(self) -> list[dict[str, Any]]:
        """Return the packages that jobs can import: ``name``, ``version``, ``preloaded`` and ``added`` of each."""
        return list(self._http.get_json("/v1/packages").get("packages", []))

    def stream(self, on_lost: OnLost = lambda error: None) -> Iterator[StreamEvent]:
        """Yield the changes of all jobs as they happen; see ``GET /v1/stream``.

        Parameters
        ----------
        on_lost : callable, optional
            As for `follow_job`.

        Yields
        ------
        StreamEvent
            ``snapshot`` with the live jobs, then ``changes``. After a lost connection the stream continues where it
            was; a gateway that was restarted begins with a ``snapshot`` again.

        Raises
        ------
        GatewayRefused, GatewayUnreachable
            The token is wrong, or the gateway has not answered for half a minute.
        """
        return read_stream(self._http, on_lost)

    def job(self, job_id: str) -> dict[str, Any]:
        """Return one job of the history by the gateway's own id."""
        return self._http.get_json(_job_path(job_id))

    def displays(self, job_id: str) -> list[Display]:
        """Return the images and tables of a job, and its profile, by the gateway's own id (``execution_id``).

        Raises
        ------
        GatewayRefused, GatewayUnreachable
            The job is unknown (404), or the connection broke.
        """
        found = self._http.get_json(f"{_job_path(job_id)}/displays").get("displays")
        try:
            return msgspec.convert(found, list[Display])
        except msgspec.ValidationError as error:
            raise GatewayUnreachable(f"the response is not that of a gateway: displays: {error}") from None

    def bundle(self, job_id: str) -> dict[str, Any]:
        """Return the bundle of a failed job, which a gateway with KEEP_FAILED_JOBS keeps, by the gateway's own id.

        Raises
        ------
        GatewayRefused
            404 when there is no bundle.
        """
        return self._http.get_json(f"{_job_path(job_id)}/bundle")

    def fetch_bundled_table(self, job_id: str, name: str, output: str | Path) -> None:
        """Write the data of one table of a bundle to a file, compressed as the bundle says.

        Raises
        ------
        GatewayRefused
            404 when none of its data is kept.
        """
        self._http.download(f"{_job_path(job_id)}/bundle/{urllib.parse.quote(name, safe='')}", Path(output), None)

    def delete_job(self, job_id: str) -> None:
        """Remove a finished job, its log and its kept result.

        Raises
        ------
        GatewayRefused
            404 when it is unknown, 409 while it is not finished.
        """
        self._http.delete_json(_job_path(job_id))

    def fetch_job(self, job_id: str, output: str | Path | None = None) -> bytes | None:
        """Write the kept result of a job of the history to a file, or return it without one.

        Raises
        ------
        GatewayRefused
            There is no result (404): the job is not finished or failed, or the result has expired.
        """
        return self._http.download(f"{_job_path(job_id)}/result", None if output is None else Path(output), None)

    def logs(self, request_id: RequestId | None = None) -> list[LogLine]:
        """Return the log of a job so far; without an id, of the job that runs, else waits, else the last one."""
        answer = self._http.get_json("/v1/logs" + id_query(request_id))
        return [log_line(event) for event in answer.get("events", [])]

    def job_logs(self, job_id: str) -> list[LogLine]:
        """Return the log of a job of the history, by the gateway's own id.

        Raises
        ------
        GatewayRefused
            404 when it is unknown.
        """
        return [log_line(event) for event in self._http.get_json(f"{_job_path(job_id)}/logs").get("events", [])]

    def follow(self, request_id: RequestId, on_event: OnEvent) -> None:
        """Call `on_event` with each event of a job, from its beginning to its end.

        Raises
        ------
        GatewayRefused
            404 when the job is unknown.
        GatewayUnreachable
            The gateway has not responded for half a minute.
        """
        Follower(self._http, f"/v1/logs{id_query(request_id)}", on_event).follow()

    def follow_job(self, job_id: str, on_event: OnEvent, on_lost: OnLost = lambda error: None) -> None:
        """Call `on_event` with each event of a job, by the gateway's own id, from its beginning to its end.

        Parameters
        ----------
        job_id : str
            The gateway's own id.
        on_event : callable
            Called with each `LogLine`, `Progress` and `StateChanged`.
        on_lost : callable, optional
            Called with a `GatewayUnreachable` each time that the gateway stops responding. The call waits for it.

        Raises
        ------
        GatewayRefused
            404 when the job is unknown.
        GatewayUnreachable
            The gateway has not responded for half a minute.
        """
        self.job(job_id)  # a gateway that does not answer at all is not waited for
        Follower(self._http, f"{_job_path(job_id)}/logs?", on_event, on_lost).follow()

    def cancel(self, request_id: RequestId) -> None:
        """Cancel a job.

        Raises
        ------
        GatewayRefused
            The job is unknown or finished (404).
        """
        self._http.post_json("/v1/cancel", {"request_id": request_id})

    def cancel_job(self, job_id: str) -> None:
        """Cancel a job by the gateway's own id.

        Raises
        ------
        GatewayRefused
            The job is unknown or finished (404).
        """
        self._http.post_json(f"{_job_path(job_id)}/cancel", {})

    def status(self, request_id: RequestId | None = None) -> dict[str, Any]:
        """Return the state of a job or, without an id, of the gateway, which has ``healthy``."""
        try:
            return self._http.get_json("/v1/status" + id_query(request_id))
        except GatewayRefused as refusal:
            if request_id is None and refusal.body.get("healthy") is False:
                return refusal.body  # status 503 with the same body
            raise

    def held(self) -> list[dict[str, Any]]:
        """Return the kernels that are held for inspection or as a console, oldest first."""
        return list(self._http.get_json("/v1/held").get("held", []))

    def release(self, held_id: str) -> None:
        """Release a held kernel.

        Raises
        ------
        GatewayRefused
            No kernel of this id is held (404).
        """
        self._http.post_json("/v1/release", {"id": held_id})

    def open_console(self, minutes: float = 60.0) -> dict[str, Any]:
        """Hold a ready kernel for a console, and return it in the form of `held`."""
        return self._http.post_json("/v1/console", {"minutes": minutes})

    def reload_packages(self) -> list[dict[str, Any]]:
        """Apply added and removed packages to later jobs, and return all packages; see `packages`."""
        return list(self._http.post_json("/v1/packages/reload", {}).get("packages", []))

    def pause(self) -> None:
        """Make the gateway refuse new jobs until `resume`; accepted jobs go on."""
        self._http.post_json("/v1/pause", {})

    def resume(self) -> None:
        """Make the gateway accept new jobs again."""
        self._http.post_json("/v1/resume", {})


def _job_path(job_id: str) -> str:
    return f"/v1/jobs/{urllib.parse.quote(job_id, safe='')}"
