"""When a transfer is tried again, and how its failure is told."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from gateway.storage.connections import StaleConnection
from gateway.storage.exchange import Exchange
from gateway.storage.target import ExchangeError

T = TypeVar("T")

RETRY_DELAYS_SECONDS = (0.1, 0.5, 2.0)
"""Waits before the second, third and fourth attempt: long enough for a connection reset or a restarting
proxy, short enough that a job whose storage is gone fails while somebody still looks."""

SLOWEST_BYTES_PER_SECOND = 50_000
"""A transfer slower than this on average is given up, or a server that sends one byte now and then would
hold a job for ever."""

_S3_CODE = re.compile(rb"<Code>([A-Za-z0-9.]{1,64})</Code>")


class Refused(Exception):
    """The storage answered, but not with success."""

    def __init__(self, status: int, reason: str, authority: str) -> None:
        super().__init__(status, reason, authority)
        self.status = status
        self.authority = authority
        self._reason = reason

    def __str__(self) -> str:
        reason = f" ({self._reason})" if self._reason else ""
        advice = _ADVICE.get(403 if self._reason in _SIGNATURE_CODES else self.status, "")
        return f"the storage answered {self.status}{reason} at {self.authority}{advice}"


_ADVICE = {
    403: "; the URL may have expired, or was signed for another host",
    404: "; there is no such object",
}

# servers built on gofakes3 tell these with 400 in part: expired (AccessDenied), not signed (UnsupportedAlgorithm)
_SIGNATURE_CODES = {
    "AccessDenied",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "RequestExpired",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "UnsupportedAlgorithm",
}


async def refused(exchange: Exchange) -> Refused:
    """Return the error for an answer that is no success, with S3's own word for it but not its text."""
    found = _S3_CODE.search(await exchange.refusal_body())
    return Refused(exchange.status, found[1].decode("ascii") if found else "", exchange.authority)


class Patience:
    """Bounds one transfer as a whole, over all of its attempts.

    Parameters
    ----------
    stall_seconds : float
        The longest silence allowed inside an attempt; no attempt starts later than twice this after the first
        failure.
    """

    def __init__(self, stall_seconds: float) -> None:
        self._stall_seconds = stall_seconds
        self._attempt_began = time.monotonic()

    async def try_again(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Return what `attempt` returns, tried again after connection errors and 5xx, never after 3xx and
        4xx.

        Raises
        ------
        ExchangeError, Refused
            Those of the last attempt.
        """
        first_failure: float | None = None
        for delay in (*RETRY_DELAYS_SECONDS, None):
            try:
                return await self._attempt(attempt)
            except (ExchangeError, Refused) as error:
                now = time.monotonic()
                first_failure = now if first_failure is None else first_failure
                final = isinstance(error, Refused) and error.status < 500
                if final or delay is None or now - first_failure > 2 * self._stall_seconds:
                    raise
            await asyncio.sleep(delay * random.uniform(0.75, 1.25))  # noqa: S311 - spreads retries only
        raise AssertionError("the last attempt returns or raises")

    async def _attempt(self, attempt: Callable[[], Awaitable[T]]) -> T:
        self._attempt_began = time.monotonic()
        try:
            return await attempt()
        except StaleConnection:
            # Nothing is wrong with the storage: the connection had been kept for too long.
            return await attempt()

    def check_pace(self, transferred_bytes: int) -> None:
        """Give up on a transfer that lives, but too slowly to end.

        Raises
        ------
        ExchangeError
            The attempt took longer than `transferred_bytes` can excuse.
        """
        elapsed = time.monotonic() - self._attempt_began
        if elapsed > 2 * self._stall_seconds + transferred_bytes / SLOWEST_BYTES_PER_SECOND:
            raise ExchangeError(f"the storage is too slow: {transferred_bytes} bytes in {elapsed:.0f} s")
