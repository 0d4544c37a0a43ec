"""One bucket of an S3 server: make it, put, list and delete objects."""

from __future__ import annotations

import logging
import urllib.parse
import xml.etree.ElementTree as ElementTree
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

from gateway.storage.embedded_s3.sigv4 import Signer
from gateway.storage.objects.client import ObjectClient
from gateway.storage.objects.errors import StatusError, StorageError
from gateway.storage.objects.retries import error_from

log = logging.getLogger(__name__)

#: A server on this machine that makes no progress for this time hangs.
STALL_SECONDS = 10.0
#: More than a listing of 1000 keys of 1024 bytes, each escaped, takes.
LISTING_BYTES = 8 << 20
_NAMESPACE = "{http://s3.amazonaws.com/doc/2006-03-01/}"


class S3Bucket:
    """A bucket that is accessed with keys; every method may raise `StorageError`.

    Parameters
    ----------
    signer : Signer
        For the server's endpoint and keys.
    name : str
        Name of the bucket.
    """

    def __init__(self, signer: Signer, name: str) -> None:
        self._signer = signer
        self._client = ObjectClient(STALL_SECONDS, use_proxies=False)
        self.name = name

    async def aclose(self) -> None:
        """Close the connections to the server."""
        await self._client.aclose()

    async def make(self) -> None:
        """Make the bucket, unless it exists."""
        try:
            await self._ask("PUT", "")
        except StatusError as error:
            if error.status != 409:
                raise

    async def put(self, key: str, content: bytes) -> None:
        """Store one object.

        Parameters
        ----------
        key : str
            Not yet quoted.
        content : bytes
            Its content.
        """
        await self._ask("PUT", f"/{key}", content=content)

    async def remove_older_than(self, age_seconds: float) -> int:
        """Remove objects that were written longer ago than `age_seconds`; log how many the server does not remove.

        Parameters
        ----------
        age_seconds : float
            By the server's clock in whole seconds.

        Returns
        -------
        int
            How many objects were removed.
        """
        limit = datetime.now(UTC) - timedelta(seconds=age_seconds)
        old = [key async for key, written in self.objects() if written < limit]
        refused: list[StatusError] = []
        for key in old:
            try:
                await self._ask("DELETE", f"/{key}")
            except StatusError as error:  # the others must not stay because of this one
                refused.append(error)
        if refused:
            text = "embedded S3: %d of %d expired objects could not be removed: %s"
            log.warning(text, len(refused), len(old), refused[-1])
        return len(old) - len(refused)

    async def objects(self) -> AsyncIterator[tuple[str, datetime]]:
        """List the bucket.

        Yields
        ------
        tuple of str and datetime
            Key and time of writing.
        """
        # XML cannot have every character of a key
        query = {"list-type": "2", "max-keys": "1000", "encoding-type": "url"}
        while True:
            listing = _parsed(await self._ask("GET", "", query))
            for entry in listing.iter(f"{_NAMESPACE}Contents"):
                key = urllib.parse.unquote_plus(entry.findtext(f"{_NAMESPACE}Key") or "")
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
        async with self._client.request(method, url, content=content) as answer:
            if not 200 <= answer.status < 300:
                raise await error_from(answer)
            found = await answer.read(LISTING_BYTES)
            if found is None:
                raise StorageError("the storage answered with a listing that is too large")
            return found


def _parsed(listing: bytes) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(listing)  # noqa: S314 - our own server's answer, capped in size
    except ElementTree.ParseError:
        raise StorageError("the storage answered with a listing that is not XML") from None
