"""The API description says what the routes do: compared with the routes, the models and real answers."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest
from tornado.routing import PathMatches
from tornado.web import Application

from gateway.http.answers import (
    AcceptedAnswer,
    AnswerModel,
    CancelAnswer,
    ErrorAnswer,
    FirstAnswer,
    FirstLogsAnswer,
    JobAnswer,
    JobStatusAnswer,
    LogsAnswer,
    RootAnswer,
    StatusAnswer,
)
from gateway.http.base import BaseHandler
from gateway.http.models import CancelRequest, ExecuteRequest, FirstExecuteRequest
from gateway.http.routes import ROUTES
from gateway.settings import Settings
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


async def test_security_is_what_the_routes_do(call: Caller) -> None:
    for path, entry in (await document(call))["paths"].items():
        for method, operation in entry.items():
            url = path.replace("{request_id}", "1").replace("{what}", "output")
            answer = await call.send(method.upper(), url, b"{}" if method == "post" else None, token=None)
            assert (answer.code == 401) == bool(operation["security"]), (method, path)


@pytest.mark.parametrize("model", [ExecuteRequest, FirstExecuteRequest, CancelRequest])
def test_every_field_says_what_is_expected(model: type[Any]) -> None:
    assert model.EXPECTED.keys() == model.model_fields.keys()


def test_every_handler_method_is_in_the_route_table() -> None:
    for route in ROUTES:
        assert route.method.upper() in route.handler.allowed_methods()


async def test_real_answers_fit_their_models(call: Caller, runner: ScriptedRunner, settings: Settings) -> None:
    shared = str(settings.working_dir_roots[0])
    waiting = asyncio.ensure_future(call.execute("hold", 1))
    await runner.begun.wait()
    first = {"code": "ok", "working_dir": shared}
    samples: list[tuple[Any, type[AnswerModel], int]] = [
        (await call.get("/"), RootAnswer, 200),
        (await call.get("/logs"), FirstLogsAnswer, 200),
        (await call.get("/v1/logs", request_id=1), LogsAnswer, 200),
        (await call.get("/v1/status"), StatusAnswer, 200),
        (await call.get("/v1/status", request_id=1), JobStatusAnswer, 200),
        (await call.execute("ok", 1), ErrorAnswer, 409),
        (await call.get("/v1/logs", request_id=99), ErrorAnswer, 404),
        (await call.send("POST", "/v1/cancel", {"request_id": 1}), CancelAnswer, 200),
        (await waiting, JobAnswer, 500),
        (await call.execute("ok", 2, inline=True), JobAnswer, 200),
        (await call.send("POST", "/execute", first), FirstAnswer, 200),
        (await call.send("POST", "/execute", first | {"code": "user_error"}), FirstAnswer, 500),
        (await call.execute("", 2, timeout=-1), ErrorAnswer, 400),
        (await call.get("/v1/status"), StatusAnswer, 200),
    ]
    for answer, model, status in samples:
        assert answer.code == status, answer.body
        model.model_validate_json(answer.body)


@pytest.mark.parametrize("settings", [{"asynchronous": True}], indirect=True)
async def test_accepted_answer_fits_its_model(call: Caller) -> None:
    AcceptedAnswer.model_validate_json((await call.execute("ok", 1)).body)


async def test_docs_page_stands_alone(call: Caller) -> None:
    answer = await call.send("GET", "/docs", token=None)
    page = answer.body.decode()
    assert answer.headers["Content-Type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "<script" not in page
    assert not re.search(r'(?:src|href)="(?:https?:)?//', page)
    assert all(f"<code>{route.path}</code>" in page for route in ROUTES)
    anchors = set(re.findall(r'href="#(\w+)"', page))
    assert anchors <= set(re.findall(r'id="(\w+)"', page))
