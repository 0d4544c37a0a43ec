"""The asynchronous client: the methods of `TransformClient`, each in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ssl
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from gateway.client.client import TransformClient
from gateway.client.errors import TransformError
from gateway.client.log_follower import POLL_SECONDS
from gateway.client.request import new_request_id
from gateway.client.waiting import CANCEL_SECONDS
from gateway.core.job import RequestId

#: Threads, thus calls that wait at the same time; a thread is started when all others are busy.
MAX_CALLS = 64

_Parameters = ParamSpec("_Parameters")
_Returned = TypeVar("_Returned")


def _in_thread(
    method: Callable[Concatenate[TransformClient, _Parameters], _Returned],
) -> Callable[Concatenate[AsyncTransformClient, _Parameters], Coroutine[Any, Any, _Returned]]:
    """Return the asynchronous version of a method."""

    @functools.wraps(method)
    async def call(self: AsyncTransformClient, /, *arguments: Any, **options: Any) -> _Returned:
        return await asyncio.wrap_future(self._start(method, arguments, options))

    return call


def _cancelling(
    method: Callable[Concatenate[TransformClient, _Parameters], _Returned],
) -> Callable[Concatenate[AsyncTransformClient, _Parameters], Coroutine[Any, Any, _Returned]]:
    """Return the asynchronous version of a method whose job is cancelled with the call."""

    @functools.wraps(method)
    async def call(self: AsyncTransformClient, /, *arguments: Any, **options: Any) -> _Returned:
        request_id: RequestId | None = options.get("request_id")
        if request_id is None:
            request_id = new_request_id()
        running = self._start(method, arguments, {**options, "request_id": request_id})
        try:
            return await asyncio.wrap_future(running)
        except asyncio.CancelledError:
            await self._cancel_running(request_id, running)
            raise

    return call


class AsyncTransformClient:
    """A client of one gateway for ``async`` code; use it in an ``async with`` statement.

    Its methods have the parameters, results and exceptions of `TransformClient`'s. A call of `run` that is cancelled
    cancels its job. Callbacks such as ``on_event`` are called in a thread.

    Parameters
    ----------
    url, token, timeout_seconds, trust
        Those of `TransformClient`.
    """

    def __init__(
        self, url: str, token: str = "", timeout_seconds: float = 30.0, trust: ssl.SSLContext | None = None
    ) -> None:
        self._client = TransformClient(url, token, timeout_seconds, trust)
        self._threads = ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="transform-client")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown(wait=False)

    run = _cancelling(TransformClient.run)
    submit = _in_thread(TransformClient.submit)
    fetch = _in_thread(TransformClient.fetch)
    jobs = _in_thread(TransformClient.jobs)
    job = _in_thread(TransformClient.job)
    displays = _in_thread(TransformClient.displays)
    bundle = _in_thread(TransformClient.bundle)
    fetch_bundled_table = _in_thread(TransformClient.fetch_bundled_table)
    delete_job = _in_thread(TransformClient.delete_job)
    fetch_job = _in_thread(TransformClient.fetch_job)
    logs = _in_thread(TransformClient.logs)
    job_logs = _in_thread(TransformClient.job_logs)
    follow = _in_thread(TransformClient.follow)
    follow_job = _in_thread(TransformClient.follow_job)
    cancel = _in_thread(TransformClient.cancel)
    cancel_job = _in_thread(TransformClient.cancel_job)
    status = _in_thread(TransformClient.status)
    held = _in_thread(TransformClient.held)
    release = _in_thread(TransformClient.release)
    open_console = _in_thread(TransformClient.open_console)
    packages = _in_thread(TransformClient.packages)
    reload_packages = _in_thread(TransformClient.reload_packages)
    pause = _in_thread(TransformClient.pause)
    resume = _in_thread(TransformClient.resume)

    def _start(
        self, method: Callable[..., _Returned], arguments: Sequence[Any], options: Mapping[str, Any]
    ) -> Future[_Returned]:
        return self._threads.submit(method, self._client, *arguments, **options)

    async def _cancel_running(self, request_id: RequestId, running: Future[Any]) -> None:
        """Cancel a job repeatedly until its call has ended: the gateway does not have it while its tables are sent."""
        deadline = asyncio.get_running_loop().time() + CANCEL_SECONDS
        while not running.done() and asyncio.get_running_loop().time() < deadline:
            with contextlib.suppress(TransformError, TimeoutError):
                # not in our own threads: all may be busy, and none starts after the end of the `async with` statement
                async with asyncio.timeout_at(deadline):
                    await asyncio.to_thread(self._client.cancel, request_id)
            await asyncio.sleep(POLL_SECONDS)
