"""Traces of jobs, as a collector gets them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.support.gateway_process import GatewayProcess
from tests.support.otlp_receiver import OtlpReceiver

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
OK = "import pandas as pd\ndef transform():\n    return pd.DataFrame({'x': [1, 2]})"
SECRET = "c0nfidential"
ERROR_STATUS = 2


def test_collector_gets_a_span_for_each_job_with_its_stages(start_gateway: Callable[..., GatewayProcess]) -> None:
    with OtlpReceiver() as collector:
        gateway = start_gateway(ENABLE_TRACING="true", OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint)
        ids = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01", "X-Request-Id": "call-7"}
        gateway.request("POST", "/v1/execute", {"code": OK, "request_id": 1}, headers=ids)
        gateway.execute(f"def transform():\n    raise ValueError('{SECRET}')", 2)
        unsampled = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-00"}
        gateway.request("POST", "/v1/execute", {"code": OK, "request_id": 3}, headers=unsampled)
        assert gateway.stop() == 0

    jobs = {span.attributes["job.request_id"]: span for span in collector.spans if span.name == "job"}
    assert jobs.keys() == {"1", "2"}, "a caller that does not sample its trace gets none"
    done, failed = jobs["1"], jobs["2"]
    assert (done.trace_id, done.parent_id, done.service) == (TRACE_ID, PARENT_ID, "transform-gateway")
    assert done.attributes["job.call_id"] == "call-7"
    assert (done.attributes["job.outcome"], done.attributes["job.rows"], done.status) == ("succeeded", 2, 0)
    assert (failed.attributes["job.code"], failed.status, failed.parent_id) == ("user_error", ERROR_STATUS, "")
    assert failed.trace_id != TRACE_ID

    stages = {span.name: span for span in collector.spans if span.parent_id == done.span_id}
    assert stages.keys() == {"queue", "claim", "execute", "kill", "deliver"}
    inside = {span.name for span in collector.spans if span.parent_id == stages["execute"].span_id}
    assert {"transform", "write"} <= inside
    assert {span.trace_id for span in stages.values()} == {TRACE_ID}
    assert all(done.begin <= span.begin <= span.end <= done.end for span in stages.values())
    assert SECRET.encode() not in collector.raw
    assert b"def transform" not in collector.raw


def test_collector_that_answers_nothing_holds_neither_jobs_nor_the_end(
    start_gateway: Callable[..., GatewayProcess],
) -> None:
    with OtlpReceiver(hold=True) as collector:
        gateway = start_gateway(
            ENABLE_TRACING="true", OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint, OTEL_BSP_SCHEDULE_DELAY="50"
        )
        assert gateway.execute(OK, 1).status == 200
        assert collector.asked.wait(60)
        assert gateway.execute(OK, 2).status == 200, "the export of the first job hangs meanwhile"
        assert gateway.stop() == 0
    assert any("traces could not be exported" in line for line in gateway.output)


def test_opentelemetry_is_imported_only_when_enabled() -> None:
    code = "import sys, gateway.process.serve; sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_missing_extra_is_named_at_start(start_gateway: Callable[..., GatewayProcess]) -> None:
    hide = "import sys; sys.modules['opentelemetry'] = None; from gateway.process.app import main; main([])"
    with (
        pytest.raises(AssertionError, match=r"transform-gateway\[otel\]"),
        GatewayProcess({"ENABLE_TRACING": "true"}, launch=("-c", hide)),
    ):
        pass
