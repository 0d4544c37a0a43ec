"""Results to presigned PUT URLs."""

from __future__ import annotations

import urllib.parse
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from gateway.errors import FailureCode, JobFailed
from gateway.settings import Settings
from gateway.storage.artifacts import READ_BYTES, OpenOutput
from gateway.storage.connections import Connections
from gateway.storage.exchange import Exchange
from gateway.storage.target import ExchangeError
from gateway.storage.transfer import Patience, Refused, refused


async def put_object(
    url: str,
    body: OpenOutput | bytes,
    settings: Settings,
    what: str,
    on_progress: Callable[[int], None] | None = None,
    connections: Connections | None = None,
    content_type: str | None = None,
) -> None:
    """Upload one object; returns when the storage has confirmed it.

    Parameters
    ----------
    url : str
        Presigned; used exactly as given.
    body : OpenOutput or bytes
        Stays the caller's; may be empty.
    settings : Settings
        ``storage_stall_seconds``.
    what : str
        Names the object in an error: ``"the output"``.
    on_progress : callable, optional
        Called with the bytes sent so far.
    connections : Connections, optional
        What storage is reached by.
    content_type : str, optional
        What the object is; sent only where the URL says that no such header was signed.

    Raises
    ------
    JobFailed
        ``output_upload_failed``, after the retries.

    Notes
    -----
    The body always has a Content-Length: S3 answers 411 to a chunked PUT. No other header is sent that a signature
    could miss; unsigned ``x-amz-*`` headers are refused by S3, and a Content-Type is only harmless as long as the
    signer did not sign one. It spares stores from looking at the content to find out, and some from packing what looks
    like text.
    """
    patience = Patience(settings.storage_stall_seconds)
    headers = {}
    if content_type is not None and _leaves_content_type(url):
        headers["Content-Type"] = content_type
    size_bytes = len(body) if isinstance(body, bytes) else body.size_bytes
    headers["Content-Length"] = str(size_bytes)

    async def attempt() -> None:
        exchange = Exchange("PUT", url, headers, settings.storage_stall_seconds, connections)
        await _put_once(exchange, body, size_bytes, patience, on_progress)

    try:
        await patience.try_again(attempt)
    except (ExchangeError, Refused) as error:
        text = f"{what[:1].upper()}{what[1:]} could not be uploaded: {error}"
        raise JobFailed(FailureCode.OUTPUT_UPLOAD_FAILED, text) from None
    except OSError as error:
        text = f"{what[:1].upper()}{what[1:]} could not be read for the upload: {error.strerror or error}"
        raise JobFailed(FailureCode.OUTPUT_UPLOAD_FAILED, text) from None


def _leaves_content_type(url: str) -> bool:
    """Whether the URL is signed by version 4, which names the headers that are signed, and Content-Type is not one."""
    signed = urllib.parse.parse_qs(urllib.parse.urlsplit(url).query).get("X-Amz-SignedHeaders")
    return signed is not None and "content-type" not in ";".join(signed).lower().split(";")


async def _put_once(
    exchange: Exchange,
    body: OpenOutput | bytes,
    size_bytes: int,
    patience: Patience,
    on_progress: Callable[[int], None] | None,
) -> None:
    sent_bytes = 0
    async with exchange:
        async with aclosing(_blocks(body)) as blocks:
            async for chunk in blocks:
                if not await exchange.send(chunk):
                    break
                sent_bytes += len(chunk)
                patience.check_pace(sent_bytes)
                if on_progress is not None:
                    on_progress(sent_bytes)
        status = await exchange.answer()
        if not 200 <= status < 300:
            raise await refused(exchange)
        if sent_bytes != size_bytes:
            raise ExchangeError(f"the storage answered {status} after {sent_bytes} of {size_bytes} bytes")


async def _blocks(body: OpenOutput | bytes) -> AsyncGenerator[bytes]:
    if isinstance(body, bytes):
        for start in range(0, len(body), READ_BYTES):
            yield body[start : start + READ_BYTES]
        return
    async with aclosing(body.blocks()) as blocks:
        async for block in blocks:
            yield block
