"""Objects expire, and so do the parts of uploads that were given up."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path

import pytest

from gateway.storage.embedded_s3 import server as embedded_s3
from gateway.storage.embedded_s3.server import EmbeddedS3
from gateway.storage.embedded_s3.sigv4 import Signer
from gateway.storage.objects.errors import StorageError
from tests.gateway.http.harness import eventually
from tests.gateway.storage.embedded_s3.conftest import ACCESS_KEY, BUCKET, SECRET_KEY, boto, options


async def test_age_comes_from_the_server_and_not_from_the_uploader(server: EmbeddedS3) -> None:
    client = boto(server)
    with contextlib.closing(client):
        for key, claimed in (("old", "1000000000"), ("new", "4000000000")):
            await asyncio.to_thread(client.put_object, Bucket=BUCKET, Key=key, Body=b"", Metadata={"mtime": claimed})
    written = {key: moment async for key, moment in server.bucket.objects()}
    assert all(abs(datetime.now(UTC) - written[key]) < timedelta(minutes=1) for key in ("old", "new"))


async def test_uploads_cut_off_by_a_kill_are_swept_and_objects_outlive_it(tmp_path: Path) -> None:
    server = EmbeddedS3(options(tmp_path, expire_seconds=0))
    await server.start()
    await server.bucket.put("run-1/whole", b"x")
    url = Signer(server.endpoint, ACCESS_KEY, SECRET_KEY).url("PUT", f"/{BUCKET}/run-1/half")
    request = f"PUT {url.removeprefix(server.endpoint)} HTTP/1.1\r\nHost: {server.endpoint[7:]}\r\nContent-Length: 9000000\r\n\r\n"
    _, writer = await asyncio.open_connection("127.0.0.1", server.options.port)
    writer.write(request.encode() + b"x" * 4_000_000)
    directory = server.options.data_dir / "objects" / BUCKET / "run-1"
    assert await eventually(lambda: len(os.listdir(directory)) == 2), "its part of the upload lies beside the whole"
    assert server._process is not None
    server._process.kill()
    await server.stop()
    writer.close()
    assert len(os.listdir(directory)) == 2, "it leaves its part of an upload"
    again = EmbeddedS3(server.options)
    await again.start()
    try:
        assert os.listdir(directory) == ["whole"]
        assert {key async for key, _ in again.bucket.objects()} == {"ready", "run-1/whole"}
    finally:
        await again.stop()


async def test_the_parts_of_an_upload_that_was_given_up_expire_while_the_server_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_s3, "SWEEPS_PER_LIFETIME", 1e5)
    server = EmbeddedS3(options(tmp_path, expire_seconds=3600))
    await server.start()
    client = boto(server)
    try:
        for key in ("old", "young"):
            upload = client.create_multipart_upload(Bucket=BUCKET, Key=f"{key}/x")["UploadId"]
            client.upload_part(Bucket=BUCKET, Key=f"{key}/x", PartNumber=1, UploadId=upload, Body=b"x" * 6_000_000)
        objects = server.options.data_dir / "objects" / BUCKET
        (part,) = (objects / "old").iterdir()
        os.utime(part, (0, 0))
        assert await eventually(lambda: not part.exists())
        assert len(os.listdir(objects / "young")) == 1
    finally:
        client.close()
        await server.stop()


async def test_old_objects_expire_and_young_ones_stay(server: EmbeddedS3, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        await server.bucket.put(f"run-1/old {number}", b"x")
    assert await server.bucket.remove_older_than(3600) == 0
    await asyncio.sleep(1.1)  # S3 tells the time of writing in whole seconds
    await server.bucket.put("run-2/young", b"x")
    young = {key: written async for key, written in server.bucket.objects()}["run-2/young"]

    class Clock(datetime):
        @classmethod
        def now(cls, _zone: tzinfo | None = None) -> datetime:
            return young

    monkeypatch.setattr("gateway.storage.embedded_s3.bucket.datetime", Clock)
    assert await server.bucket.remove_older_than(0.5) >= 3
    assert [key async for key, _ in server.bucket.objects()] == ["run-2/young"]
    assert await server.bucket.remove_older_than(-60) == 1
    await server.bucket.put("the bucket is still there", b"x")


async def test_objects_with_any_key_expire(server: EmbeddedS3) -> None:
    keys = {"plain", "a b/c+d%20", "a\x01b", "\x1b[0m", "\r", "<&>\"'", "x=y?#", "\N{SNOWMAN}/\ufffe"}
    for key in keys:
        await server.bucket.put(key, b"x")
    assert {key async for key, _ in server.bucket.objects()} == keys | {"ready"}
    assert await server.bucket.remove_older_than(-60) == len(keys) + 1
    assert [key async for key, _ in server.bucket.objects()] == []


def can_change(path: Path, change: str) -> bool:
    """Change whether a file can be removed, and return whether that was possible."""
    return shutil.which("chattr") is not None and not subprocess.run(["chattr", change, path], check=False).returncode


async def test_an_object_that_cannot_be_removed_keeps_no_other_one(
    server: EmbeddedS3, caplog: pytest.LogCaptureFixture
) -> None:
    for key in ("a/stays", "b/goes"):
        await server.bucket.put(key, b"x")
    stays = server.options.data_dir / "objects" / BUCKET / "a" / "stays"
    if not can_change(stays, "+i"):
        pytest.skip("needs root, and a file system with the attribute `i`")
    try:
        assert await server.bucket.remove_older_than(-60) == 2  # with "ready"
        assert [key async for key, _ in server.bucket.objects()] == ["a/stays"]
    finally:
        assert can_change(stays, "-i")
    assert "1 of 3 expired objects could not be removed: the storage answered 500" in caplog.text


async def test_a_stop_during_expiry_is_not_reported_as_its_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = EmbeddedS3(options(tmp_path))
    began = asyncio.Event()

    async def asks_until_the_server_is_gone(_: float) -> int:
        assert server._process is not None
        began.set()
        await server._process.wait()
        raise StorageError("connection refused")

    monkeypatch.setattr(server.bucket, "remove_older_than", asks_until_the_server_is_gone)
    await server.start()
    await began.wait()
    await server.stop()
    assert "could not be expired" not in caplog.text
