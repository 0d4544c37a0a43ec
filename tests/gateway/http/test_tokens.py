"""Named tokens: the permissions of each kind, and that callers with different names do not see the jobs of each other."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tornado.httpclient import HTTPResponse
from tornado.web import Application

from gateway.core.settings import Settings
from gateway.http.access.auth import Guard
from gateway.http.access.tokens import Token, TokenKind
from gateway.http.application import make_app
from gateway.http.routes import ROUTES
from gateway.jobs.service import JobService
from gateway.telemetry.metrics import Metrics
from tests.gateway.http.handlers.test_stream import opened
from tests.gateway.http.harness import Caller, ScriptedRunner, body, eventually, head, raw

TOKENS = {name: f"{name}-0123456789abcdef" for name in ("one", "two", "new", "viewer", "ops", "local")}
KINDS = {"one": TokenKind.RUN, "two": TokenKind.RUN, "viewer": TokenKind.READ, "ops": TokenKind.ADMIN}


@pytest.fixture
def guard(settings: Settings) -> Guard:
    tokens = [Token(name, kind, TOKENS[name]) for name, kind in KINDS.items()]
    return Guard(settings, tokens, TOKENS["local"])


@pytest.fixture
def app(service: JobService, settings: Settings, metrics: Metrics, guard: Guard) -> Application:
    return make_app(service, settings, metrics, guard)


class As:
    """Sends requests with the token of one name."""

    def __init__(self, call: Caller, name: str) -> None:
        self._call, self._token = call, TOKENS[name]

    async def get(self, path: str) -> HTTPResponse:
        return await self._call.send("GET", path, token=self._token)

    async def send(self, method: str, path: str, content: Any = None, **headers: str) -> HTTPResponse:
        return await self._call.send(method, path, content, token=self._token, **headers)

    async def execute(self, code: str = "ok", request_id: Any = 7, **headers: str) -> HTTPResponse:
        return await self.send("POST", "/v1/execute", {"code": code, "request_id": request_id}, **headers)


@pytest.fixture
def one(call: Caller) -> As:
    return As(call, "one")


@pytest.fixture
def two(call: Caller) -> As:
    return As(call, "two")


@pytest.fixture
def viewer(call: Caller) -> As:
    return As(call, "viewer")


@pytest.fixture
def ops(call: Caller) -> As:
    return As(call, "ops")


READABLE = {
    "/v1/logs",
    "/logs",
    "/v1/jobs",
    "/v1/jobs/{job_id}",
    "/v1/jobs/{job_id}/logs",
    "/v1/stream",
    "/v1/packages",
}
OF_ADMINS = {"/v1/held", "/v1/release", "/v1/console", "/v1/pause", "/v1/resume", "/v1/packages/reload"}


@pytest.mark.parametrize("route", [route for route in ROUTES if not route.handler.is_open], ids=lambda r: r.path)
async def test_each_kind_gets_its_routes_and_no_others(call: Caller, route: Any, one: As, viewer: As, ops: As) -> None:
    path = route.path.replace("{request_id}", "1").replace("{what}", "output").replace("{job_id}", "x")
    path += "?job=x" if path == "/v1/stream" else ""  # else it would not end
    least = "read" if route.method == "get" and route.path in READABLE else "run"
    least = "admin" if route.path in OF_ADMINS else least
    content = None if route.method in ("get", "delete") else {}
    answers = {caller: await caller.send(route.method.upper(), path, content) for caller in (viewer, one, ops)}
    refused = [answer.code == 403 for answer in answers.values()]
    assert refused == [least != "read", least == "admin", False]
    for answer in answers.values():
        if answer.code == 403:
            assert body(answer)["code"] == "insufficient_scope"
            assert f"this needs a token of kind '{least}'" in body(answer)["error"]
            assert answer.headers["WWW-Authenticate"] == 'Bearer error="insufficient_scope"'


async def test_the_token_of_the_pid_file_pauses_and_holds_and_does_nothing_else(call: Caller) -> None:
    local = As(call, "local")
    assert (await local.send("POST", "/v1/resume")).code == 200
    assert (await local.get("/v1/jobs")).code == 401
    assert (await local.get("/v1/jobs/a/bundle")).code == (await local.get("/v1/jobs/a/bundle/t")).code == 404


async def test_two_callers_use_one_id_at_the_same_time(
    one: As, two: As, ops: As, viewer: As, runner: ScriptedRunner, service: JobService
) -> None:
    first = asyncio.ensure_future(one.execute("hold"))
    await runner.begun.wait()
    second = asyncio.ensure_future(two.execute("user_error"))
    assert (await one.execute()).code == 409, "its own id is in use"
    assert body(await one.get("/v1/logs?request_id=7"))["state"] == "running"
    assert await eventually(service.queued)
    waiting = await two.get("/v1/logs?request_id=7")
    assert body(waiting)["state"] == "queued"
    assert body(await two.get("/v1/logs"))["job_id"] == body(waiting)["job_id"]
    assert body(await one.get("/v1/logs"))["state"] == "running"
    assert [body(await who.get("/logs"))["status"] for who in (one, two)] == ["executing", "no_execution"]
    assert (await two.send("POST", "/v1/cancel", {"request_id": 7})).code == 200
    assert body(await second)["code"] == "cancelled"
    assert not first.done()
    assert (await two.send("POST", "/v1/cancel", {"request_id": 7})).code == 404
    assert (await viewer.send("POST", "/v1/cancel", {"request_id": 7})).code == 403
    assert (await ops.send("POST", "/v1/cancel", {"request_id": 7})).code == 200
    assert body(await first)["code"] == "cancelled"


async def test_an_operator_cancels_the_named_job_though_another_has_its_request_id(
    one: As, two: As, ops: As, runner: ScriptedRunner, service: JobService
) -> None:
    first = asyncio.ensure_future(one.execute("hold"))
    await runner.begun.wait()
    second = asyncio.ensure_future(two.execute("hold"))
    assert await eventually(service.queued)
    meant = body(await two.get("/v1/logs?request_id=7"))["job_id"]
    assert (await one.send("POST", f"/v1/jobs/{meant}/cancel")).code == 404
    assert (await ops.send("POST", f"/v1/jobs/{meant}/cancel")).code == 200
    assert body(await second)["code"] == "cancelled"
    runner.release.set()
    assert body(await first)["code"] == "ok"


async def test_the_jobs_of_another_caller_do_not_exist(one: As, two: As, ops: As, viewer: As) -> None:
    job_id = body(await one.execute("ok", 7))["execution_id"]
    assert (await one.get("/v1/results/7/output")).code == 200
    for path in ("/v1/logs?request_id=7", "/v1/status?request_id=7", "/v1/results/7/output", f"/v1/jobs/{job_id}",
                 f"/v1/jobs/{job_id}/logs", f"/v1/jobs/{job_id}/displays", f"/v1/jobs/{job_id}/result", "/v1/logs"):  # fmt: skip
        assert (await two.get(path)).code == 404, path
        assert (await ops.get(path)).code == 200, path
        assert (await viewer.get(path)).code == (403 if "result" in path or "displays" in path else 200), path
    assert (await two.send("DELETE", f"/v1/jobs/{job_id}")).code == 404
    assert body(await two.get("/v1/jobs"))["jobs"] == []
    assert body(await two.get("/v1/jobs?token_name=one"))["jobs"] == []
    for who in (one, ops, viewer):
        assert [job["token_name"] for job in body(await who.get("/v1/jobs"))["jobs"]] == ["one"]
    assert body(await ops.get("/v1/jobs?token_name=two"))["jobs"] == []
    assert (await one.send("DELETE", f"/v1/jobs/{job_id}")).code == 200


async def test_an_id_that_several_callers_used_means_the_own_job_first(one: As, two: As, ops: As) -> None:
    found = [body(await who.execute("ok", 7))["execution_id"] for who in (one, ops, two)]
    assert body(await ops.get("/v1/logs?request_id=7"))["job_id"] == found[1]
    assert (await ops.send("DELETE", f"/v1/jobs/{found[1]}")).code == 200
    assert body(await ops.get("/v1/logs?request_id=7"))["job_id"] == found[2], "else the newest"


async def test_status_shows_each_caller_its_own_jobs_and_the_public_none(call: Caller, one: As, two: As) -> None:
    await one.execute("user_error", 7)
    public = body(await call.send("GET", "/v1/status", token=None))
    assert (public["state"], public["result"], public["current_execution_id"]) == ("finished", None, None)
    assert public["metrics"]["failed"] == 1
    assert body(await two.get("/v1/status"))["state"] == "idle"
    assert body(await one.get("/v1/status"))["result"]["request_id"] == 7


async def test_an_idempotency_key_is_the_callers_own(one: As, two: As, runner: ScriptedRunner) -> None:
    for who in (one, two, one, two):
        assert (await who.execute("ok", 7, Idempotency_Key="k")).code == 200
    assert len(runner.jobs) == 2


@pytest.mark.parametrize("settings", [{"keep_failed_jobs": True}], indirect=True)
async def test_a_bundle_is_for_tokens_that_may_run_the_job(call: Caller, one: As, two: As, viewer: As) -> None:
    job_id = body(await one.execute("user_error", 7))["execution_id"]
    path = body(await one.get(f"/v1/jobs/{job_id}"))["bundle"]
    assert body(await one.get(path))["code"] == "user_error"
    assert body(await viewer.get(f"/v1/jobs/{job_id}"))["bundle"] is None
    assert (await viewer.get(path)).code == (await viewer.get(f"{path}/t")).code == 403
    assert (await two.get(path)).code == (await two.get(f"{path}/t")).code == 404
    assert (await call.send("GET", path, token=None)).code == 401


async def test_a_token_is_replaced_without_downtime(call: Caller, one: As, guard: Guard) -> None:
    await one.execute("ok", 7)
    guard.replace([Token("one", TokenKind.RUN, TOKENS[name]) for name in ("one", "new")])
    new = As(call, "new")
    for who in (one, new):
        assert (await who.get("/v1/logs?request_id=7")).code == 200
    guard.replace([Token("one", TokenKind.RUN, TOKENS["new"])])
    assert (await one.get("/v1/logs?request_id=7")).code == 401
    assert (await new.get("/v1/logs?request_id=7")).code == 200


async def test_a_stream_has_the_jobs_that_its_token_may_see(
    port: int, one: As, two: As, runner: ScriptedRunner, service: JobService
) -> None:
    running = asyncio.ensure_future(one.execute("hold", "first"))
    await runner.begun.wait()
    job_id = service.running()[0].execution_id
    looking = f"?job={job_id}"
    refused = await raw(port, head("GET", f"/v1/stream{looking}", "Connection: close", token=TOKENS["two"]))
    assert (refused.status, refused.body["code"]) == (404, "not_found")
    async with (
        opened(port, looking, token=TOKENS["one"]) as own,
        opened(port, token=TOKENS["two"]) as other,
        opened(port, looking, token=TOKENS["viewer"]) as viewing,
    ):
        assert [[job["request_id"] for job in (await each.next()).data["jobs"]] for each in (own, other, viewing)] == [
            ["first"],
            [],
            ["first"],
        ]
        for each in (own, viewing):
            assert [line["message"] for line in (await each.until("log")).data["events"]] == ["begin"]
        second = asyncio.ensure_future(two.execute("ok", "second"))
        runner.release.set()
        await asyncio.gather(running, second)
        seen = set()
        while "finished" not in {state for _, _, state in seen}:
            message = await other.next()
            seen |= {(message.name, job["request_id"], job["state"]) for job in message.data["jobs"]}
        assert {(name, request_id) for name, request_id, _ in seen} == {("changes", "second")}
        await own.until("changes", request_id="first", state="finished", token_name="one")
        await viewing.until("changes", request_id="second", state="finished", token_name="two")


async def test_a_stream_that_continues_gets_no_missed_job_of_another_name(port: int, one: As, two: As) -> None:
    async with opened(port, token=TOKENS["two"]) as stream:
        last = await stream.next()
    await one.execute("user_error", "first")
    await two.execute("ok", "second")
    async with opened(port, "", f"Last-Event-ID: {last.id}", token=TOKENS["two"]) as stream:
        missed = await stream.next()
    assert (missed.name, [job["request_id"] for job in missed.data["jobs"]]) == ("changes", ["second"])


async def test_a_stream_ends_with_its_token(port: int, guard: Guard, service: JobService) -> None:
    async with opened(port, token=TOKENS["one"]) as stream:
        await stream.next()
        guard.replace([Token("one", TokenKind.RUN, TOKENS["new"])])
        assert await eventually(lambda: not service.feed.watchers)
