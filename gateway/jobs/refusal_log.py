"""The reason of a refused request as its log object, because Metabase shows a failed run's log and nothing else."""

from __future__ import annotations

import asyncio
import logging
import time

from gateway.core.errors import JobFailed
from gateway.core.events import LogLine
from gateway.storage.objects.client import ObjectClient
from gateway.storage.outputs.log_objects import line_object
from gateway.storage.outputs.upload import put_object

log = logging.getLogger(__name__)

#: The caller waits for its response meanwhile.
WRITE_SECONDS = 2.0
#: A burst of refusals must not become a burst of uploads; further refusals are answered without one.
MOST_AT_ONCE = 4


class RefusalLog:
    """Writes one ERROR line to the events URL of a refused request.

    Parameters
    ----------
    client : ObjectClient
        Sends the uploads.
    """

    def __init__(self, client: ObjectClient) -> None:
        self._client = client
        self._running = 0

    async def write(self, events_url: str, message: str) -> bool:
        """Upload the reason; return whether the storage confirmed it within `WRITE_SECONDS`.

        Parameters
        ----------
        events_url : str
            Presigned URL for a PUT, used exactly as given.
        message : str
            The reason, as in the response.

        Returns
        -------
        bool
        """
        if self._running >= MOST_AT_ONCE:
            return False
        self._running += 1
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                body = line_object(LogLine(time.time(), "stderr", f"ERROR: {message}"))
                await put_object(self._client, events_url, body, "the reason of the refusal")
        except (JobFailed, TimeoutError) as error:
            log.info("the reason of a refusal could not be written to its events_url: %s", error or "timeout")
            return False
        finally:
            self._running -= 1
        return True
