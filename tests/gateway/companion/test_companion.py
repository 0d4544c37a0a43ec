"""The companion's reading of sources, and its choice of the running gateway."""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from gateway.client.errors import GatewayUnreachable
from gateway.companion import runs
from gateway.companion.protocol import Closed, LoadTable, NotUnderstood, RunTransform, Wire
from gateway.companion.requests import RequestWorker
from gateway.companion.table_sources import SourceError, fetch_source
from gateway.companion.tables import LoadedTable
from gateway.process.pidfile import PidFile

CSV = b"a,b\n1,x\n"
JSONL = b'{"a": 1, "b": "x"}\n'


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    directory = tmp_path / "inputs"
    directory.mkdir()
    return directory


async def fetch(inputs: Path, source: Path | str, **more: str) -> LoadedTable:
    request = LoadTable.model_validate({"id": 1, "op": "load", "name": "t", "source": str(source), **more})
    return await fetch_source(request, inputs, lambda done_bytes: None)


def write(path: Path, kind: str) -> Path:
    table = pa.table({"a": [1], "b": ["x"]})
    match kind:
        case "parquet":
            pyarrow.parquet.write_table(table, path)
        case "arrow":
            pyarrow.feather.write_feather(table, path)
        case "arrow stream":
            with pa.ipc.new_stream(path, table.schema) as writer:
                writer.write_table(table)
        case "csv":
            path.write_bytes(CSV)
        case "jsonl":
            path.write_bytes(JSONL)
    return path


@pytest.mark.parametrize("kind", ["parquet", "arrow", "arrow stream", "csv", "jsonl"])
async def test_format_is_read_from_the_content_where_the_name_has_none(kind: str, tmp_path: Path, inputs: Path) -> None:
    table = await fetch(inputs, write(tmp_path / "table", kind))
    assert table.data_format == kind.split()[0]
    assert table.data_path.name == f"data.{table.data_format}"


@pytest.mark.parametrize("ending", ["gz", "zst"])
async def test_packed_files_are_unpacked(ending: str, tmp_path: Path, inputs: Path) -> None:
    path = tmp_path / f"t.csv.{ending}"
    path.write_bytes(gzip.compress(CSV) if ending == "gz" else pa.compress(CSV, "zstd", asbytes=True))
    table = await fetch(inputs, path)
    assert (table.data_format, table.data_path.read_bytes()) == ("csv", CSV)
    assert os.listdir(inputs) == ["data.csv"]


async def test_damaged_archive_is_refused(tmp_path: Path, inputs: Path) -> None:
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(CSV)[:-12])
    with pytest.raises(SourceError, match=r"t\.csv\.gz: not valid gzip"):
        await fetch(inputs, tmp_path / "t.csv.gz")


