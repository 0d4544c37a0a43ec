"""Results to presigned PUT URLs."""

from __future__ import annotations

import urllib.parse
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from gateway.core.errors import FailureCode, JobFailed
from gateway.core.uploads import UploadPermit
from gateway.storage.objects.client import ObjectClient
from gateway.storage.objects.errors import StorageError
from gateway.storage.objects.retries import RetryPolicy, error_from
from gateway.storage.outputs.job_files import READ_BYTES, OpenOutput


async def put_object(
    client: ObjectClient,
    url: str,
    body: OpenOutput | bytes,
    what: str,
    on_progress: Callable[[int], None] | None = None,
    content_type: str | None = None,
    retries: RetryPolicy | None = None,
    permit: UploadPermit | None = None,
) -> None:
    """Upload one object and return when the storage has confirmed it.

    Parameters
    ----------
    client : ObjectClient
        Sends the requests.
    url : str
        Presigned; used exactly as given.
    body : OpenOutput or bytes
        Stays open; may be empty.
    what : str
        Names the object in an error: ``"the output"``.
    on_progress : callable, optional
        Called with the number of bytes sent so far.
    content_type : str, optional
        Type of the object; sent only where the URL says that no such header was signed.
    retries : RetryPolicy, optional
        Bounds the attempts; by default for a caller that waits.
    permit : callable, optional
        Awaited before the last block is sent: without that block, the storage keeps nothing. Before an empty body, it
        is awaited before the request.

    Raises
    ------
    JobFailed
        ``output_upload_failed``, after the retries.

    Notes
    -----
    The body always has a Content-Length: S3 answers 411 to a chunked PUT. No other header is sent that a signature
    could miss; S3 refuses unsigned ``x-amz-*`` headers, and a Content-Type is only harmless as long as the signer did
    not sign one. With a type, stores need not guess it from the content, and do not compress what looks like text.
    """
    size_bytes = len(body) if isinstance(body, bytes) else body.size_bytes
    headers = {}
    if content_type is not None and _leaves_content_type(url):
        headers["Content-Type"] = content_type

    async def attempt() -> None:
        if permit is not None and not size_bytes:
            await permit()
        async with client.request(
            "PUT",
            url,
            headers=headers,
            content=_blocks(body) if permit is None else _held_back(body, permit),
            content_bytes=size_bytes,
            on_progress=on_progress,
        ) as answer:
            if not 200 <= answer.status < 300:
                raise await error_from(answer)

    try:
        await (retries or RetryPolicy(client.stall_seconds)).run(attempt, url)
    except StorageError as error:
        text = f"{what[:1].upper()}{what[1:]} could not be uploaded: {error}"
        raise JobFailed(FailureCode.OUTPUT_UPLOAD_FAILED, text, retryable=error.is_transient) from None
    except OSError as error:
        text = f"{what[:1].upper()}{what[1:]} could not be read for the upload: {error.strerror or error}"
        raise JobFailed(FailureCode.GATEWAY_DISK_FAILED, text) from None


def _leaves_content_type(url: str) -> bool:
    """Return whether the URL is signed by version 4, whose list of signed headers is without Content-Type."""
    signed = urllib.parse.parse_qs(urllib.parse.urlsplit(url).query).get("X-Amz-SignedHeaders")
    return signed is not None and "content-type" not in ";".join(signed).lower().split(";")


async def _held_back(body: OpenOutput | bytes, permit: UploadPermit) -> AsyncGenerator[bytes]:
    held_back = b""
    async with aclosing(_blocks(body)) as blocks:
        async for block in blocks:
            if held_back:
                yield held_back
            held_back = block
    if held_back:
        await permit()
        yield held_back


async def _blocks(body: OpenOutput | bytes) -> AsyncGenerator[bytes]:
    if isinstance(body, bytes):
        for start in range(0, len(body), READ_BYTES):
            yield body[start : start + READ_BYTES]
        return
    async with aclosing(body.blocks()) as blocks:
        async for block in blocks:
            yield block
