"""Receivers of request bodies: ignore the bytes, or collect them in memory up to a limit.

`gateway.http.bodies.uploads` has the one that writes files.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Protocol

from gateway.core.errors import TooLarge
from gateway.http.schemas.strict_json import parse_object

#: Largest body of a request for no job. It is ignored, or parsed on the loop, which takes a millisecond.
SMALL_BODY_BYTES = 65_536


class BodyReceiver(Protocol):
    """Receives the body of one request, piece by piece: at most `cap_bytes`, which `setting` may raise."""

    cap_bytes: int
    setting: str

    @property
    def json_bytes(self) -> int:
        """Number of JSON bytes that are not parsed yet."""

    async def feed(self, chunk: bytes) -> None:
        """Receive the next piece.

        Raises
        ------
        GatewayError
            The body is too large or malformed; no further piece may follow.
        """

    def close(self) -> Coroutine[Any, Any, None] | None:
        """Free all resources whose ownership was not transferred; safe to call twice and at any time.

        Returns
        -------
        coroutine or None
            The part of the work that must be awaited.
        """


def too_large(cap_bytes: int, setting: str = "") -> TooLarge:
    """Return the refusal of a body above `cap_bytes`, with the name of the setting, if there is one."""
    text = f"the body is larger than the {cap_bytes} bytes that are accepted here"
    return TooLarge(f"{text} ({setting})" if setting else text, limit_bytes=cap_bytes)


class NoBody:
    """For routes without a body: a small one is read and ignored, so that the connection can be reused."""

    cap_bytes = SMALL_BODY_BYTES
    setting = ""
    json_bytes = 0

    def __init__(self) -> None:
        self._taken_bytes = 0

    async def feed(self, chunk: bytes) -> None:
        self._taken_bytes += len(chunk)
        if self._taken_bytes > self.cap_bytes:
            raise too_large(self.cap_bytes, self.setting)

    def close(self) -> None:
        pass


class JsonBody:
    """Collects a JSON object in memory, up to a limit."""

    def __init__(self, cap_bytes: int, setting: str = "") -> None:
        self.cap_bytes = cap_bytes
        self.setting = setting
        self._data = bytearray()

    @property
    def json_bytes(self) -> int:
        return len(self._data)

    async def feed(self, chunk: bytes) -> None:
        if len(self._data) + len(chunk) > self.cap_bytes:
            raise too_large(self.cap_bytes, self.setting)
        self._data += chunk

    def value(self) -> dict[str, Any]:
        """Return the object.

        Raises
        ------
        BadRequest
            The body is not a JSON object.
        """
        return parse_object(bytes(self._data))

    def close(self) -> None:
        # a job may run for hours after its request was read
        self._data = bytearray()
