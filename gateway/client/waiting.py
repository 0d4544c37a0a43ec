"""Wait for a job: its request blocks in a thread, and its log is followed in the caller's."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

from gateway.client.errors import TransformError
from gateway.client.log_follower import POLL_SECONDS, Follower, id_query
from gateway.client.tables import TableFiles
from gateway.client.transport import GatewayHttp

#: How long to repeat the cancel of a job whose request is not answered.
CANCEL_SECONDS = 10.0


class PendingJob:
    """A job whose answer is awaited; an exception while it waits cancels the job.

    Parameters
    ----------
    http : GatewayHttp
        The gateway.
    request : dict
        The request, with its ``request_id``.
    """

    def __init__(self, http: GatewayHttp, request: dict[str, Any]) -> None:
        self._http = http
        self._request = request
        self._done = threading.Event()
        self._answer: dict[str, Any] = {}
        self._error: Exception | None = None

    def run(self, files: TableFiles, follower: Follower) -> dict[str, Any]:
        """Send the request, follow the log, and return the response.

        Parameters
        ----------
        files : TableFiles
            Sent with the request.
        follower : Follower
            Of the job's log.
        """
        # a daemon thread, so that the interpreter can exit without waiting for the gateway
        threading.Thread(target=self._post, args=(files,), name="transform-execute", daemon=True).start()
        try:
            while not self._done.wait(POLL_SECONDS):
                follower.poll(is_answered=False)
        except BaseException:
            self._give_up()
            raise
        if self._error is not None:
            raise self._error
        return self._answer if "exit_code" in self._answer else self._await_result(follower)

    def _post(self, files: TableFiles) -> None:
        try:
            self._answer = self._http.post_job(self._request, files, wait=True)
        except Exception as error:  # raised again in the caller's thread
            self._error = error
        finally:
            self._done.set()

    def _give_up(self) -> None:
        """Cancel the job repeatedly until its response arrives: while tables are sent, the gateway does not have it."""
        deadline = time.monotonic() + CANCEL_SECONDS
        while not self._done.is_set() and time.monotonic() < deadline:
            self._cancel()
            self._done.wait(POLL_SECONDS)

    def _await_result(self, follower: Follower) -> dict[str, Any]:
        """Wait for a job that was accepted with 202."""
        try:
            follower.follow()
        except BaseException:
            self._cancel()
            raise
        result = self._http.get_json("/v1/status" + id_query(self._request["request_id"])).get("result")
        return result if isinstance(result, dict) else {}

    def _cancel(self) -> None:
        with contextlib.suppress(TransformError):
            self._http.post_json("/v1/cancel", {"request_id": self._request["request_id"]})
