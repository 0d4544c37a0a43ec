"""An operator pauses the intake of jobs."""

from __future__ import annotations

import asyncio
from pathlib import Path

from prometheus_client import generate_latest

from gateway.core.settings import Settings
from gateway.jobs.service import JobService
from gateway.jobs.store import JobStore
from gateway.telemetry.metrics import Metrics
from tests.gateway.http.harness import Caller, ScriptedRunner, body, eventually


async def test_a_pause_refuses_new_jobs_and_lets_accepted_ones_go_on(
    call: Caller, runner: ScriptedRunner, metrics: Metrics, service: JobService
) -> None:
    running = asyncio.ensure_future(call.execute("hold", 1))
    await runner.begun.wait()
    queued = asyncio.ensure_future(call.execute("ok", 2))
    assert await eventually(service.queued)
    assert body(await call.send("POST", "/v1/pause")) == {"paused": True}
    refused = await call.execute("ok", 3)
    assert refused.code == 503
    assert "Retry-After" in refused.headers
    assert (body(refused)["code"], body(refused)["retryable"]) == ("paused", True)
    status = await call.get("/v1/status")
    assert (status.code, body(status)["paused"], body(status)["healthy"]) == (503, True, False)
    assert [(await call.get(f"/healthz/{probe}")).code for probe in ("ready", "live")] == [503, 200]
    assert b"\ntransform_gateway_paused 1.0\n" in generate_latest(metrics.registry)
    runner.release.set()
    assert [(await waiting).code for waiting in (running, queued)] == [200, 200]
    assert body(await call.send("POST", "/v1/resume")) == {"paused": False}
    assert (await call.execute("ok", 3)).code == 200
    assert [(await call.get(f"/healthz/{probe}")).code for probe in ("ready", "live")] == [200, 200]


async def test_a_pause_outlasts_a_restart(settings: Settings, tmp_path: Path) -> None:
    for paused in (True, False):
        store = JobStore(settings, tmp_path)
        assert store.is_paused() is not paused
        await store.set_paused(paused)
        await store.set_paused(paused)  # a second one changes nothing
        store.close()
