"""One bucket of an S3 server: the four requests that looking after it takes."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

from gateway.storage.exchange import Exchange
from gateway.storage.sigv4 import Signer
from gateway.storage.target import ExchangeError
from gateway.storage.transfer import Refused, refused

STALL_SECONDS = 10.0
LISTING_BYTES = 8 << 20
_NAMESPACE = "{http://s3.amazonaws.com/doc/2006-03-01/}"


class Bucket:
    """A bucket reached with keys; every method raises `ExchangeError` or `Refused`."""

    def __init__(self, signer: Signer, name: str) -> None:
        self._signer = signer
        self.name = name

    async def make(self) -> None:
        """Make the bucket; one that is there already is ours."""
        try:
            await self._ask("PUT", "")
        except Refused as refusal:
            if refusal.status != 409:
                raise

    async def put(self, key: str, content: bytes) -> None:
        """Store one object."""
        await self._ask("PUT", f"/{key}", content=content)

    async def remove_older_than(self, age_seconds: float) -> int:
        """Remove what was written longer ago than that; returns how many objects went."""
        limit = datetime.now(UTC) - timedelta(seconds=age_seconds)
        old = [key async for key, written in self.objects() if written < limit]
        for key in old:
            await self._ask("DELETE", f"/{key}")
        return len(old)

    async def objects(self) -> AsyncIterator[tuple[str, datetime]]:
        """Yield each key with the time it was written at."""
        query = {"list-type": "2", "max-keys": "1000"}
        while True:
            listing = _parsed(await self._ask("GET", "", query))
            for entry in listing.iter(f"{_NAMESPACE}Contents"):
                key = entry.findtext(f"{_NAMESPACE}Key") or ""
                written = datetime.fromisoformat(entry.findtext(f"{_NAMESPACE}LastModified") or "")
                yield key, written
            token = listing.findtext(f"{_NAMESPACE}NextContinuationToken")
            if not token:
                return
            query["continuation-token"] = token

    async def _ask(
        self, method: str, path: str, query: dict[str, str] | None = None, content: bytes | None = None
    ) -> bytes:
        url = self._signer.url(method, f"/{self.name}{path}", query)
        headers = {"Content-Length": str(len(content or b""))} if method == "PUT" else {}
        async with Exchange(method, url, headers, STALL_SECONDS) as exchange:
            if content:
                await exchange.send(content)
            if not 200 <= await exchange.answer() < 300:
                raise await refused(exchange)
            answer = await exchange.whole(LISTING_BYTES)
            if answer is None:
                raise ExchangeError("the storage answered with an endless listing")
            return answer


def _parsed(listing: bytes) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(listing)  # noqa: S314 - our own server's answer, capped in size
    except ElementTree.ParseError:
        raise ExchangeError("the storage answered a listing that is not XML") from None
