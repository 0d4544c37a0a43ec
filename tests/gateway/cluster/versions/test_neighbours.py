"""Members of neighbouring versions work together, as in an upgrade of one member after the other."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from gateway.cluster import wire
from gateway.core.wire import decode_job
from tests.gateway.cluster.members import OUTPUT, ROWS, SLOW, in_background, urls, wait_for_members
from tests.support.gateway_process import GatewayProcess
from tests.support.nats_server import NatsServer
from tests.support.s3 import S3Server

ROOT = Path(__file__).parents[4]

#: The commit whose package is the earlier version, and which sent the recorded messages.
EARLIER = "11eeefa"
WHERE = "import gateway.cluster; print(*gateway.cluster.__path__)"
RECORDED = Path(__file__).with_name("recorded_messages.jsonl")


#: Starts the installed package, not that of the directory from which it is started.
INSTALLED = ("-P", "-m", "gateway")


@pytest.fixture(scope="module")
def earlier() -> Iterator[str]:
    """Yield the interpreter of an environment that has the earlier package and the dependencies of this one."""
    packages = ("gateway", "kernel_spec", "transform_shim")
    archive = subprocess.run(["git", "archive", EARLIER, *packages], cwd=ROOT, capture_output=True, check=False)
    if archive.returncode:
        pytest.skip(f"the history of this clone does not have the commit {EARLIER}")
    directory = Path(tempfile.mkdtemp(prefix="tg-earlier-", dir="/tmp"))
    try:
        directory.chmod(0o755)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory], check=True)
        site = directory / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
        subprocess.run(["tar", "-x", "-C", site], input=archive.stdout, check=True)
        (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        python = str(directory / "bin/python")
        found = subprocess.run([python, "-P", "-c", WHERE], capture_output=True, text=True, check=True, cwd=ROOT)
        assert found.stdout.strip() == str(site / "gateway/cluster")
        yield python
    finally:
        shutil.rmtree(directory)


@pytest.mark.parametrize("is_front", [True, False], ids=["accepts", "runs"])
def test_a_job_passes_between_the_versions(
    stack: ExitStack, nats_server: NatsServer, storage: S3Server, earlier: str, is_front: bool
) -> None:
    pythons = (earlier, sys.executable) if is_front else (sys.executable, earlier)
    acceptor = {**nats_server.settings("acceptor"), "SLOTS": "0"}
    front = stack.enter_context(GatewayProcess(acceptor, launch=INSTALLED, python=pythons[0]))
    as_host = {**nats_server.settings("host"), "SLOTS": "1", "READY_KERNELS": "0"}
    stack.enter_context(GatewayProcess(as_host, launch=(*INSTALLED, "host"), python=pythons[1]))
    wait_for_members([front], 2)
    prefix = storage.new_prefix()
    answer = front.execute(f"print('hello')\n{OUTPUT}", "job", **urls(storage, prefix))
    assert answer.status == 200, answer.raw
    assert storage.get(f"{prefix}/output") == ROWS
    assert front.log("job")[0]["message"] == "hello"
    places = urls(storage, storage.new_prefix())
    thread, answers = in_background(front, SLOW.format(seconds=50), "long", timeout=60, **places)
    front.wait_for_line("long", "running")
    assert front.request("POST", "/v1/cancel", {"request_id": "long"}).status == 200
    thread.join(60)
    assert answers[0].body["code"] == "cancelled"


def test_members_of_both_versions_answer_about_each_others_jobs(
    stack: ExitStack, nats_server: NatsServer, storage: S3Server, earlier: str
) -> None:
    shared = {**nats_server.settings(), "SLOTS": "1", "READY_KERNELS": "0"}
    old, new = (
        stack.enter_context(GatewayProcess(dict(shared), launch=INSTALLED, python=each))
        for each in (earlier, sys.executable)
    )
    wait_for_members([old, new], 2)
    for one, other in ((old, new), (new, old)):
        assert one.execute(OUTPUT, "kept").status == 200
        assert other.request("GET", "/v1/results/kept/output").raw == ROWS
        assert other.log("kept") == one.log("kept")
        assert other.request("GET", "/v1/jobs").body["missing_members"] == []


def recorded() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RECORDED.read_text().splitlines()]


@pytest.mark.parametrize("message", recorded(), ids=lambda message: message["type"])
def test_messages_of_the_earlier_version_are_read(message: dict[str, Any]) -> None:
    kinds = {each.__struct_config__.tag: each for each in vars(wire).values() if is_message(each)}
    found = wire.decode(kinds[message["type"]], json.dumps(message).encode())
    assert json.loads(wire.encode(found)).items() >= message.items()
    if isinstance(found, wire.Assignment):
        assert decode_job(bytes(found.job)).code


def is_message(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, wire.Struct) and kind.__struct_config__.tag is not None
