"""HTTP requests to other members of a cluster, for the parcels of jobs that came by the broker."""

from __future__ import annotations

import re
import ssl

from gateway.storage.objects.client import ObjectClient
from gateway.storage.objects.errors import StorageError
from gateway.storage.objects.hosts import refusal
from gateway.storage.objects.retries import error_from
from gateway.storage.objects.target import Target

#: The whole path of a parcel's URL: a member of the cluster could otherwise make hosts send any request to any server.
_PARCEL = re.compile(r"/v1/parcels/[A-Za-z0-9_-]{43}")


class ParcelClient(ObjectClient):
    """An `ObjectClient` for URLs of parcels only, which ignores STORAGE_HOSTS and proxies.

    Parameters
    ----------
    stall_seconds : float
        Longest wait for the next byte of a member.
    tls : ssl.SSLContext
        For members whose address is ``https://``.
    """

    def __init__(self, stall_seconds: float, tls: ssl.SSLContext) -> None:
        super().__init__(stall_seconds, use_proxies=False, tls=tls)

    def refusal(self, target: Target) -> str | None:
        if not _PARCEL.fullmatch(target.url.raw_path_qs):
            return "its URL is not that of a parcel"
        return refusal(target.url, ())


async def read_parcel(client: ObjectClient, url: str, max_bytes: int) -> bytes:
    """Return the content of a parcel; tries once.

    Parameters
    ----------
    client : ObjectClient
        Sends the requests.
    url : str
        Of the parcel.
    max_bytes : int
        Largest content that is accepted.

    Raises
    ------
    StorageError
        It cannot be fetched, or is larger.
    """
    async with client.request("GET", url) as answer:
        if answer.status != 200:
            raise await error_from(answer)
        content = await answer.read(max_bytes)
    if content is None:
        raise StorageError(f"it is larger than {max_bytes} bytes", is_transient=False)
    return content
