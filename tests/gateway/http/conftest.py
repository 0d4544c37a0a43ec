from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop
from tornado.web import Application

from gateway.core.settings import Settings
from gateway.http.application import make_app
from gateway.http.server import make_server
from gateway.jobs.service import JobService
from gateway.jobs.store import JobStore
from gateway.storage.outputs.kept_results import KeptResultStore
from gateway.telemetry.metrics import Metrics
from tests.gateway.http.harness import TOKEN, Caller, ScriptedRunner


@pytest.fixture
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Settings of the test's own by ``@pytest.mark.parametrize("settings", [{...}], indirect=True)``."""
    changes: dict[str, Any] = getattr(request, "param", {})
    roots = (tmp_path / "shared",)
    roots[0].mkdir()
    state_dir = tmp_path / "state"
    plain = Settings(state_dir=state_dir, auth_token=TOKEN, working_dir_roots=roots, max_body_bytes=200_000)
    return dataclasses.replace(plain, **changes)


@pytest.fixture
def runner(io_loop: IOLoop, settings: Settings, tmp_path: Path) -> ScriptedRunner:
    return ScriptedRunner(tmp_path, KeptResultStore(settings), settings.slots)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def service(io_loop: IOLoop, settings: Settings, runner: ScriptedRunner, metrics: Metrics) -> Iterator[JobService]:
    # on disk only for bundles: each commit waits for the disk
    (settings.state_dir / "store").mkdir(parents=True, exist_ok=True)
    store = JobStore(settings, settings.state_dir / "store" if settings.keep_failed_jobs else None)
    service = JobService(settings, runner, store, on_finished=metrics.job_finished)
    yield service
    io_loop.run_sync(service.aclose, timeout=60)


@pytest.fixture
def app(service: JobService, settings: Settings, metrics: Metrics) -> Application:
    return make_app(service, settings, metrics)


@pytest.fixture
def http_server(
    io_loop: IOLoop, app: Application, settings: Settings, metrics: Metrics, http_server_port: tuple[Any, int]
) -> Iterator[HTTPServer]:
    """As the plugin's, but with the gateway's own options, which are part of what is tested."""
    server = make_server(app, settings, metrics)
    server.add_socket(http_server_port[0])
    yield server
    server.stop()
    io_loop.run_sync(server.close_all_connections, timeout=60)


@pytest.fixture
def port(http_server: HTTPServer, http_server_port: tuple[Any, int]) -> int:
    return http_server_port[1]


@pytest.fixture
def call(http_server_client: Any) -> Caller:
    return Caller(http_server_client)
