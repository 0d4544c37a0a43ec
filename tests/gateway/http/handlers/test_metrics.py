from __future__ import annotations

import asyncio
import dataclasses

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from gateway.core.errors import FailureCode
from gateway.jobs.service import JobService
from gateway.telemetry.metric_names import CATALOGUE
from gateway.telemetry.metrics import Metrics, outcome_of
from tests.gateway.http.harness import ROWS, Caller, ScriptedRunner, raw

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


async def scrape(call: Caller) -> Samples:
    answer = await call.send("GET", "/metrics", token=None)
    assert answer.code == 200
    assert answer.headers["Content-Type"].startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse_text(answer.body.decode())
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, tuple(sorted(labels.items()))), 0.0)


def total(samples: Samples, name: str) -> float:
    return sum(found for (sample, _), found in samples.items() if sample == name)


async def test_counters_add_up_exactly(call: Caller) -> None:
    codes = ["ok", "user_error", "timeout", "cancelled", "memory_limit"] * 10
    for number, code in enumerate(codes):
        await call.execute(code, number)
    samples = await scrape(call)
    jobs = "transform_gateway_jobs_total"
    assert value(samples, jobs, outcome="succeeded", code="ok") == 10
    assert value(samples, jobs, outcome="failed", code="user_error") == 10
    assert value(samples, jobs, outcome="timeout", code="timeout") == 10
    assert value(samples, jobs, outcome="cancelled", code="cancelled") == 10
    assert total(samples, jobs) == value(samples, "transform_gateway_job_requests_total") == 50
    assert total(samples, "transform_gateway_job_duration_seconds_count") == 50
    assert value(samples, "transform_gateway_job_stage_duration_seconds_count", stage="queue") == 50
    assert value(samples, "transform_gateway_output_rows_total") == 20
    assert value(samples, "transform_gateway_output_bytes_total") == 10 * len(ROWS)
    assert value(samples, "transform_gateway_input_bytes_total") == 420
    assert value(samples, "transform_gateway_kernel_peak_memory_bytes_count") == 10


@pytest.mark.parametrize("settings", [{"queue_length": 0}], indirect=True)
async def test_state_of_the_service_shows(call: Caller, runner: ScriptedRunner) -> None:
    waiting = asyncio.ensure_future(call.execute("hold", 1))
    await runner.begun.wait()
    assert (await call.execute("ok", 2)).code == 503
    assert (await call.execute("ok", 1)).code == 409
    samples = await scrape(call)
    assert value(samples, "transform_gateway_slots") == 1
    assert value(samples, "transform_gateway_slots_busy") == 1
    assert value(samples, "transform_gateway_jobs_refused_total", code="queue_full") == 1
    assert value(samples, "transform_gateway_jobs_refused_total", code="conflict") == 1
    assert value(samples, "transform_gateway_job_requests_total") == 3
    assert value(samples, "kernel_currently_running_total", type="transform") == 1
    assert value(samples, "transform_gateway_ready_kernel_claims_total", result="hit") == 3
    assert value(samples, "transform_gateway_ready_kernel_claims_total", result="miss") == 1
    assert value(samples, "transform_gateway_fork_server_restarts_total") == 2
    assert (
        value(samples, "transform_gateway_sandbox_info", tier="B", layers="landlock,seccomp", gateway_has_root="false")
        == 1
    )
    assert value(samples, "process_open_fds") > 0
    runner.release.set()
    await waiting


async def test_requests_are_labelled_by_handler_not_by_url(call: Caller) -> None:
    for number in range(5):
        await call.get("/v1/logs", request_id=number)
        await call.get(f"/nosuch/{number}")
    await call.send("BREW", "/v1/logs")
    samples = await scrape(call)
    name = "http_request_duration_seconds_count"
    assert value(samples, name, method="GET", handler="gateway.http.handlers.logs.LogsHandler", status_code="404") == 5
    assert (
        value(
            samples, name, method="GET", handler="gateway.http.base_handler.handler.NotFoundHandler", status_code="404"
        )
        == 5
    )
    assert (
        value(samples, name, method="other", handler="gateway.http.handlers.logs.LogsHandler", status_code="405") == 1
    )


@pytest.mark.parametrize("settings", [{"queue_length": 0}], indirect=True)
async def test_every_refusal_of_a_job_is_counted_once(call: Caller, port: int, runner: ScriptedRunner) -> None:
    holding = asyncio.ensure_future(call.execute("hold", 1))
    await runner.begun.wait()
    await call.execute("ok", 2)
    await call.execute("ok", 1)
    await call.execute(5, 3)
    await call.send("POST", "/v1/execute", b"{")
    await call.send("POST", "/execute", b"[]")
    await call.send("POST", "/v1/execute", b"x" * 200_001)
    await call.send("POST", "/v1/execute", {}, token=None)
    await call.send("POST", "/v1/execute", {}, Content_Type="text/plain")
    await call.get("/v1/execute")
    await call.send("POST", "/v1/cancel", b"{")
    await raw(port, b"POST /v1/execute HTTP/1.1\r\nno colon\r\n\r\n")
    samples = await scrape(call)
    refused = {
        labels[0][1]: count
        for (name, labels), count in samples.items()
        if name == "transform_gateway_jobs_refused_total" and count
    }
    expected = {"queue_full": 1, "conflict": 1, "bad_request": 3, "too_large": 1, "unauthorized": 1}
    assert refused == expected | {"unsupported_media_type": 1}
    assert value(samples, "transform_gateway_jobs_live") == 1
    assert value(samples, "transform_gateway_job_requests_total") == sum(refused.values()) + 1
    assert value(samples, "transform_gateway_malformed_requests_total") == 1
    runner.release.set()
    await holding


async def test_exported_metrics_match_the_catalogue(
    call: Caller, service: JobService, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = service.status()
    disk = {"disk": {"free_bytes": 1, "free_inodes": 1, "problem": None}}
    counts = dict.fromkeys(("attempts", "fenced", "hosts_lost", "republished"), 1)
    cluster = {"cluster": {"members": [{"name": "a", "slots": 1, "busy": 1}], "missing": ["b"], **counts}}
    status = dataclasses.replace(status, internal_s3={"healthy": True}, details={**status.details, **disk, **cluster})
    monkeypatch.setattr(service, "status", lambda: status)
    await call.execute("ok", 1)
    exported = {}
    for family in metrics.registry.collect():
        if not family.name.startswith(("process_", "python_")):
            suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
            labels = {frozenset(sample.labels) - {"le"} for sample in family.samples}
            exported[family.name + suffix] = (family.type, labels, family.documentation)
    described = {name.name: (name.kind, {frozenset(name.labels)}, name.text) for name in CATALOGUE}
    assert exported == described


async def test_openmetrics_parses_too(call: Caller) -> None:
    await call.execute("ok", 1)
    answer = await call.send("GET", "/metrics", token=None, Accept="application/openmetrics-text; version=1.0.0")
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
    families = parse_openmetrics(answer.body.decode())  # type: ignore[no-untyped-call]
    names = {family.name for family in families}
    assert {"transform_gateway_jobs", "transform_gateway_sandbox", "http_request_duration_seconds"} <= names


def test_every_failure_has_an_outcome() -> None:
    assert {outcome_of(code) for code in FailureCode} == {"failed", "timeout", "cancelled"}
