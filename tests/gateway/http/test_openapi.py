"""The API description says what the routes do: compared with the routes, the models and real answers."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest
from tornado.routing import PathMatches
from tornado.web import Application

from gateway.core.settings import Settings
from gateway.http.base_handler.handler import BaseHandler
from gateway.http.routes import ROUTES
from gateway.http.schemas.gateway_state import RootResponse, StatusResponse
from gateway.http.schemas.responses import (
    AcceptedResponse,
    CancelResponse,
    ErrorResponse,
    JobResponse,
    JobStatusResponse,
    LegacyJobResponse,
    LegacyLogsResponse,
    LogsResponse,
    ResponseModel,
)
from gateway.http.schemas.validation import RequestModel, expected_words
from tests.gateway.http.harness import Caller, ScriptedRunner, body


async def document(call: Caller) -> dict[str, Any]:
    answer = await call.send("GET", "/openapi.json", token=None)
    return body(answer)


async def test_paths_are_exactly_the_routes_of_the_application(call: Caller, app: Application) -> None:
    described = {
        (re.sub(r"{\w+}", "{}", path), method)
        for path, entry in (await document(call))["paths"].items()
        for method in entry
    }
    served: set[tuple[str, str]] = set()
    for rule in app.wildcard_router.rules:
        handler = rule.target
        assert issubclass(handler, BaseHandler)
        assert isinstance(rule.matcher, PathMatches)
        path = re.sub(r"\([^)]*\)", "{}", rule.matcher.regex.pattern.removesuffix("$"))
        served |= {(path, method.lower()) for method in handler.allowed_methods() if method != "HEAD"}
    assert described == served


async def test_every_reference_leads_somewhere(call: Caller) -> None:
    found = await document(call)
    names = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(found)))
    assert names <= found["components"]["schemas"].keys()
    assert found["openapi"].startswith("3.1")


async def test_documented_security_matches_the_routes(call: Caller) -> None:
    for path, entry in (await document(call))["paths"].items():
        for method, operation in entry.items():
            url = path.replace("{request_id}", "1").replace("{what}", "output")
            answer = await call.send(method.upper(), url, b"{}" if method == "post" else None, token=None)
            assert (answer.code == 401) == bool(operation["security"]), (method, path)


@pytest.mark.parametrize("model", RequestModel.__subclasses__())
def test_every_field_describes_its_expected_value(model: type[RequestModel]) -> None:
    assert [name for name in model.model_fields if expected_words(model, name) == "another value"] == []


def test_every_handler_method_is_in_the_route_table() -> None:
    for route in ROUTES:
        assert route.method.upper() in route.handler.allowed_methods()


async def test_real_answers_fit_their_models(call: Caller, runner: ScriptedRunner, settings: Settings) -> None:
    shared = str(settings.working_dir_roots[0])
    waiting = asyncio.ensure_future(call.execute("hold", 1))
    await runner.begun.wait()
    first = {"code": "ok", "working_dir": shared}
    samples: list[tuple[Any, type[ResponseModel], int]] = [
        (await call.get("/"), RootResponse, 200),
        (await call.get("/logs"), LegacyLogsResponse, 200),
        (await call.get("/v1/logs", request_id=1), LogsResponse, 200),
        (await call.get("/v1/status"), StatusResponse, 200),
        (await call.get("/v1/status", request_id=1), JobStatusResponse, 200),
        (await call.execute("ok", 1), ErrorResponse, 409),
        (await call.get("/v1/logs", request_id=99), ErrorResponse, 404),
        (await call.send("POST", "/v1/cancel", {"request_id": 1}), CancelResponse, 200),
        (await waiting, JobResponse, 500),
        (await call.execute("ok", 2, inline=True), JobResponse, 200),
        (await call.send("POST", "/execute", first), LegacyJobResponse, 200),
        (await call.send("POST", "/execute", first | {"code": "user_error"}), LegacyJobResponse, 500),
        (await call.execute("", 2, timeout=-1), ErrorResponse, 400),
        (await call.get("/v1/status"), StatusResponse, 200),
    ]
    for answer, model, status in samples:
        assert answer.code == status, answer.body
        model.model_validate_json(answer.body)


@pytest.mark.parametrize("settings", [{"asynchronous": True}], indirect=True)
async def test_accepted_answer_fits_its_model(call: Caller) -> None:
    AcceptedResponse.model_validate_json((await call.execute("ok", 1)).body)


async def test_docs_page_needs_no_other_files(call: Caller) -> None:
    answer = await call.send("GET", "/docs", token=None)
    page = answer.body.decode()
    assert answer.headers["Content-Type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "<script" not in page
    assert not re.search(r'(?:src|href)="(?:https?:)?//', page)
    assert all(f"<code>{route.path}</code>" in page for route in ROUTES)
    anchors = set(re.findall(r'href="#(\w+)"', page))
    assert anchors <= set(re.findall(r'id="(\w+)"', page))
