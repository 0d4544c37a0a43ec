from __future__ import annotations

import asyncio

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from gateway.errors import FailureCode
from gateway.jobs.model import Verdict
from gateway.metrics import outcome_of
from tests.gateway.http.harness import ROWS, Caller, ScriptedRunner

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
    assert value(samples, "transform_gateway_sandbox_info", tier="B", layers="landlock,seccomp") == 1
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
    assert value(samples, name, method="GET", handler="gateway.http.logs.LogsHandler", status_code="404") == 5
    assert value(samples, name, method="GET", handler="gateway.http.base.NotFoundHandler", status_code="404") == 5
    assert value(samples, name, method="other", handler="gateway.http.logs.LogsHandler", status_code="405") == 1


async def test_openmetrics_parses_too(call: Caller) -> None:
    await call.execute("ok", 1)
    answer = await call.send("GET", "/metrics", token=None, Accept="application/openmetrics-text; version=1.0.0")
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
    families = parse_openmetrics(answer.body.decode())  # type: ignore[no-untyped-call]
    names = {family.name for family in families}
    assert {"transform_gateway_jobs", "transform_gateway_sandbox", "http_request_duration_seconds"} <= names


def test_every_failure_has_an_outcome() -> None:
    assert {outcome_of(Verdict(code, "", 1)) for code in FailureCode} == {"failed", "timeout", "cancelled"}