async def test_links_and_the_home_directory_are_the_users_own(
    tmp_path: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.csv").write_bytes(CSV)
    (tmp_path / "link.csv").symlink_to("t.csv")
    monkeypatch.setenv("HOME", str(tmp_path))
    table = await fetch(inputs, "~/link.csv")
    assert table.data_path.read_bytes() == CSV
    assert not table.data_path.is_symlink()
    assert table.data_path.stat().st_mode & 0o444 == 0o444


@pytest.mark.parametrize("source", ["/dev/zero", "/tmp"])
async def test_only_regular_files_are_tables(source: str, inputs: Path) -> None:
    with pytest.raises(SourceError, match="not a file"):
        await fetch(inputs, source)


async def test_missing_manifest_names_the_manifest(tmp_path: Path, inputs: Path) -> None:
    (tmp_path / "t.csv").write_bytes(CSV)
    with pytest.raises(SourceError, match=r"gone\.json: no such file"):
        await fetch(inputs, tmp_path / "t.csv", manifest="gone.json")


@pytest.mark.parametrize(
    ("url", "which", "said"),
    [
        ("metabase.example", "7", "METABASE_URL, which is set where Jupyter is started, is neither http nor https"),
        ("http://a b", "7", "METABASE_URL, which is set where Jupyter is started, contains a space"),
        ("http://127.0.0.1:1", "", "expected metabase:ID or metabase:NAME"),
    ],
)
async def test_invalid_metabase_url_or_card_is_refused(
    url: str, which: str, said: str, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METABASE_URL", url)
    monkeypatch.setenv("METABASE_API_KEY", "k")
    with pytest.raises(SourceError, match=said):
        await fetch(inputs, f"metabase:{which}")


def test_invalid_gateway_url_is_reported_with_the_name_of_its_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRANSFORM_GATEWAY_URL", "gateway.example")
    request = RunTransform(id=1, op="run", running=True, code="x = 1")
    with pytest.raises(GatewayUnreachable, match=r"TRANSFORM_GATEWAY_URL, .*: not a gateway's URL"):
        runs.Gateways().run(request, {}, tmp_path / "out", lambda event, **fields: None, threading.Event())


def test_run_without_a_gateway_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRANSFORM_GATEWAY_URL", raising=False)
    monkeypatch.setenv("STATE_DIR", str(tmp_path))
    monkeypatch.setenv("PORT", "1")
    request = RunTransform(id=1, op="run", running=True, code="x = 1")
    with pytest.raises(
        GatewayUnreachable, match=r"Connection refused; start a gateway, or name one in TRANSFORM_GATEWAY"
    ):
        runs.Gateways().run(request, {}, tmp_path / "out", lambda event, **fields: None, threading.Event())


def test_job_whose_gateway_dies_is_not_run_again_and_the_next_one_gets_a_new_gateway(tmp_path: Path) -> None:
    gateways, log, kills = runs.Gateways(), [], [True, False]

    def kill_gateway() -> None:
        assert gateways._ephemeral is not None
        assert gateways._ephemeral._process is not None
        gateways._ephemeral._process.kill()
        gateways._ephemeral._process.wait()

    def take(event: str, **fields: Any) -> None:
        if event == "log":
            log.append(fields["message"])
            if kills.pop(0):
                kill_gateway()

    def run(code: str) -> dict[str, Any]:
        request = RunTransform(id=1, op="run", running=False, code=code)
        return gateways.run(request, {}, tmp_path / "out", take, threading.Event())

    try:
        with pytest.raises(GatewayUnreachable):
            run("import time\nprint('begun', flush=True)\ntime.sleep(60)")
        assert log == ["begun"]
        for _ in range(2):
            kills[:] = [False] * 9
            assert run("import pandas as pd\ndef transform():\n    return pd.DataFrame({'n': [1]})")["code"] == "ok"
            kill_gateway()
    finally:
        gateways.close()


def test_a_cancelled_run_ends_although_the_gateway_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "CANCEL_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as hanging:  # the kernel connects, and nobody reads
        monkeypatch.setenv("TRANSFORM_GATEWAY_URL", f"http://127.0.0.1:{hanging.getsockname()[1]}")
        gateways, cancelled, ended = runs.Gateways(), threading.Event(), threading.Event()
        request = RunTransform(id=1, op="run", running=True, code="x = 1")

        def cancel() -> None:
            with hanging.accept()[0]:
                cancelled.set()
                gateways.cancel(cancelled)
                ended.wait(60)

        thread = threading.Thread(target=cancel)
        thread.start()
        with pytest.raises(GatewayUnreachable, match=r"127\.0\.0\.1:\d+ does not answer the cancel: the job may go on"):
            gateways.run(request, {}, tmp_path / "out", lambda event, **fields: None, cancelled)
        ended.set()
        thread.join()
        gateways.close()


def test_running_gateway_is_the_named_one_else_that_of_the_state_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRANSFORM_GATEWAY_URL", raising=False)
    monkeypatch.setenv("STATE_DIR", str(tmp_path))
    monkeypatch.setenv("PORT", "5077")
    assert runs._running_gateway() == ("http://127.0.0.1:5077", "")
    with PidFile(tmp_path) as pid_file:
        pid_file.write("http://127.0.0.1:5088")
        assert runs._running_gateway() == ("http://127.0.0.1:5088", "")
    monkeypatch.setenv("TRANSFORM_GATEWAY_URL", "https://gateway.example")
    assert runs._running_gateway() == ("https://gateway.example", "")


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, Wire]]:
    kernels, ours = socket.socketpair()
    with kernels, ours:
        yield kernels, Wire(ours)


