from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import BadRequest
from gateway.core.job import UploadSource, UrlSource
from gateway.core.settings import Settings
from gateway.http.bodies.multipart import MultipartParser, PartBegins, PartData, PartEnds, boundary_of
from tests.gateway.http.harness import Caller, ScriptedRunner, body, eventually, head, raw

BOUNDARY = "----b0undary"
KIND = f"multipart/form-data; boundary={BOUNDARY}"


def part(name: str, data: bytes, filename: str | None = None) -> bytes:
    file = f'; filename="{filename}"' if filename else ""
    return f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + data + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def request(**fields: Any) -> bytes:
    return part("request", json.dumps({"code": "ok", "request_id": 1, **fields}).encode())


async def send(call: Caller, data: bytes) -> Any:
    return await call.send("POST", "/v1/execute", data, Content_Type=KIND)


def leftovers(settings: Settings) -> list[Path]:
    return list((settings.state_dir / "uploads").glob("*"))


async def gone(settings: Settings) -> bool:
    return await eventually(lambda: not leftovers(settings))


async def test_tables_arrive_as_files(call: Caller, runner: ScriptedRunner, settings: Settings) -> None:
    large = b"a,b\n" + b"1,2\n" * 700_000
    manifest = b'{"fields": []}'
    data = form(
        part("table:orders", large, "orders.csv"),
        request(table_mapping={"u": "http://s3.test/u"}),
        part("manifest:orders", manifest, "m.json"),
        part("table:odd ../☃ name", b"", "x.parquet"),
    )
    answer = await send(call, data)
    assert answer.code == 200
    (job,) = runner.jobs
    by_alias = {table.alias: table for table in job.tables}
    assert by_alias.keys() == {"orders", "u", "odd ../☃ name"}
    orders = by_alias["orders"]
    assert isinstance(orders.data, UploadSource)
    assert isinstance(orders.manifest, UploadSource)
    (uploads,) = runner.uploads
    assert (uploads[orders.data.name], uploads[orders.manifest.name]) == (large, manifest)
    assert orders.data_format == "csv"
    assert by_alias["odd ../☃ name"].data_format == "parquet"
    assert by_alias["u"].data == UrlSource("http://s3.test/u")
    assert uploads.keys() == {"0.table", "1.manifest", "2.table"}
    assert await eventually(lambda: not leftovers(settings))


async def test_format_follows_the_request_over_the_file_name(call: Caller, runner: ScriptedRunner) -> None:
    data = form(request(data_format={"t": "arrow"}), part("table:t", b"x", "t.csv"), part("table:u", b"x"))
    assert (await send(call, data)).code == 200
    assert [table.data_format for table in runner.jobs[0].tables] == ["arrow", "jsonl"]


@pytest.mark.parametrize(
    "data",
    [
        form(),
        form(part("table:t", b"x")),
        form(request(), request()),
        form(request(), part("other", b"x")),
        form(request(), part("table", b"x")),
        form(request(), part("table:t", b"x"), part("table:t", b"x")),
        form(request(), part("manifest:t", b"x")),
        form(request(table_mapping={"t": "http://s3.test/t"}), part("table:t", b"x")),
        form(request(), part("table:t", b"x", "t.csv.gz")),
        form(part("table:t", b"x"), part("request", b"{not json")),
        form(part("table:t", b"x"), part("request", b'{"code": "ok"}')),
        form(request(), part("table:t", b"x"))[:-10],
        request() + part("table:t", b"x" * 3_000_000),
        f"--{BOUNDARY}\r\n\r\nno header\r\n--{BOUNDARY}--\r\n".encode(),
        f"--{BOUNDARY}\r\nContent-Disposition: attachment\r\n\r\nx\r\n--{BOUNDARY}--\r\n".encode(),
        f"--{BOUNDARY}x\r\n\r\n".encode(),
        f"--{BOUNDARY}\r\nX: ".encode() + b"y" * 20_000 + b"\r\n\r\n",
        form(*(part(f"table:{number}", b"") for number in range(1001))),
        b"no boundary at all",
    ],
)
async def test_bad_forms_are_400_and_leave_nothing(
    call: Caller, runner: ScriptedRunner, settings: Settings, data: bytes
) -> None:
    answer = await send(call, data)
    assert answer.code == 400
    assert body(answer)["error"]
    assert not runner.jobs
    assert await gone(settings)


