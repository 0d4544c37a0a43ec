"""Where the bytes of a request body go as they arrive: nowhere, into memory up to a cap, or into files."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Protocol

from gateway.errors import TooLarge
from gateway.http.body import parse_object

IGNORED_BODY_BYTES = 65_536


class Intake(Protocol):
    """Takes the body of one request, piece by piece."""

    cap_bytes: int

    @property
    def json_bytes(self) -> int:
        """Bytes of JSON that wait to be parsed."""

    async def feed(self, chunk: bytes) -> None:
        """Take the next piece.

        Raises
        ------
        GatewayError
            The body is too large or malformed; nothing more is fed then.
        """

    def close(self) -> Coroutine[Any, Any, None] | None:
        """Free what was taken and not handed on; safe to call twice and at any time. What must wait is returned."""


def too_large(cap_bytes: int) -> TooLarge:
    """Return the refusal of a body above `cap_bytes`."""
    return TooLarge(f"the body is larger than the {cap_bytes} bytes that are taken here", limit_bytes=cap_bytes)


class NoBody:
    """For routes that need no body: a small one is read and ignored, so that the connection can be kept."""

    cap_bytes = IGNORED_BODY_BYTES
    json_bytes = 0

    def __init__(self) -> None:
        self._taken_bytes = 0

    async def feed(self, chunk: bytes) -> None:
        """Count and forget."""
        self._taken_bytes += len(chunk)
        if self._taken_bytes > self.cap_bytes:
            raise too_large(self.cap_bytes)

    def close(self) -> None:
        """Nothing is held."""


class JsonBody:
    """Collects a JSON object in memory, up to a cap."""

    def __init__(self, cap_bytes: int) -> None:
        self.cap_bytes = cap_bytes
        self._data = bytearray()

    @property
    def json_bytes(self) -> int:
        """Bytes of JSON that wait to be parsed."""
        return len(self._data)

    async def feed(self, chunk: bytes) -> None:
        """Keep the next piece."""
        if len(self._data) + len(chunk) > self.cap_bytes:
            raise too_large(self.cap_bytes)
        self._data += chunk

    def value(self) -> dict[str, Any]:
        """Return the object.

        Raises
        ------
        BadRequest
        """
        return parse_object(bytes(self._data))

    def close(self) -> None:
        """Let go of the bytes: a job may run for hours after its request was read."""
        self._data = bytearray()
