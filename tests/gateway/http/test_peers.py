"""Requests of other members of a cluster, which reach the same handlers as those of callers."""

from __future__ import annotations

import asyncio
import json

import pytest
from tornado.web import Application

from gateway.http.access.peer_connection import PeerConnection, answer_peer
from gateway.http.access.tokens import TokenKind
from gateway.http.routes import ROUTES
from gateway.jobs.peers import PeerPart, PeerRequest
from gateway.jobs.service import JobService
from tests.gateway.http.harness import Caller, ScriptedRunner

#: With an id, about a job; and the list of jobs.
ABOUT_JOBS = {"/v1/logs", "/logs", "/v1/cancel", "/v1/status", "/cancel", "/status", "/v1/jobs", "/v1/stream"}


def request(method: str, uri: str, body: bytes = b"") -> PeerRequest:
    headers = {"Content-Type": "application/json"}
    return PeerRequest(method, uri, headers, body, "ops", int(TokenKind.ADMIN), "other")


async def answer_to(app: Application, asked: PeerRequest) -> PeerPart:
    connection = answer_peer(app, asked)
    try:
        async with asyncio.timeout(60):
            return await connection.next_part()
    finally:
        connection.close()


def is_about_jobs(path: str) -> bool:
    return path in ABOUT_JOBS or path.startswith(("/v1/jobs/", "/v1/results/"))


@pytest.mark.parametrize(
    ("method", "path"), [(each.method, each.path) for each in ROUTES if not is_about_jobs(each.path)]
)
async def test_a_member_cannot_ask_for_what_is_not_about_jobs(
    app: Application, service: JobService, runner: ScriptedRunner, method: str, path: str
) -> None:
    job = json.dumps({"code": "ok", "request_id": 1}).encode()
    part = await answer_to(app, request(method.upper(), path.replace("{name}", "style.css"), job))
    assert (part.status, json.loads(part.data)["code"]) == (404, "not_found")
    assert runner.jobs == []
    assert not service.paused


async def test_a_member_gets_answers_about_jobs(app: Application, call: Caller) -> None:
    job_id = json.loads((await call.execute()).body)["execution_id"]
    for method, path, body, status in (
        ("GET", "/v1/jobs", b"", 200),
        ("GET", f"/v1/jobs/{job_id}", b"", 200),
        ("HEAD", f"/v1/jobs/{job_id}", b"", 200),
        ("GET", "/v1/logs?request_id=1", b"", 200),
        ("GET", "/v1/status?request_id=1", b"", 200),
        ("GET", f"/v1/jobs/{job_id}/displays", b"", 200),
        ("GET", "/v1/results/1/output", b"", 200),
        ("POST", "/v1/cancel", b'{"request_id": 1}', 404),  # it has ended
        ("DELETE", f"/v1/jobs/{job_id}", b"", 200),
    ):
        part = await answer_to(app, request(method, path, body))
        assert part.status == status, (path, part.data)


async def test_nobody_waits_for_an_answer_that_is_given_up() -> None:
    connection = PeerConnection(request("GET", "/v1/logs"))
    waiting = asyncio.create_task(connection.next_part())
    await asyncio.sleep(0)
    connection.close()
    async with asyncio.timeout(60):
        assert (await waiting).is_last
