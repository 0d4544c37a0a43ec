"""Retries of a transfer, and the error for a refusal."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

from gateway.storage.objects.client import StorageResponse
from gateway.storage.objects.errors import StatusError, StorageError
from gateway.storage.objects.target import expiry_of

T = TypeVar("T")

#: Pauses before the second, third and fourth attempt: long enough for a connection reset or a restarting proxy, short
#: enough that a job whose storage is gone fails soon.
RETRY_DELAYS_SECONDS = (0.1, 0.5, 2.0)

#: Pause before each later attempt of a transfer with a deadline. A storage that is back after an outage gets a result
#: within this time.
LATER_DELAY_SECONDS = 5.0

#: Longest wait that a storage may ask for with ``Retry-After``: a job that fetches holds its slot meanwhile.
LONGEST_RETRY_AFTER_SECONDS = 30.0

_S3_CODE = re.compile(rb"<Code>([A-Za-z0-9.]{1,64})</Code>")

#: In the answers of Go's server (MinIO) and of nginx to HTTP on a port for HTTPS.
_TAKES_TLS = re.compile(rb"HTTP request (to an HTTPS server|was sent to HTTPS port)")


async def error_from(answer: StorageResponse) -> StatusError:
    """Return the error for an answer that is not a success, with S3's error code but without its text.

    Parameters
    ----------
    answer : StorageResponse
        Its body is read here.

    Returns
    -------
    StatusError
    """
    body = await answer.read_error_body()
    found = _S3_CODE.search(body)
    code = found[1].decode("ascii") if found else "its URL must begin with https://" if _TAKES_TLS.search(body) else ""
    return StatusError(answer.status, code, answer.authority, _retry_after(answer.headers.get("Retry-After", "")))


class RetryPolicy:
    """Bounds all attempts of one transfer together.

    Parameters
    ----------
    stall_seconds : float
        Longest silence allowed inside an attempt. Without a deadline, no attempt starts later than twice this after
        the first failure.
    deadline : float, optional
        `time.monotonic` seconds after which no attempt starts. With a deadline, the number of attempts has no bound.
    on_retry : callable, optional
        Called before each attempt but the first.
    """

    def __init__(
        self, stall_seconds: float, deadline: float | None = None, on_retry: Callable[[], None] = lambda: None
    ) -> None:
        self._stall_seconds = stall_seconds
        self._deadline = deadline
        self._on_retry = on_retry

    async def run(self, attempt: Callable[[], Awaitable[T]], url: str = "") -> T:
        """Return what `attempt` returns, tried again after errors that may pass.

        Parameters
        ----------
        attempt : callable
            Starts one attempt.
        url : str
            That the attempts use. A failure after its expiry is final; the first attempt is made in any case, because
            the clock of the storage decides.

        Raises
        ------
        StorageError
            That of the last attempt.
        """
        delays, give_up_at = iter(RETRY_DELAYS_SECONDS), self._deadline
        while True:
            try:
                return await attempt()
            except StorageError as error:
                if error.is_transient and (expiry := expiry_of(url)) is not None and expiry <= datetime.now(UTC):
                    raise StorageError(f"{error}; its URL has expired", is_transient=False) from error
                now = time.monotonic()
                give_up_at = now + 2 * self._stall_seconds if give_up_at is None else give_up_at
                delay = next(delays, None if self._deadline is None else LATER_DELAY_SECONDS)
                if delay is None or not error.is_transient:
                    raise
                delay *= random.uniform(0.75, 1.25)  # noqa: S311 - spreads retries only
                delay = max(delay, min(error.retry_after_seconds, LONGEST_RETRY_AFTER_SECONDS))
                if now + delay > give_up_at:
                    raise
            await asyncio.sleep(delay)
            self._on_retry()


def _retry_after(text: str) -> float:
    """Return the seconds of a ``Retry-After`` header, which has seconds or a date (RFC 9110, section 10.2.3)."""
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return 0.0
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
