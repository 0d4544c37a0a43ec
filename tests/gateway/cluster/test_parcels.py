"""Jobs with files on other members: the same answer as from one gateway, and no trace of the URLs."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import ssl
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateway.cluster.runner.parcels import JobParcels
from gateway.core.errors import JobFailed
from gateway.core.events import EventLog
from gateway.core.job import FileSource, InputTable, Job, KeptDelivery
from gateway.core.settings import Settings
from gateway.storage import ObjectClient, fetch_tables
from gateway.storage.parcels import Parcels
from tests.gateway.cluster.conftest import NEEDS_SERVER
from tests.gateway.cluster.gate import Gate
from tests.gateway.cluster.members import OUTPUT, ROWS, urls, wait_for_members
from tests.support.gateway_process import Answer, GatewayProcess, gateway_command
from tests.support.nats_server import NatsServer
from tests.support.ports import free_port
from tests.support.s3 import S3Server

HOST = ("-m", "gateway", "host")
ECHO = "def transform(t):\n    print('rows:', len(t), flush=True)\n    return t\n"
TABLE = b'{"a":1,"b":"x"}\n{"a":2,"b":"y"}\n'
MANIFEST = json.dumps(
    {
        "schema_version": 1,
        "fields": [{"name": "a", "base_type": "type/Integer"}, {"name": "b", "base_type": "type/Text"}],
    }
).encode()
#: What differs between two runs of one job.
OF_THE_RUN = ("execution_id", "execution_time", "stages", "peak_memory_bytes", "request_id")


@dataclass
class Apart:
    """A member that only accepts jobs, a host that only runs them, and a gateway of its own."""

    front: GatewayProcess
    host: GatewayProcess
    alone: GatewayProcess
    gate: Gate
    shared: Path
    nats_server: NatsServer


@pytest.fixture(scope="module")
def apart(storage: S3Server) -> Iterator[Apart]:
    if shutil.which("nats-server") is None:
        pytest.skip(NEEDS_SERVER)
    with ExitStack() as opened:
        shared = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="tg-shared-", dir="/tmp")))
        shared.chmod(0o777)
        gate, server = opened.enter_context(Gate()), opened.enter_context(NatsServer())
        roots = {"WORKING_DIR_ROOTS": str(shared), "READY_KERNELS": "0"}
        as_front = {**server.settings("acceptor"), "SLOTS": "0", **roots}
        as_front |= {"PORT": str(gate.member_port), "CLUSTER_ADVERTISE_URL": gate.url}
        # the limits on hosts in requests do not hold for addresses that came by the broker
        as_host = {
            **server.settings("host"),
            "SLOTS": "1",
            "READY_KERNELS": "0",
            "STORAGE_HOSTS": f"127.0.0.1:{storage.port}",
        }
        front = opened.enter_context(GatewayProcess(as_front))
        host = opened.enter_context(GatewayProcess(as_host, launch=HOST))
        alone = opened.enter_context(GatewayProcess({"SLOTS": "1", **roots}))
        wait_for_members([front], 2)
        yield Apart(front, host, alone, gate, shared, server)


def multipart(gateway: GatewayProcess, request: dict[str, Any], files: dict[str, tuple[str, bytes]]) -> Answer:
    parts = {"request": ("", json.dumps(request).encode()), **files}
    body = b""
    for name, (filename, content) in parts.items():
        named = f'; filename="{filename}"' if filename else ""
        body += f'--b\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'.encode() + content + b"\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    return gateway.request("POST", "/v1/execute", body + b"--b--\r\n", headers=headers)


def compared(answer: Answer) -> dict[str, Any]:
    body: dict[str, Any] = answer.body
    shown = {name: value for name, value in body.items() if name not in OF_THE_RUN}
    return shown | {"status": answer.status, "stages": set(body.get("stages", ())), "names": list(body)}


def messages(gateway: GatewayProcess, request_id: str) -> list[tuple[str, str]]:
    return [(line["stream"], line["message"]) for line in gateway.log(request_id)]


def kept(gateway: GatewayProcess, job: str) -> dict[str, Any]:
    answers = {what: gateway.request("GET", f"/v1/results/{job}/{what}") for what in ("output", "manifest", "events")}
    found: dict[str, Any] = {what: (each.status, each.headers["Content-Type"]) for what, each in answers.items()}
    found |= {what: answers[what].raw for what in ("output", "manifest") if answers[what].status == 200}
    lines = answers["events"].raw.splitlines() if answers["events"].status == 200 else ()
    return found | {"lines": [json.loads(line)["message"] for line in lines]}


def wait_until_empty(directory: Path) -> None:
    """Return when nothing of a job is left, which is removed after its answer."""
    deadline = time.monotonic() + 60
    while left := list(directory.iterdir()):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


MIXED = "import pandas as pd\ndef transform():\n    return pd.DataFrame({'x': [1, 'a', None]})\n"
JOBS: dict[str, dict[str, Any]] = {
    "kept": {"code": f"print('hello')\n{OUTPUT}"},
    "inline": {"code": OUTPUT, "inline": True},
    "inline-parquet": {"code": OUTPUT, "inline": True, "output_format": "parquet"},
    "warning": {"code": MIXED, "inline": True},
    "fails": {"code": "def transform():\n    raise ValueError('no')\n"},
    "exits": {"code": "import os\ndef transform():\n    os._exit(3)\n"},
    "large-code": {"code": f"text = '{'a' * 1_200_000}'\n{OUTPUT}", "inline": True},
    "unknown-member": {"code": OUTPUT, "colour": "red"},
    "empty": {"code": "import pandas as pd\ndef transform():\n    return pd.DataFrame({'x': []})\n"},
}


@pytest.mark.parametrize("kind", JOBS)
def test_a_kept_or_inline_result_is_as_from_one_gateway(apart: Apart, kind: str) -> None:
    job = {"request_id": kind, "timeout": 30, **JOBS[kind]}
    answers = [gateway.request("POST", "/v1/execute", job) for gateway in (apart.alone, apart.front)]
    assert compared(answers[1]) == compared(answers[0])
    assert messages(apart.front, kind) == messages(apart.alone, kind)
    assert kept(apart.front, kind) == kept(apart.alone, kind)
    wait_until_empty(apart.front.state_dir / "s/parcels")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "with-url", "unused", "broken"])
def test_uploaded_tables_are_as_from_one_gateway(apart: Apart, storage: S3Server, kind: str) -> None:
    files = {"table:t": ("t.jsonl", TABLE), "manifest:t": ("m.json", MANIFEST)}
    request = {"code": ECHO, "request_id": f"upload-{kind}", "timeout": 30, "inline": True}
    prefix = storage.new_prefix()
    match kind:
        case "csv":
            files = {"table:t": ("t.csv", b"a,b\n1,x\n2,y\n")}
        case "with-url":
            del request["inline"]
            request |= urls(storage, prefix)
        case "unused":
            request["code"] = OUTPUT
        case "broken":
            files["table:t"] = ("t.jsonl", b"{")
    answers = [multipart(gateway, request, files) for gateway in (apart.alone, apart.front)]
    assert answers[0].body["code"] == ("input_invalid" if kind == "broken" else "ok"), answers[0].raw
    assert compared(answers[1]) == compared(answers[0])
    assert messages(apart.front, f"upload-{kind}") == messages(apart.alone, f"upload-{kind}")
    if kind == "with-url":
        assert storage.get(f"{prefix}/output") == TABLE
    wait_until_empty(apart.front.state_dir / "s/uploads")


@pytest.mark.parametrize("kind", ["works", "fails"])
def test_a_working_dir_is_as_from_one_gateway(apart: Apart, kind: str) -> None:
    code = ECHO if kind == "works" else "def transform(t):\n    raise ValueError('no')\n"
    found = []
    for name, gateway in (("alone", apart.alone), ("front", apart.front)):
        place = apart.shared / f"{kind}-{name}"
        place.mkdir()
        place.chmod(0o777)
        (place / "t.csv").write_text("a,b\n1,x\n2,y\n")
        request = {"code": code, "working_dir": str(place), "timeout": 30, "table_mapping": {"t": f"{place}/t.csv"}}
        answer = gateway.request("POST", "/execute", request)
        files = {path.name: path.read_text() for path in place.iterdir()}
        found.append((json.loads(answer.raw.replace(str(place).encode(), b"DIR")), answer.status, files))
    for body, *_ in found:
        for name in ("request_id", "execution_time"):
            body.pop(name)
    assert found[1] == found[0]
    assert set(found[0][2]) >= {"stdout.log", "stderr.log"}


async def test_a_file_that_vanished_fails_the_job_as_on_one_machine(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path, working_dir_roots=(tmp_path,))
    (tmp_path / "store").mkdir()
    job = Job("job", ECHO, 5.0, KeptDelivery(), tables=(InputTable("t", FileSource(tmp_path / "gone")),))
    parcels = JobParcels(Parcels("http://127.0.0.1:9", tmp_path), settings, job, "id", None)
    with pytest.raises(JobFailed) as apart:
        parcels.check_files()
    async with ObjectClient(5) as client:
        with pytest.raises(JobFailed) as alone:
            await fetch_tables(client, job.tables, tmp_path, settings, EventLog())
    assert vars(apart.value) == vars(alone.value)
    assert str(apart.value) == str(alone.value)


def files_below(directory: Path) -> Iterator[bytes]:
    """Yield the content of files, but for that of the key; those of an ended kernel are removed meanwhile."""
    for folder, _, names in os.walk(directory):
        for path in (Path(folder, name) for name in names if name != "parcels-key"):
            with suppress(FileNotFoundError):
                if path.is_file():
                    yield path.read_bytes()


def test_no_text_has_a_token(apart: Apart) -> None:
    """Neither logs, history, metrics and status of any part, nor the files of a member or a host."""
    gate, front = apart.gate, apart.front
    before = len(gate.asked)
    request = {"code": ECHO, "request_id": "secret", "timeout": 30}
    answer = multipart(front, request, {"table:t": ("t.jsonl", TABLE), "manifest:t": ("m.json", MANIFEST)})
    assert answer.status == 200, answer.raw
    asked = gate.asked[before:]
    assert [(method, status) for method, _, status in asked] == [("GET", 200)] * 2 + [("PUT", 200)] * 2
    tokens = {path.rpartition("/")[2] for _, path, _ in asked}
    assert {len(token) for token in tokens} == {43}
    for _, path, _ in asked:  # refusals say nothing either
        for method, tried in (
            ("GET", path),
            ("PUT", path),
            ("GET", f"{path}/more"),
            ("POST", path),
            ("GET", f"{path}?a"),
        ):
            gate.ask(method, tried, b"x" if method != "GET" else None)
    job = f"/v1/jobs/{answer.body['execution_id']}"
    texts = [answer.raw, *(line.encode() for each in (front, apart.host) for line in each.output)]
    for gateway in (front, apart.host):
        own = ("/metrics", "/healthz/ready")
        routes = (
            own if gateway is apart.host else (*own, "/v1/status", "/v1/jobs", "/v1/stream?job=x", job, f"{job}/logs")
        )
        texts += [gateway.request("GET", route).raw for route in routes if "stream" not in route]
        texts += files_below(gateway.state_dir / "s")
    assert any(b"/v1/parcels/..." in text for text in texts)
    assert [token for token in tokens for text in texts if token.encode() in text] == []


def test_a_url_holds_until_its_host_has_what_it_needs(apart: Apart) -> None:
    gate, front = apart.gate, apart.front
    before = len(gate.asked)
    code = "import time\ndef transform(t):\n    print('running', flush=True)\n    time.sleep(50)\n    return t\n"
    assert front.execute(OUTPUT, "other").status == 200
    used = [path for _, path, _ in gate.asked[before:]]
    before = len(gate.asked)
    calls: list[Answer] = []
    files = {"table:t": ("t.jsonl", TABLE), "manifest:t": ("m.json", MANIFEST)}
    request = {"code": code, "request_id": "holds", "timeout": 60}
    thread = threading.Thread(target=lambda: calls.append(multipart(front, request, files)))
    thread.start()
    front.wait_for_line("holds", "running")
    inputs = [path for _, path, _ in gate.asked[before:]]
    assert len(inputs) == 2
    wrong = inputs[0][:-1] + ("A" if inputs[0][-1] != "A" else "B")
    for path in (*inputs, *used, wrong, "/v1/parcels/x", "/v1/parcels/%C3%A4"):
        for method in ("GET", "PUT"):
            assert gate.ask(method, path, b"x" if method == "PUT" else None)[0] == 404, (method, path)
    assert front.request("POST", "/v1/cancel", {"request_id": "holds"}).status == 200
    thread.join(60)
    assert calls[0].body["code"] == "cancelled"


def test_without_an_address_a_member_without_slots_refuses_such_jobs(apart: Apart, stack: ExitStack) -> None:
    settings = {**apart.nats_server.settings("acceptor"), "SLOTS": "0"}
    front = stack.enter_context(GatewayProcess(settings))
    wait_for_members([front], 3)
    refused = front.execute(OUTPUT, "kept")
    assert (refused.status, refused.body["code"]) == (400, "bad_request"), refused.raw
    assert "CLUSTER_ADVERTISE_URL" in refused.body["error"]
    assert front.request("GET", f"/v1/parcels/{'a' * 43}").status == 404
    assert front.request("GET", "/openapi.json").raw == apart.front.request("GET", "/openapi.json").raw


def test_members_with_tls(stack: ExitStack, nats_installed: None) -> None:
    """Hosts check the certificate of a member by the authorities of CLUSTER_TLS_CA_FILE."""
    server = stack.enter_context(NatsServer(tls=True))
    port, folder = free_port(), server.directory / "broker"
    if os.geteuid() == 0:
        for path in (folder, *folder.iterdir()):
            os.chown(path, (server.directory / "member").stat().st_uid, -1)
    own = {"TLS_CERT_FILE": str(folder / "tls.crt"), "TLS_KEY_FILE": str(folder / "tls.key")}
    settings = {**server.settings("acceptor"), "SLOTS": "0", "PORT": str(port), **own}
    settings["CLUSTER_ADVERTISE_URL"] = f"https://localhost:{port}"
    front = stack.enter_context(GatewayProcess(settings))
    as_host = {**server.settings("host"), "SLOTS": "1", "READY_KERNELS": "0"}
    stack.enter_context(GatewayProcess(as_host, launch=HOST))
    context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    answer = executed_over_tls(port, context, {"code": OUTPUT, "request_id": 1, "inline": True, "timeout": 30})
    assert answer["output"].encode() == ROWS, "\n".join(front.output[-20:])


def executed_over_tls(port: int, context: ssl.SSLContext, job: dict[str, Any]) -> dict[str, Any]:
    connection = http.client.HTTPSConnection("localhost", port, timeout=60, context=context)
    try:
        headers = {"Authorization": "Bearer test-token-1234", "Content-Type": "application/json"}
        connection.request("POST", "/v1/execute", json.dumps(job), headers)
        found: dict[str, Any] = json.loads(connection.getresponse().read())
        return found
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"CLUSTER_ADVERTISE_URL": "10.0.0.5:5001"}, "'10.0.0.5:5001' is not http://HOST:PORT or https://HOST:PORT"),
        ({"CLUSTER_ADVERTISE_URL": "http://10.0.0.5:5001/path"}, "is not http://HOST:PORT"),
        ({"CLUSTER_ADVERTISE_URL": "http://user:secret@10.0.0.5"}, "'10.0.0.5' is not http://HOST:PORT"),
        ({"CLUSTER_ADVERTISE_URL": "http://0.0.0.0:5001"}, "a host that other members reach"),
        ({"CLUSTER_ADVERTISE_URL": "http://*.example.com"}, "a host that other members reach"),
        ({"CLUSTER_ADVERTISE_URL": "http://10.0.0.5:x"}, "is not http://HOST:PORT"),
        ({"CLUSTER_ADVERTISE_URL": "http://10.0.0.5:5001", "CLUSTER_URL": ""}, "is set without CLUSTER_URL"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(settings: dict[str, str], text: str, tmp_path_factory: Any) -> None:
    state = str(tmp_path_factory.mktemp("tg"))
    ended = gateway_command("--port=0", STATE_DIR=state, **{"CLUSTER_URL": "nats://127.0.0.1:1", **settings})
    assert ended.returncode == 2, ended.stderr
    assert text in ended.stderr.splitlines()[-1]
    assert "secret" not in ended.stderr