def said(body: bytes) -> bytes:
    return struct.pack("!I", len(body)) + body


@pytest.mark.parametrize(
    "body",
    [b"no json", b'{"id": 1, "op": "unknown"}', b'{"id": 1, "op": "load"}', b'{"id": 1, "op": "cancel", "more": 1}'],
)
def test_invalid_request_is_refused_and_the_next_one_accepted(ends: tuple[socket.socket, Wire], body: bytes) -> None:
    kernels, wire = ends
    with open(os.devnull, "rb") as file:
        socket.send_fds(kernels, [said(body)], [file.fileno()])
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ValueError, match=r"."):
        wire.receive()
    assert len(os.listdir("/proc/self/fd")) == before, "the descriptor that came along is closed"
    kernels.sendall(said(b'{"id": 2, "op": "cancel"}'))
    assert wire.receive()[0].id == 2


@pytest.mark.parametrize(
    ("body", "request_id"),
    [
        (b'{"id": 7, "op": "load"}', 7),
        (b'{"id": 7, "op": "files", "prefix": 1}', 7),
        (b"[1]", None),
        (b"no json", None),
        (b'{"id": 7, "op": ' + b"[" * 100_000, None),
    ],
)
def test_a_refused_request_is_reported_with_its_id(
    ends: tuple[socket.socket, Wire], body: bytes, request_id: int | None
) -> None:
    kernels, wire = ends
    kernels.sendall(said(body))
    with pytest.raises(NotUnderstood) as refused:
        wire.receive()
    assert refused.value.request_id == request_id


def test_request_that_fails_leaves_no_files(
    ends: tuple[socket.socket, Wire], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRANSFORM_GATEWAY_URL", "http://127.0.0.1:1")
    kernels, wire = ends
    kernels.settimeout(60)
    worker = RequestWorker(wire, tmp_path)
    try:
        worker.begin(RunTransform(id=3, op="run", running=True, code="x = 1"), None)
        (length,) = struct.unpack("!I", kernels.recv(4, socket.MSG_WAITALL))
        answer = json.loads(kernels.recv(length, socket.MSG_WAITALL))
        assert (answer["event"], list(tmp_path.iterdir())) == ("error", [])
    finally:
        worker.close()


def test_companion_with_a_socket_of_a_high_number_ends_with_its_front_end(inputs: Path) -> None:
    ours, theirs = socket.socketpair()
    number = fcntl.fcntl(theirs, fcntl.F_DUPFD, 1100)
    command = [sys.executable, "-m", "gateway.companion", "--socket", str(number), "--inputs", str(inputs)]
    try:
        with ours, theirs:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, pass_fds=[number], timeout=60, check=False)
    finally:
        os.close(number)
    assert done.returncode == 0


def test_too_long_a_message_and_end_of_file_end_the_conversation(ends: tuple[socket.socket, Wire]) -> None:
    kernels, wire = ends
    kernels.sendall(struct.pack("!I", 0xFFFF_FFFF))
    with pytest.raises(Closed):
        wire.receive()
    kernels.close()
    with pytest.raises(Closed):
        wire.receive()


@pytest.mark.parametrize("name", ["t.json", "t.jsonl", "t"])
async def test_json_array_becomes_lines_also_beside_a_manifest(tmp_path: Path, inputs: Path, name: str) -> None:
    path, manifest = tmp_path / name, tmp_path / "m.json"
    path.write_text('[\n  {"a": 1.10},\n  {"a": null}\n]')
    manifest.write_text('{"fields": [{"name": "a", "base_type": "type/Float"}]}')
    table = await fetch(inputs, path, manifest=str(manifest))
    assert (table.data_format, table.data_path.read_text()) == ("jsonl", '{"a":1.10}\n{"a":null}\n')


async def test_workbook_without_openpyxl_names_the_missing_package(
    tmp_path: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.xlsx"
    path.write_bytes(b"PK\x03\x04")
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(SourceError, match="needs the package openpyxl in the Python environment"):
        await fetch(inputs, path)
