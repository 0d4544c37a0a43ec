"""The embedded S3 server checks signatures, stores whole objects, lists them and keeps its files private."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from base64 import b64encode
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import md5
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tornado.ioloop import IOLoop

from gateway.core.errors import ConfigurationError, JobFailed
from gateway.core.job import InputTable, UrlSource
from gateway.core.settings import Settings
from gateway.storage import ObjectClient
from gateway.storage.embedded_s3.server import EmbeddedS3
from gateway.storage.embedded_s3.sigv4 import Signer
from gateway.storage.inputs.fetch import fetch_tables
from gateway.storage.outputs.upload import put_object
from tests.gateway.storage.conftest import Recorder
from tests.gateway.storage.embedded_s3.conftest import ACCESS_KEY, BUCKET, SECRET_KEY, boto, options


def read_bytes(pid: int) -> int:
    """Return what a process has read so far, from files and sockets."""
    return int(Path(f"/proc/{pid}/io").read_text().split()[1])


async def test_urls_presigned_by_boto3_work_and_signatures_are_checked(
    server: EmbeddedS3, client: ObjectClient, settings: Settings, tmp_path: Path
) -> None:
    other = boto(server)
    target = {"Bucket": BUCKET, "Key": "run-1/out put+ü.csv"}
    await put_object(client, other.generate_presigned_url("put_object", target), b"content", "the output")
    url = other.generate_presigned_url("get_object", target)
    into = tmp_path / "in"
    into.mkdir()
    (fetched,) = await fetch_tables(client, (InputTable("t", UrlSource(url)),), into, settings, Recorder())
    assert fetched.data_path.read_bytes() == b"content"
    with pytest.raises(Exception, match="403"):
        await put_object(client, url.replace("Signature=", "Signature=0"), b"x", "the output")
    other.close()
    assert server.status() == {"healthy": True, "endpoint": server.endpoint, "bucket": BUCKET, "restarts": 0}


async def test_an_object_is_stored_whole_and_unchanged_or_not_at_all(server: EmbeddedS3) -> None:
    client = boto(server)
    with pytest.raises(client.exceptions.ClientError, match="BadDigest"):
        client.put_object(
            Bucket=BUCKET, Key="bent", Body=b"content", ContentMD5=b64encode(md5(b"other").digest()).decode()
        )
    url = urlsplit(client.generate_presigned_url("put_object", {"Bucket": BUCKET, "Key": "cut"}))
    with socket.create_connection((url.hostname or "", url.port or 0), timeout=60) as connection:
        head = f"PUT {url.path}?{url.query} HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Length: 1000000\r\n\r\n"
        connection.sendall(head.encode() + b"x" * 500_000)
        connection.shutdown(socket.SHUT_WR)
        assert not connection.recv(64).startswith(b"HTTP/1.1 200")  # it has seen the end
    client.close()
    assert [key async for key, _ in server.bucket.objects()] == ["ready"]


async def test_refusals_suggest_a_cause_in_the_url(server: EmbeddedS3, client: ObjectClient) -> None:
    await server.bucket.put("key", b"x")
    path = f"/{BUCKET}/key"
    signer = Signer(server.endpoint, ACCESS_KEY, SECRET_KEY)
    urls = {
        "AccessDenied": signer.url("PUT", path, seconds=60, now=datetime.now(UTC) - timedelta(seconds=61)),
        "UnsupportedAlgorithm": server.endpoint + path,
        "SignatureDoesNotMatch": signer.url("GET", path),
        "InvalidAccessKeyId": Signer(server.endpoint, "another", SECRET_KEY).url("PUT", path),
    }
    for code, url in urls.items():
        with pytest.raises(JobFailed, match=rf"answered 40\d \({code}\) .*; the URL may have expired"):
            await put_object(client, url, b"y", "the output")


def test_stored_objects_and_settings_are_private_to_the_gateway(
    io_loop: IOLoop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RCLONE_READ_ONLY", "true")
    monkeypatch.setenv("RCLONE_LOG_FILE", str(tmp_path / "log"))
    server = EmbeddedS3(options(tmp_path))
    previous = os.umask(0)
    try:
        io_loop.run_sync(server.start)
        io_loop.run_sync(lambda: server.bucket.put("run-1/table.jsonl", b"secret"))
        process = server._process
        assert process is not None
        assert SECRET_KEY.encode() not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
    finally:
        os.umask(previous)
        io_loop.run_sync(server.stop)
    assert os.listdir(tmp_path) == ["s3"]
    (stored,) = tmp_path.rglob("table.jsonl")
    assert stored.stat().st_mode & 0o777 == 0o600
    while (stored := stored.parent) != tmp_path:
        assert stored.stat().st_mode & 0o777 == 0o700, stored


@pytest.mark.parametrize(
    ("keys", "setting"),
    [
        ({"access_key": "ab"}, "INTERNAL_S3_ACCESS_KEY"),
        ({"access_key": "with space"}, "INTERNAL_S3_ACCESS_KEY"),
        ({"access_key": "a,b,c"}, "INTERNAL_S3_ACCESS_KEY"),
        ({"access_key": "a=b"}, "INTERNAL_S3_ACCESS_KEY"),
        ({"access_key": "a&b"}, "INTERNAL_S3_ACCESS_KEY"),
        ({"access_key": "nul\0"}, "INTERNAL_S3_ACCESS_KEY"),
        ({"secret_key": ""}, "INTERNAL_S3_SECRET_KEY"),
        ({"secret_key": "a,b"}, "INTERNAL_S3_SECRET_KEY"),
        ({"secret_key": "a\n"}, "INTERNAL_S3_SECRET_KEY"),
    ],
)
async def test_keys_that_it_could_not_hold_are_refused(tmp_path: Path, keys: dict[str, str], setting: str) -> None:
    server = EmbeddedS3(replace(options(tmp_path), **keys))  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=setting):
        await server.start()
    assert not server.healthy


async def test_listing_continues_beyond_a_thousand_objects(server: EmbeddedS3) -> None:
    for number in range(1001):
        await server.bucket.put(f"many/{number}", b"")
    assert len([key async for key, _ in server.bucket.objects() if key.startswith("many/")]) == 1001


async def test_a_listing_reads_no_object_and_a_get_reads_its_own_once(server: EmbeddedS3) -> None:
    content = b"x" * 20_000_000
    client = boto(server)
    with contextlib.closing(client):
        await asyncio.to_thread(client.put_object, Bucket=BUCKET, Key="large", Body=content)
        assert server._process is not None
        before = read_bytes(server._process.pid)
        assert "large" in [key async for key, _ in server.bucket.objects()]
        listed = read_bytes(server._process.pid)
        assert listed - before < 1_000_000
        got = await asyncio.to_thread(lambda: client.get_object(Bucket=BUCKET, Key="large")["Body"].read())
        assert got == content
        assert read_bytes(server._process.pid) - listed < 1.1 * len(content)


def test_signature_is_that_of_the_published_example() -> None:
    """The example of "Authenticating Requests: Using Query Parameters" in the S3 API reference."""
    signer = Signer(
        "https://examplebucket.s3.amazonaws.com", "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
    )
    url = signer.url("GET", "/test.txt", seconds=86400, now=datetime(2013, 5, 24, tzinfo=UTC))
    assert url.endswith("X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404")