@pytest.mark.parametrize(
    "kind", ["multipart/form-data", "multipart/form-data; boundary=", 'multipart/form-data; boundary="a\tb"']
)
async def test_form_without_boundary_is_400(call: Caller, kind: str) -> None:
    assert (await call.send("POST", "/v1/execute", form(request()), Content_Type=kind)).code == 400


@pytest.mark.parametrize("settings", [{"max_upload_bytes": 100_000}], indirect=True)
async def test_upload_above_the_cap_is_413(call: Caller, settings: Settings, port: int) -> None:
    data = form(request(), part("table:t", b"x" * 100_000))
    answer = await send(call, data)
    assert (answer.code, "(MAX_UPLOAD_BYTES)" in body(answer)["error"]) == (413, True)
    chunked = b"".join(b"%x\r\n%s\r\n" % (len(data), data) for _ in range(1)) + b"0\r\n\r\n"
    sent = head("POST", "/v1/execute", "Transfer-Encoding: chunked").replace(b"application/json", KIND.encode())
    assert (await raw(port, sent + chunked)).status == 413
    assert await gone(settings)


async def test_json_part_above_its_cap_is_413(call: Caller, settings: Settings) -> None:
    answer = await send(call, form(part("table:t", b"x"), request(library={"a": "x" * 200_000})))
    assert (answer.code, "(MAX_BODY_BYTES)" in body(answer)["error"]) == (413, True)
    assert await gone(settings)


async def test_refused_job_leaves_no_files(call: Caller, runner: ScriptedRunner, settings: Settings) -> None:
    running = asyncio.ensure_future(call.execute("hold", 1))
    await runner.begun.wait()
    assert (await send(call, form(request(), part("table:t", b"x")))).code == 409
    assert await gone(settings)
    runner.release.set()
    await running


async def test_disconnect_during_an_upload_leaves_no_files(port: int, settings: Settings) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    sent = head("POST", "/v1/execute", "Content-Length: 90000000").replace(b"application/json", KIND.encode())
    writer.write(sent + part("table:t", b"x" * 3_000_000))
    assert await eventually(lambda: leftovers(settings))
    writer.close()
    assert await gone(settings)


async def test_form_without_token_is_refused_before_its_files_arrive(
    call: Caller, settings: Settings, runner: ScriptedRunner
) -> None:
    data = form(request(), part("table:t", b"x" * 10_000))
    answer = await call.send("POST", "/v1/execute", data, token=None, Content_Type=KIND)
    assert answer.code == 401
    assert not (settings.state_dir / "uploads").exists()


PAYLOADS = st.lists(
    st.lists(st.sampled_from([b"\r\n", b"--", b"-", b"\r", b"\n", BOUNDARY.encode()[:5], b"data"]), max_size=8).map(
        b"".join
    ),
    max_size=4,
)


@given(payloads=PAYLOADS, cut=st.integers(1, 20))
def test_parts_are_the_same_however_the_bytes_arrive(payloads: list[bytes], cut: int) -> None:
    data = form(*(part(f"table:{number}", payload) for number, payload in enumerate(payloads)))
    parser = MultipartParser(boundary_of(KIND))
    found: list[bytes] = []
    ends = 0
    for start in range(0, len(data), cut):
        for piece in parser.feed(data[start : start + cut]):
            match piece:
                case PartBegins(name, _):
                    assert name == f"table:{len(found)}"
                    found.append(b"")
                case PartData(more):
                    found[-1] += more
                case PartEnds():
                    ends += 1
    parser.finish()
    assert found == payloads
    assert ends == len(payloads)


@given(st.binary(max_size=300), st.integers(1, 50))
def test_parser_refuses_or_takes_any_bytes(data: bytes, cut: int) -> None:
    parser = MultipartParser(b"b")
    try:
        for start in range(0, len(data), cut):
            list(parser.feed(data[start : start + cut]))
        parser.finish()
    except BadRequest:
        return
    assert b"--b--" in b"\r\n" + data
