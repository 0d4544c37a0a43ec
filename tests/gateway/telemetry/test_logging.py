"""The facts about jobs in the gateway's log, and the secrets that are never in it."""

from __future__ import annotations

import json
import logging
import re
import socket
from collections.abc import Callable
from typing import Any

import pytest

from gateway.telemetry.logging import JsonFormatter
from tests.support.gateway_process import GatewayProcess

SECRET = "c0nfidential"
"""Stands, with a number behind it, wherever somebody's secret may stand."""

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OK = "import pandas as pd\ndef transform():\n    return pd.DataFrame({'x': [1, 2]})"


def multipart(parts: dict[str, bytes]) -> tuple[bytes, dict[str, str]]:
    body = b"".join(
        b'--cut\r\nContent-Disposition: form-data; name="%s"; filename="t.csv"\r\n\r\n%s\r\n' % (name.encode(), data)
        for name, data in parts.items()
    )
    return body + b"--cut--\r\n", {"Content-Type": "multipart/form-data; boundary=cut"}


def job_lines(gateway: GatewayProcess) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, gateway.output) if line["logger"] == "gateway.job"]


def send_secrets_everywhere(gateway: GatewayProcess) -> None:
    """Put a secret into each place that a caller, a table or a script can fill."""
    gone = f"{gateway.url}/nosuch?X-Amz-Signature={SECRET}1"  # refused at once, and by ourselves: in our own log
    code = f"# {SECRET}2\ndef transform(t):\n    print(t.to_string())\n    raise ValueError('{SECRET}3: ' + t.v[0])"
    request = json.dumps({"code": code, "request_id": 1, "library": {"m.py": f"K = '{SECRET}4'"}}).encode()
    body, kind = multipart({"request": request, "table:t": f"v\n{SECRET}5\n".encode()})
    assert gateway.request("POST", "/v1/execute", body, headers=kind).body["code"] == "user_error"
    assert SECRET + "5" in str(gateway.log(1))
    assert gateway.execute(OK, 2, output_url=gone, events_url=gone).body["code"] == "output_upload_failed"
    takes = OK.replace("transform()", "transform(t)")
    assert gateway.execute(takes, 3, table_mapping={"t": gone}).body["code"] == "input_unavailable"
    assert gateway.execute(f"def transform(:\n  '{SECRET}6'", 4).body["code"] == "syntax_error"
    assert gateway.execute(f"import os\nos.write(2, b'{SECRET}7')\nos.kill(os.getpid(), 9)", 5).status == 500
    assert gateway.request("POST", "/v1/execute", f'{{"{SECRET}8": nothing}}'.encode()).status == 400
    assert gateway.request("POST", "/v1/execute", {"code": 1, "request_id": f"{SECRET}9"}).status == 400
    wrong = {"Authorization": f"Bearer {SECRET}10", "Cookie": f"{SECRET}11"}
    assert gateway.request("GET", f"/v1/logs?request_id={SECRET}12", headers=wrong).status == 401
    assert gateway.request("GET", f"/v1/status?request_id={SECRET}13").status == 404
    assert gateway.request("GET", f"/v1/metrics?{SECRET}14").status == 404
    assert gateway.request("GET", "/v1/status", headers={"X-Request-Id": f"{SECRET}15 x", "traceparent": SECRET}).body
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=60) as connection:
        connection.sendall(f"GET / HTTP/1.1\r\nHost: x\r\nAuthorization {SECRET}16\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("form", ["text", "json"])
def test_log_holds_no_code_no_data_no_token_and_no_query(
    start_gateway: Callable[..., GatewayProcess], form: str
) -> None:
    settings = {"LOG_JSON": str(form == "json"), "INTERNAL_S3_SECRET_KEY": f"{SECRET}17"}
    gateway = start_gateway(**settings, OTEL_EXPORTER_OTLP_HEADERS=f"key={SECRET}18")
    send_secrets_everywhere(gateway)
    assert gateway.stop() == 0
    log = "\n".join(gateway.output)
    assert re.findall(rf".*{SECRET}.*", log) == []
    assert gateway.token not in log
    assert len(re.findall("gateway.job\\b", log)) == 5, "a job, a line"
    if form == "json":
        assert all(isinstance(json.loads(line), dict) for line in gateway.output)


def test_line_of_a_job_has_its_ids_outcome_and_times(start_gateway: Callable[..., GatewayProcess]) -> None:
    gateway = start_gateway(LOG_JSON="true")
    ids = {"X-Request-Id": "call-7", "traceparent": TRACE}
    request = {"code": OK, "request_id": "mine\nnot a line"}
    answer = gateway.request("POST", "/v1/execute", request, headers=ids)
    assert (answer.headers["X-Request-Id"], answer.headers["Traceparent"]) == ("call-7", TRACE)
    gateway.execute("def transform():\n    raise KeyError('x')", 8)
    gateway.stop()
    done, failed = job_lines(gateway)
    assert done["level"] == "info"
    assert (done["request_id"], done["execution_id"]) == ("mine\nnot a line", answer.body["execution_id"])
    assert (done["call_id"], done["trace_parent"]) == ("call-7", TRACE)
    assert (done["outcome"], done["code"], done["exit_code"]) == ("succeeded", "ok", 0)
    assert {"queue", "claim", "execute", "transform", "write", "kill", "deliver"} <= done["stages_ms"].keys()
    assert (done["bytes_in"], done["bytes_out"], done["rows_out"]) == (0, 16, 2)
    assert done["peak_memory_bytes"] > 1_000_000
    assert "\n" not in done["message"]
    assert (failed["request_id"], failed["outcome"], failed["code"]) == (8, "failed", "user_error")


def test_line_that_is_no_ordinary_json_is_written_all_the_same() -> None:
    odd = {"request_id": "half \ud800 a pair", "peak_memory_bytes": 2**70}
    record = logging.makeLogRecord({"name": "gateway.job", "msg": "job", "levelname": "INFO", **odd})
    line = json.loads(JsonFormatter().format(record))
    assert {name: line[name] for name in odd} == odd
