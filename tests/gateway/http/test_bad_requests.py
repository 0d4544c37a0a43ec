"""Bodies that are wrong: a 400 that names the field and what was expected there."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest

from gateway.core.errors import BadRequest
from gateway.http.base_handler.handler import PARSED_ON_LOOP_BYTES
from gateway.http.schemas.strict_json import MOST_VALUES, parse_object
from tests.gateway.http.harness import Caller, ScriptedRunner, body, head

WRONG: list[tuple[str, Any]] = [
    ("code", None),
    ("code", 5),
    ("code", ["x"]),
    ("request_id", None),
    ("request_id", True),
    ("request_id", 1.5),
    ("request_id", 2.0**53),
    ("request_id", 2.0**54),
    ("request_id", 1e300),
    ("request_id", ""),
    ("request_id", "x" * 201),
    ("request_id", 10**30),
    ("request_id", {"a": 1}),
    ("timeout", 0),
    ("timeout", -5),
    ("timeout", "30"),
    ("timeout", True),
    ("timeout", 10**9),
    ("timeout", 10**400),
    ("timeout", [1]),
    ("library", ["x"]),
    ("library", {"a.py": None}),
    ("library", {"a": 1}),
    ("library", {"../a.py": ""}),
    ("library", {"/etc/a.py": ""}),
    ("library", {"a/b": ""}),
    ("library", {"a.b.py": ""}),
    ("library", {"": ""}),
    ("library", {".py": ""}),
    ("library", {"script.py": ""}),
    ("library", {"__init__.py": ""}),
    ("library", {"__pycache__": ""}),
    ("library", {"json.py": ""}),
    ("library", {"class": ""}),
    ("library", {"ｊson": ""}),
    ("library", {"a\0": ""}),
    ("library", {"x" * 300: ""}),
    ("library", {"common": "", "common.py": ""}),
    ("table_mapping", ["x"]),
    ("table_mapping", "x"),
    ("table_mapping", {"t": 5}),
    ("table_mapping", {"t": "file:///etc/passwd"}),
    ("table_mapping", {"t": "/etc/passwd"}),
    ("manifest_mapping", {"nosuch": "http://s3.test/m"}),
    ("output_url", ""),
    ("output_url", 5),
    ("output_url", "file:///tmp/x"),
    ("output_url", "unix:///tmp/x"),
    ("output_url", "http+unix://%2Ftmp/x"),
    ("output_url", "ftp://127.0.0.1/x"),
    ("output_url", "gopher://127.0.0.1/x"),
    ("output_url", "data:,x"),
    ("output_url", "javascript:1"),
    ("output_url", "http://"),
    ("output_url", "http:///x"),
    ("output_url", "http://127.0.0.1:99999/x"),
    ("output_url", "http://user:pw@host/x"),
    ("output_url", "http://host/x y"),
    ("output_url", "http://host/x\r\nX-Evil: 1"),
    ("output_url", "http://höst/"),
    ("output_url", "http://[::1/x"),
    ("events_url", "file:///tmp/x"),
    ("runtime", "javascript"),
    ("runtime", 5),
    ("output_format", "xlsx"),
    ("data_format", "xml"),
    ("data_format", {"t": "xml"}),
    ("data_format", 5),
    ("inline", 1),
]

#: A member of an object is named with its key, and with what is expected there.
WRONG_MEMBERS: list[tuple[str, Any, str]] = [
    ("library", {"a": None}, "library['a']: expected a text: the module's source, not null"),
    ("table_mapping", {"t": 5}, "table_mapping['t']: expected an http:// or https:// URL, not 5"),
    ("data_format", {"t": "xml"}, 'data_format[\'t\']: expected "jsonl", "csv", "parquet" or "arrow", not "xml"'),
    ("data_format", {"t": 5}, 'data_format[\'t\']: expected "jsonl", "csv", "parquet" or "arrow", not 5'),
]


@pytest.mark.parametrize(("field", "value"), WRONG)
async def test_wrong_field_is_400_naming_it(call: Caller, runner: ScriptedRunner, field: str, value: Any) -> None:
    good = {"code": "ok", "request_id": 1, "timeout": 5, "output_url": "http://s3.test/o", "events_url": None}
    answer = await call.send("POST", "/v1/execute", good | {field: value})
    assert answer.code == 400
    found = body(answer)
    assert found["code"] == "bad_request"
    assert found["error"].startswith(field)
    assert found["field"] == field
    assert "expected" in found["error"] or field in ("library", "manifest_mapping")
    assert not runner.jobs


@pytest.mark.parametrize(("field", "value", "text"), WRONG_MEMBERS)
async def test_wrong_member_of_an_object_is_named(call: Caller, field: str, value: Any, text: str) -> None:
    answer = await call.send("POST", "/v1/execute", {"code": "ok", "request_id": 1, field: value})
    assert body(answer)["error"] == text


async def test_url_that_is_not_text_is_400_saying_so(call: Caller) -> None:
    for path in ("/v1/logs?request_id=%ff", "/v1/results/%ff/output"):
        answer = await call.send("GET", path)
        assert answer.code == 400
        assert "UTF-8" in body(answer)["error"]


def nested(depth: int) -> bytes:
    """Return a request whose output contract is nested so deeply."""
    return b'{"code": "ok", "request_id": 1, "output_schema": ' + b'{"a":' * depth + b"1" + b"}" * depth + b"}"


async def test_output_contract_has_numbers_of_any_size_and_a_bounded_depth(
    call: Caller, runner: ScriptedRunner
) -> None:
    contract = {"columns": {"n": {"min": 10**30}}}
    assert (await call.execute("ok", 1, output_schema=contract)).code == 200
    assert json.loads(runner.jobs[-1].output_schema) == contract
    for depth in range(100, 3000, 10):
        assert (await call.send("POST", "/v1/execute", nested(depth))).code in (200, 400)


VALUES = "[" + ",".join(["[]"] * MOST_VALUES) + "]"
TEXTS = "{" + ",".join(f'"\\"{number}": ""' for number in range(MOST_VALUES)) + "}"


@pytest.mark.parametrize("many", [VALUES, TEXTS, f"[{VALUES}"], ids=["lists", "texts", "open list"])
def test_a_body_has_a_bounded_number_of_values(many: str) -> None:
    """In Python they take up to 35 times the memory of the body."""
    with pytest.raises(BadRequest, match="more than 100000 values"):
        parse_object(f'{{"code": "ok", "output_schema": {many}}}'.encode())


def test_commas_within_texts_are_not_counted_as_values() -> None:
    sent = {"code": 'x = "a", 1, \\\n' * MOST_VALUES, "library": {"a.py": "a,b," * MOST_VALUES}}
    assert parse_object(json.dumps(sent).encode()) == sent
    with pytest.raises(BadRequest, match="Unterminated string"):
        parse_object(b'{"label": "' + b'a,\\"' * MOST_VALUES)


@pytest.mark.parametrize("field", ["code", "request_id"])
async def test_missing_field_is_400_naming_it(call: Caller, field: str) -> None:
    sent = {"code": "ok", "request_id": 1}
    del sent[field]
    answer = await call.send("POST", "/v1/execute", sent)
    assert answer.code == 400
    assert body(answer)["error"].startswith(f"{field}: required")


async def test_several_wrong_fields_are_all_named(call: Caller) -> None:
    answer = await call.send("POST", "/v1/execute", {"code": 1, "request_id": [], "timeout": "x"})
    error = body(answer)["error"]
    assert all(f"{field}: " in error for field in ("code", "request_id", "timeout"))


async def test_error_never_quotes_a_text_of_the_request(call: Caller) -> None:
    url = "ftp://host/o?X-Amz-Signature=secret"
    answer = await call.execute("ok", 1, output_url=url, timeout="secret", table_mapping={"t": url})
    assert answer.code == 400
    assert b"secret" not in answer.body


GOOD = json.dumps({"code": "ok", "request_id": 1}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"   ",
        b"{",
        b"{not json",
        b"null",
        b"[]",
        b"[1, 2]",
        b"1",
        b'"x"',
        b"{}",
        b"{}" * 1000,
        GOOD[:-5],
        GOOD + b"x",
        b'{"code": NaN}',
        b'{"code": "ok", "request_id": 1, "timeout": NaN}',
        b'{"code": "ok", "request_id": 1, "timeout": Infinity}',
        b'{"code": "ok", "request_id": 1, "timeout": -Infinity}',
        b'{"code": "ok", "request_id": 1, "timeout": 1e400}',
        b'{"code": "ok", "request_id": 1, "timeout": ' + b"9" * 20000 + b"}",
        b"\xef\xbb\xbf" + GOOD,
        GOOD.decode().encode("utf-16"),
        GOOD.decode().encode("utf-32"),
        b"\xff\xfe\xfd",
        GOOD.replace(b"ok", b"\xc3\x28"),
        b"[" * 60_000,
        b'{"a":' * 12_000,
        b'{"code": "ok", "code": "ok", "request_id": 1}',
        b'{"code": "\\ud800", "request_id": 1}',
        b'{"code": "ok", "request_id": "\\udfff"}',
        b'{"code": "ok", "request_id": 1, "library": {"a": "\\ud800"}}',
    ],
    ids=lambda data: repr(data[:30]),
)
@pytest.mark.parametrize("path", ["/v1/execute", "/execute", "/v1/cancel"])
async def test_bad_json_is_400(call: Caller, runner: ScriptedRunner, data: bytes, path: str) -> None:
    if path == "/v1/cancel" and b"ok" in data and (b"library" in data or b"timeout" in data):
        data = data.replace(b'"request_id"', b'"id"')
    answer = await call.send("POST", path, data)
    assert answer.code == 400
    assert body(answer)["error"]
    assert b"Traceback" not in answer.body
    assert not runner.jobs


async def test_paired_surrogates_are_one_character(call: Caller, runner: ScriptedRunner) -> None:
    answer = await call.send("POST", "/v1/execute", b'{"code": "ok", "request_id": "\\ud83c\\udf89"}')
    assert body(answer)["request_id"] == "🎉"


@pytest.mark.parametrize(("path", "status"), [("/v1/execute", 200), ("/execute", 400)])
@pytest.mark.parametrize("settings", [{"max_body_bytes": 1_000_000}], indirect=True)
async def test_others_are_answered_while_a_large_body_is_parsed(
    call: Caller, path: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsing, go_on = threading.Event(), threading.Event()

    def slow_parse(data: bytes) -> dict[str, Any]:
        parsing.set()
        assert go_on.wait(60), "nobody else was answered in the meantime"
        return parse_object(data)

    monkeypatch.setattr("gateway.http.bodies.receivers.parse_object", slow_parse)
    padding = "x" * (PARSED_ON_LOOP_BYTES + 1)
    large = asyncio.ensure_future(call.send("POST", path, {"code": "ok", "request_id": 1, "padding": padding}))
    assert await asyncio.to_thread(parsing.wait, 20)
    assert (await call.get("/v1/status")).code == 200
    assert not large.done()
    go_on.set()
    assert (await large).code == status


async def test_caller_that_hangs_up_while_its_body_is_parsed_starts_no_job(
    call: Caller, port: int, runner: ScriptedRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsing, go_on = threading.Event(), threading.Event()

    def slow_parse(data: bytes) -> dict[str, Any]:
        parsing.set()
        assert go_on.wait(60)
        return parse_object(data)

    monkeypatch.setattr("gateway.http.bodies.receivers.parse_object", slow_parse)
    monkeypatch.setattr("gateway.http.base_handler.handler.PARSED_ON_LOOP_BYTES", 0)
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    sent = b'{"code": "ok", "request_id": 1}'
    writer.write(head("POST", "/v1/execute", f"Content-Length: {len(sent)}") + sent)
    assert await asyncio.to_thread(parsing.wait, 20)
    writer.close()
    await writer.wait_closed()
    # its end is noticed on the loop before this later request is read
    assert (await call.get("/v1/status")).code == 200
    go_on.set()
    assert (await call.execute("ok", 2)).code == 200
    assert [job.request_id for job in runner.jobs] == [2]


@pytest.mark.parametrize("settings", [{"storage_hosts": ("s3.test", "*.allowed.test")}], indirect=True)
@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/execute", {"output_url": "http://other.test/o"}),
        ("/v1/execute", {"output_url": "http://s3.test/o", "events_url": "http://other.test/e"}),
        ("/v1/execute", {"table_mapping": {"t": "http://other.test/t"}}),
        ("/execute", {"output_url": "http://s3.test/o", "table_mapping": {"t": "http://other.test/t"}}),
    ],
)
async def test_urls_of_other_hosts_are_refused_where_hosts_are_restricted(
    call: Caller, runner: ScriptedRunner, path: str, fields: dict[str, Any]
) -> None:
    answer = await call.send("POST", path, {"code": "ok", "request_id": 1, **fields})
    assert (answer.code, body(answer)["code"]) == (400, "bad_request")
    assert "the host other.test is not one of STORAGE_HOSTS" in body(answer)["error"]
    assert runner.jobs == []
    allowed = await call.execute("ok", output_url="https://bucket.allowed.test/o")
    assert allowed.code == 200


@pytest.mark.parametrize(
    "url", ["http://169.254.169.254/latest/meta-data?x=5ecr3t", "http://[fe80::1]/o", "http://0xa9fea9fe/"]
)
async def test_metadata_of_a_cloud_is_no_table(call: Caller, runner: ScriptedRunner, url: str) -> None:
    answer = await call.execute("ok", table_mapping={"t": url})
    assert answer.code == 400
    assert body(answer)["field"].startswith("table_mapping")
    assert "link-local or metadata address" in body(answer)["error"]
    assert b"5ecr3t" not in answer.body
    assert runner.jobs == []
