"""Callers that are admitted, and requests that are refused before a byte of the body is read."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import socket

import pytest
from tornado.iostream import IOStream

from gateway.http.server import HEADER_BYTES
from tests.gateway.http.harness import TOKEN, Caller, ScriptedRunner, body, eventually, head, raw

MEGABYTE = b"x" * (1 << 20)
PROTECTED = [
    ("POST", "/v1/execute"),
    ("POST", "/v1/cancel"),
    ("GET", "/v1/logs"),
    ("GET", "/v1/results/1/output"),
    ("POST", "/execute"),
    ("POST", "/cancel"),
    ("GET", "/logs"),
    ("GET", "/v1/status?request_id=1"),
]
OPEN = ["/", "/v1/status", "/status", "/openapi.json", "/docs", "/metrics"]


@pytest.mark.parametrize(("method", "path"), PROTECTED)
@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "Bearer",
        "Bearer ",
        TOKEN,
        f"Basic {TOKEN}",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN}x",
        "Bearer \xff\xfe",
        "bearer null",
    ],
)
async def test_wrong_token_is_401(
    call: Caller, runner: ScriptedRunner, method: str, path: str, authorization: str | None
) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    sent = {"code": "ok", "request_id": 1} if method == "POST" else None
    answer = await call.send(method, path, sent, token=None, **headers)
    assert answer.code == 401
    assert body(answer)["code"] == "unauthorized"
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    is_bearer = (authorization or "").lower().startswith("bearer")
    assert ("not one of this gateway's" if is_bearer else "expected one header") in body(answer)["error"]
    assert not runner.jobs


async def test_token_in_query_or_cookie_is_no_token(call: Caller) -> None:
    answer = await call.send("GET", f"/v1/logs?token={TOKEN}", token=None, Cookie=f"token={TOKEN}")
    assert answer.code == 401


async def test_two_authorization_headers_are_refused(port: int) -> None:
    answer = await raw(port, head("GET", "/v1/logs", f"Authorization: Bearer {TOKEN}", "Connection: close"))
    assert answer.status == 401
    assert "several" in answer.body["error"]


@pytest.mark.parametrize("path", OPEN)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_open_routes_need_no_token(call: Caller, path: str, method: str) -> None:
    answer = await call.send(method, path, token=None)
    assert answer.code == 200
    assert bool(answer.body) == (method == "GET")


async def test_status_hides_error_texts_from_callers_without_token(call: Caller, runner: ScriptedRunner) -> None:
    runner.message = "could not convert 'a patient's name'"
    await call.execute("user_error", 1)
    hidden = await call.send("GET", "/v1/status", token=None)
    assert b"patient" not in hidden.body
    assert body(hidden)["result"]["code"] == "user_error"
    assert b"patient" in (await call.get("/v1/status")).body


async def test_status_hides_the_digest_of_a_result_from_callers_without_token(call: Caller) -> None:
    await call.execute("ok", 1)
    assert "sha256" in body(await call.get("/v1/status"))["result"]
    hidden = body(await call.send("GET", "/v1/status", token=None))["result"]
    assert (hidden["exit_code"], "sha256" in hidden) == (0, False)


async def test_large_body_without_token_is_not_read(port: int) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head("POST", "/v1/execute", f"Content-Length: {64 << 20}", token=None))
    sent = 0
    try:
        while sent < 64 << 20:
            writer.write(MEGABYTE)
            await writer.drain()
            sent += len(MEGABYTE)
    except ConnectionError:
        pass
    assert sent < 32 << 20
    writer.close()


async def test_refused_caller_can_send_its_body_and_read_the_answer(port: int) -> None:
    """Most clients send everything before they read; a reset meanwhile would look to them like a broken gateway."""

    def send_then_read() -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall(head("POST", "/v1/execute", "Content-Length: 300000", token=None))
            connection.recv(1, socket.MSG_PEEK)  # the answer is there before the body is sent
            for _ in range(10):
                connection.sendall(b"x" * 30_000)
            return b"".join(iter(lambda: connection.recv(65_536), b""))

    answer = await asyncio.to_thread(send_then_read)
    assert answer.startswith(b"HTTP/1.1 401")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "unauthorized"


async def test_expect_100_continue_is_refused_without_continue(port: int) -> None:
    answer = await raw(
        port, head("POST", "/v1/execute", "Content-Length: 300000", "Expect: 100-continue", token=None), seconds=3
    )
    assert answer.status == 401
    assert b"100" not in answer.data.split(b"\r\n")[0]


@pytest.mark.parametrize(
    ("method", "path", "setting"),
    [("POST", "/v1/execute", True), ("POST", "/v1/cancel", False), ("GET", "/v1/logs", False)],
)
async def test_body_above_the_cap_is_413_naming_the_limit(
    call: Caller, method: str, path: str, *, setting: bool
) -> None:
    answer = await call.send(method, path, b" " * 200_001)
    assert answer.code == 413
    assert body(answer)["limit_bytes"] <= 200_000
    assert str(body(answer)["limit_bytes"]) in body(answer)["error"]
    assert body(answer)["error"].endswith("(MAX_BODY_BYTES)") is setting


@pytest.mark.parametrize("path", ["/v1/cancel", "/cancel", "/v1/release", "/v1/console", "/v1/jobs/x/hold"])
async def test_a_request_for_no_job_has_a_small_body(call: Caller, path: str) -> None:
    answer = await call.send("POST", path, {"padding": "x" * 70_000})
    assert (answer.code, body(answer)["limit_bytes"]) == (413, 65_536)


async def test_endless_chunked_body_is_cut(port: int) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head("POST", "/v1/execute", "Transfer-Encoding: chunked"))
    sent = 0
    try:
        while sent < 150 << 20:
            writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            await writer.drain()
            sent += 65536
    except ConnectionError:
        pass
    assert sent < 20 << 20
    writer.close()


async def test_chunked_body_within_the_cap_is_taken(port: int) -> None:
    data = json.dumps({"code": "ok", "request_id": 1}).encode()
    chunks = b"".join(b"1\r\n" + data[i : i + 1] + b"\r\n" for i in range(len(data))) + b"0\r\n\r\n"
    answer = await raw(port, head("POST", "/v1/execute", "Transfer-Encoding: chunked", "Connection: close") + chunks)
    assert answer.status == 200


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["Content-Length: abc"], 400),
        (["Content-Length: -1"], 400),
        (["Content-Length: 5", "Content-Length: 6"], 400),
        (["Content-Length: 5", "Transfer-Encoding: chunked"], 400),
        (["Transfer-Encoding: gzip, chunked"], 400),
        (["Content-Length: 5", "Content-Encoding: gzip"], 415),
        (["Content-Length: 99999999999999999999999"], 400),
        (["Content-Length: 9999999999999999"], 413),
    ],
)
async def test_odd_framing_is_refused_in_json(port: int, lines: list[str], status: int) -> None:
    answer = await raw(port, head("POST", "/v1/execute", *lines))
    assert answer.status == status
    assert answer.body["error"]
    assert answer.is_closed


@pytest.mark.parametrize(
    "data",
    [
        b"garbage\r\n\r\n",
        b"GET /v1/logs HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: a\rb: c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x y\r\n\r\n",
        head("POST", "/v1/cancel", "Transfer-Encoding: chunked") + b"no size\r\n",
        b"GET /" + b"q" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"v" * 1_000_000 + b"\r\n\r\n",
    ],
)
async def test_malformed_http_is_refused_in_json(port: int, call: Caller, data: bytes) -> None:
    answer = await raw(port, data)
    assert answer.is_closed
    if answer.data:
        assert answer.status == 400
        assert answer.body["code"] == "bad_request"
    else:
        assert len(data) > HEADER_BYTES, "only what is too long to be looked at is closed without a word"
    assert (await call.get("/v1/status")).code == 200


@pytest.mark.parametrize("method", ["TRACE", "BREW", "CONNECT", "PATCH", "DELETE", "PUT", "OPTIONS"])
@pytest.mark.parametrize("path", ["/", "/v1/execute", "/nosuch", "/v1/logs"])
async def test_unknown_methods_are_refused_in_json(port: int, method: str, path: str) -> None:
    answer = await raw(port, head(method, path, "Content-Length: 0", "Connection: close"))
    assert answer.status in (404, 405)
    assert answer.body["code"] in ("not_found", "method_not_allowed")


async def test_wrong_method_names_the_right_ones(call: Caller) -> None:
    answer = await call.get("/v1/execute")
    assert answer.code == 405
    assert answer.headers["Allow"] == "POST"


PATHS = [
    "/v1",
    "/v1/",
    "/v1/execute/",
    "//v1/execute",
    "/v1/../v1/logs",
    "/v1/%2e%2e/%2e%2e/etc/passwd",
    "/v1/execute;x",
]


@pytest.mark.parametrize("path", [*PATHS, "/v1/execute%00", "/v1/results/%ff/output", "http://127.0.0.1:1/v1/logs"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_unknown_paths_are_json_404(port: int, path: str, method: str) -> None:
    answer = await raw(port, head(method, path, "Content-Length: 0", "Connection: close"))
    assert answer.status in (400, 404, 405)
    assert answer.body["error"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonx"])
async def test_other_media_types_are_415(call: Caller, kind: str) -> None:
    answer = await call.send("POST", "/v1/execute", {"code": "ok", "request_id": 1}, Content_Type=kind)
    assert answer.code == 415
    assert "application/json" in body(answer)["error"]


@pytest.mark.parametrize("settings", [{"auth_token": ""}], indirect=True)
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://127.0.0.1:{port}"}, 200),
        ({"Origin": "http://evil.test"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://[x"}, 403),
        ({"Host": "localhost:5001"}, 200),
        ({"Host": "[::1]:5001"}, 200),
        ({"Host": "rebound.evil.test:5001"}, 403),
    ],
)
async def test_without_a_token_no_web_page_gets_in(
    call: Caller, port: int, headers: dict[str, str], status: int
) -> None:
    sent = {name: value.format(port=port) for name, value in headers.items()}
    answer = await call.send("POST", "/v1/execute", {"code": "ok", "request_id": 1}, token=None, **sent)
    assert answer.code == status


async def test_request_id_and_traceparent_come_back(call: Caller, runner: ScriptedRunner) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    sent = {"code": "ok", "request_id": 1}
    answer = await call.send("POST", "/v1/execute", sent, X_Request_Id="abc-1", traceparent=trace)
    assert answer.headers["X-Request-Id"] == "abc-1"
    assert answer.headers["traceparent"] == trace
    assert runner.jobs[0].trace_parent == trace


@pytest.mark.parametrize("given", ["a b", "x" * 200, "<script>", "é"])
async def test_odd_request_ids_are_replaced(call: Caller, given: str) -> None:
    answer = await call.send("GET", "/v1/status", X_Request_Id=given, traceparent="00-" + "0" * 32 + "-1-01")
    assert answer.headers["X-Request-Id"] not in ("", given)
    assert "traceparent" not in answer.headers


async def test_access_log_holds_no_query_no_token_no_code(call: Caller, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    await call.get("/v1/logs", request_id="sig-in-query")
    await call.execute("user_error", 1, output_url="http://s3.test/o?X-Amz-Signature=sig")
    lines = [record.getMessage() for record in caplog.records if record.name == "gateway.access"]
    assert [line.split(" ")[:3] for line in lines] == [["GET", "/v1/logs", "404"], ["POST", "/v1/execute", "500"]]
    everything = "\n".join(record.getMessage() for record in caplog.records)
    assert "sig" not in everything
    assert TOKEN not in everything


async def test_a_clock_that_is_set_back_makes_no_negative_duration(
    call: Caller, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    seconds = iter(range(10**9, 0, -3600))
    monkeypatch.setattr("time.time", lambda: float(next(seconds)))
    await call.get("/v1/status")
    (taken,) = [record.seconds for record in caplog.records if record.name == "gateway.access"]
    assert 0 <= taken < 60


async def test_token_in_a_malformed_header_is_not_logged(port: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    answer = await raw(port, f"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\x01\r\n\r\n".encode())
    assert answer.status == 400
    assert TOKEN not in caplog.text


async def test_slow_and_half_sent_requests_do_not_hold_others(port: int, call: Caller) -> None:
    writers = []
    for data in [b"POST /v1/execute HTTP/1.1\r\nX-A: "] * 20 + [
        head("POST", "/v1/execute", "Content-Length: 1000") + b'{"code": "'
    ] * 20:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(data)
        writers.append(writer)
    assert (await call.execute("ok")).code == 200
    for writer in writers:
        writer.close()


async def test_connection_is_forgotten_when_it_ends(port: int) -> None:
    gc.collect()
    gc.disable()  # what is only let go by the collector waits for it, with its buffers
    try:
        known = {id(found) for found in gc.get_objects() if isinstance(found, IOStream)}
        await raw(port, head("GET", "/v1/status", "Connection: close"))
        await raw(port, b"garbage\r\n\r\n")

        def left() -> list[IOStream]:
            return [found for found in gc.get_objects() if isinstance(found, IOStream) and id(found) not in known]

        assert await eventually(lambda: not left())
    finally:
        gc.enable()
