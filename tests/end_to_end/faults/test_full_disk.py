"""A disk without space or inodes is never the fault of a job: it is refused, or fails as `gateway_disk_failed`."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway_process import Answer, GatewayProcess, command_of, descendants

OK = "import pandas as pd\ndef transform():\n    return pd.DataFrame({'x': [1]})"
ECHO = "def transform(t):\n    return t"
FLOOR_BYTES = 20_000_000

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a small disk is a mount, which takes root")


@pytest.fixture(scope="module")
def disk() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="tg-disk-", dir="/tmp"))
    options = "size=80m,nr_inodes=3000,mode=755"
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", directory], check=True)
        yield directory
    finally:
        subprocess.run(["umount", "-l", directory], check=False)
        directory.rmdir()


@pytest.fixture(scope="module")
def gateway(disk: Path) -> Iterator[GatewayProcess]:
    settings = {"STATE_DIR": str(disk / "s"), "MIN_FREE_DISK_BYTES": str(FLOOR_BYTES)}
    with GatewayProcess(settings) as started:
        yield started


@contextmanager
def filled(disk: Path, left_bytes: int = 0) -> Iterator[None]:
    path = disk / "filler"
    found = os.statvfs(disk)
    try:
        with path.open("wb", buffering=0) as file:
            file.write(bytes(found.f_bavail * found.f_frsize - left_bytes))
            if not left_bytes:
                with suppress(OSError):
                    while True:
                        file.write(b" ")
        yield
    finally:
        path.unlink()


@contextmanager
def without_inodes(disk: Path) -> Iterator[None]:
    directory = disk / "fillers"
    directory.mkdir()
    try:
        with suppress(OSError):  # not a count of those that are free now: the gateway takes and frees some meanwhile
            for number in itertools.count():
                (directory / str(number)).touch()
        yield
    finally:
        shutil.rmtree(directory)


def wait_until_accepted(gateway: GatewayProcess) -> None:
    """Return when a job succeeds: the files of the last one are removed after its answer."""
    deadline = time.monotonic() + 60
    while (answer := gateway.execute(OK)).status != 200:
        assert time.monotonic() < deadline, answer.body


def with_table(gateway: GatewayProcess, code: str, table: str) -> Answer:
    part = '--b\r\nContent-Disposition: form-data; name="{}"{}\r\n\r\n{}\r\n'
    body = part.format("request", "", json.dumps({"request_id": "table", "code": code}))
    body += part.format("table:t", '; filename="t.csv"', table) + "--b--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    return gateway.request("POST", "/v1/execute", body.encode(), headers=headers)


def test_jobs_are_refused_while_the_disk_is_full(gateway: GatewayProcess, disk: Path) -> None:
    with filled(disk):
        for answer in (gateway.execute(OK), with_table(gateway, ECHO, "x\n1\n")):
            assert (answer.status, answer.body["code"], answer.body["retryable"]) == (503, "disk_full", True)
            assert "Retry-After" in answer.headers
        status = gateway.request("GET", "/v1/status")
        assert (status.status, status.body["healthy"]) == (503, False)
        assert "the disk of STATE_DIR has 0.0 MiB left" in status.body["disk"]["problem"]
    wait_until_accepted(gateway)
    assert gateway.request("GET", "/v1/status").body["disk"]["problem"] is None


def test_jobs_are_refused_while_there_are_no_inodes(gateway: GatewayProcess, disk: Path) -> None:
    with without_inodes(disk):
        answer = gateway.execute(OK)
        assert (answer.status, answer.body["code"]) == (503, "disk_full")
        assert "inodes left, fewer than 1000" in answer.body["error"]
    wait_until_accepted(gateway)


def test_files_that_do_not_fit_are_refused_before_they_are_read(gateway: GatewayProcess, disk: Path) -> None:
    with filled(disk, left_bytes=FLOOR_BYTES + 500_000):
        answer = with_table(gateway, ECHO, "x\n" + "1234567\n" * 100_000)
    assert (answer.status, answer.body["code"]) == (503, "disk_full")


@pytest.mark.parametrize(
    "code",
    [
        "def transform():\n    open('f', 'wb').write(bytes(200_000_000))",
        "def transform():\n    import pandas\n    return pandas.DataFrame({'x': range(12_000_000)})",
        "import os\ndef transform():\n    n = 0\n    while True:\n        open(str(n), 'w').close()\n        n += 1",
    ],
    ids=["file", "output", "inodes"],
)
def test_a_disk_that_fills_up_during_a_job_is_not_the_fault_of_the_job(gateway: GatewayProcess, code: str) -> None:
    answer = gateway.execute(code)
    assert (answer.body["code"], answer.body["retryable"]) == ("gateway_disk_failed", True), answer.body
    wait_until_accepted(gateway)


def test_a_directory_that_is_removed_below_a_job_is_not_the_fault_of_the_job(
    gateway: GatewayProcess, disk: Path
) -> None:
    code = (
        "import pathlib, time\ndef transform():\n    print('begun')\n"
        "    while (pathlib.Path.cwd().parent / 'out').exists():\n        time.sleep(0.01)\n    return 1"
    )
    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(gateway.execute, code, "removed", timeout=60)
        gateway.wait_for_line("removed", "begun")
        for directory in (disk / "s" / "workspaces").glob("*/out"):
            shutil.rmtree(directory)
        answer = going.result(timeout=60)
    assert (answer.body["code"], answer.body["retryable"]) == ("gateway_disk_failed", True), answer.body
    assert "does not have the job's directory any more" in answer.body["error"]
    wait_until_accepted(gateway)


def test_a_fork_server_that_ends_on_a_full_disk_comes_back_and_says_what_it_waits_for(
    gateway: GatewayProcess, disk: Path
) -> None:
    wait_for_fork_server(gateway, lambda fork_server: fork_server["state"] == "ready")
    with filled(disk):
        # the oldest of that name: its forks have it too
        os.kill(
            min(pid for pid in descendants(gateway.pid) if b"kernel_spec.fork_server" in command_of(pid)),
            signal.SIGKILL,
        )
        wait_for_fork_server(gateway, lambda fork_server: "No space left on device" in fork_server["reason"])
    wait_for_fork_server(gateway, lambda fork_server: fork_server["state"] == "ready")
    wait_until_accepted(gateway)


def wait_for_fork_server(gateway: GatewayProcess, is_seen: Callable[[dict[str, Any]], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_seen(found := gateway.request("GET", "/v1/status").body["fork_server"]):
        assert time.monotonic() < deadline, found
        time.sleep(0.02)


def test_a_disk_that_stands_still_ends_the_intake_and_loses_nothing() -> None:
    image = Path(tempfile.mkdtemp(prefix="tg-still-", dir="/tmp"))
    disk, file = image / "disk", image / "image"
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, image)
        image.chmod(0o755)
        disk.mkdir()
        file.touch()
        os.truncate(file, 200_000_000)
        for command in (["mkfs.ext4", "-q", str(file)], ["mount", "-o", "loop", str(file), str(disk)]):
            if shutil.which(command[0]) is None or subprocess.run(command, check=False).returncode:
                pytest.skip("no disk can be made of a file here")
        stack.callback(subprocess.run, ["umount", "-l", str(disk)], check=False)
        gateway = stack.enter_context(GatewayProcess({"STATE_DIR": str(disk / "s")}))
        deadline = time.monotonic() + 60
        while gateway.request("GET", "/v1/status").body["ready_kernels"]["starting"]:
            assert time.monotonic() < deadline, "a kernel that starts writes to the disk"
            time.sleep(0.05)
        request = {"code": OK, "request_id": "accepted"}
        with ThreadPoolExecutor(1) as pool:
            subprocess.run(["fsfreeze", "--freeze", disk], check=True)
            try:
                waiting = pool.submit(
                    gateway.request, "POST", "/v1/execute", request, headers={"Prefer": "respond-async"}
                )
                deadline = time.monotonic() + 60
                while (status := gateway.request("GET", "/v1/status")).status == 200:
                    assert time.monotonic() < deadline, "it says that it is healthy, and nothing can be accepted"
                    time.sleep(0.05)
                assert "has not finished a write for" in status.body["disk"]["problem"]
                refused = gateway.execute(OK, "refused")
                assert (refused.status, refused.body["code"]) == (503, "store_failed")
            finally:
                subprocess.run(["fsfreeze", "--unfreeze", disk], check=True)
            accepted = waiting.result(timeout=60)
        assert accepted.status == 202, accepted.body
        assert gateway.wait_for_end(accepted.body["execution_id"])["code"] == "ok"
        wait_until_accepted(gateway)


def test_a_start_on_a_full_disk_says_so(disk: Path) -> None:
    with filled(disk):
        environment = {"STATE_DIR": str(disk / "other"), "PORT": "0"}
        command = [sys.executable, "-m", "gateway"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert ended.returncode == 1, "a service is started again when there is room"
    assert "the disk of the state directory" in ended.stderr
    assert "ALLOW_UNSANDBOXED" not in ended.stderr


@pytest.mark.parametrize("name", ["jobs", "results", "uploads", "outbox", "store/jobs.db"])
def test_a_part_of_the_state_directory_that_is_removed_ends_the_intake(
    gateway: GatewayProcess, disk: Path, name: str
) -> None:
    path, moved = disk / "s" / name, disk / "moved"
    path.rename(moved)
    try:
        answer = gateway.execute(OK)
        assert (answer.status, answer.body["code"], answer.body["retryable"]) == (503, "store_failed", True)
        status = gateway.request("GET", "/v1/status").body
        assert not status["healthy"]
        for text in (answer.body["error"], status["disk"]["problem"]):
            assert Path(name).name in text
            assert "restart the gateway" in text
    finally:
        moved.rename(path)
    wait_until_accepted(gateway)
