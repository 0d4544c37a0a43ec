"""Requests for jobs that are still arriving: their headers have been read, but no job is submitted yet."""

from __future__ import annotations

import asyncio
from contextlib import suppress

#: Longest wait for a request for a job after its headers. A body of usual size takes milliseconds, and a long upload
#: must not delay requests about other jobs.
ARRIVAL_SECONDS = 1.0


class Arrivals:
    """Lets a request wait for the requests for jobs that came before it."""

    def __init__(self) -> None:
        self._arriving: dict[object, tuple[float, asyncio.Event]] = {}

    def begin(self, request: object) -> None:
        """Record that the headers of a request have been read.

        Parameters
        ----------
        request : object
            Identifies the request.
        """
        deadline = asyncio.get_running_loop().time() + ARRIVAL_SECONDS
        self._arriving[request] = deadline, asyncio.Event()

    def end(self, request: object) -> None:
        """Record that the job of a request is submitted, or that there will be none. It may be called twice.

        Parameters
        ----------
        request : object
            As it was given to `begin`.
        """
        _, submitted = self._arriving.pop(request, (0.0, None))
        if submitted is not None:
            submitted.set()

    async def wait(self) -> None:
        """Return when all requests that are arriving now have ended, each at most `ARRIVAL_SECONDS` old."""
        for deadline, submitted in tuple(self._arriving.values()):
            with suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    await submitted.wait()
