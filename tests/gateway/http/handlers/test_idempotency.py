"""A request that is sent again with its Idempotency-Key gets the recorded outcome, and nothing runs twice."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
from typing import Any

import pytest

from gateway.core.errors import Conflict
from gateway.core.job import Job
from gateway.jobs.service import JobService
from gateway.jobs.store import IdempotencyKey, JobStore
from tests.gateway.http.harness import Caller, ScriptedRunner, body


async def send(call: Caller, key: str | None, code: str = "ok", request_id: Any = 1, **fields: Any) -> Any:
    headers = {"Idempotency-Key": key} if key is not None else {}
    request = {"code": code, "request_id": request_id, **fields}
    return await call.send("POST", "/v1/execute", request, **headers)


@pytest.mark.parametrize("code", ["ok", "user_error"])
async def test_the_same_request_again_gets_the_same_answer(call: Caller, runner: ScriptedRunner, code: str) -> None:
    first = await send(call, "k1", code, inline=True)
    again = await send(call, "k1", code, inline=True)
    assert again.code == first.code
    assert body(again) == body(first) | {"replayed": True}
    assert len(runner.jobs) == 1


async def test_a_trace_of_its_own_does_not_make_another_request(call: Caller, runner: ScriptedRunner) -> None:
    request = {"code": "ok", "request_id": 1}
    for number in (1, 2):
        headers = {"Idempotency-Key": "k", "traceparent": f"00-{number:032x}-{number:016x}-01"}
        assert (await call.send("POST", "/v1/execute", request, **headers)).code == 200
    assert len(runner.jobs) == 1


async def test_another_request_with_the_key_is_422(call: Caller, runner: ScriptedRunner) -> None:
    await send(call, "k1")
    for fields in ({"code": "timeout"}, {"request_id": 2}, {"label": "x"}):
        answer = await send(call, "k1", **fields)  # type: ignore[arg-type]
        assert (answer.code, body(answer)["code"]) == (422, "idempotency_key_reused")
    assert len(runner.jobs) == 1


async def test_a_key_of_a_running_job_is_409_and_later_its_outcome(call: Caller, runner: ScriptedRunner) -> None:
    going = asyncio.ensure_future(send(call, "k1", "hold"))
    await runner.begun.wait()
    answer = await send(call, "k1", "hold")
    assert (answer.code, body(answer)["code"]) == (409, "conflict")
    runner.release.set()
    first = body(await going)
    assert body(await send(call, "k1", "hold")) == first | {"replayed": True}


async def test_requests_at_the_same_moment_run_once(call: Caller, runner: ScriptedRunner) -> None:
    answers = await asyncio.gather(*[send(call, "k1", "ok", "same") for _ in range(8)])
    assert len(runner.jobs) == 1
    assert {answer.code for answer in answers} <= {200, 409}


async def test_without_a_key_an_id_runs_again(call: Caller, runner: ScriptedRunner) -> None:
    for _ in range(2):
        assert "replayed" not in body(await send(call, None))
    assert len(runner.jobs) == 2


async def test_a_refusal_is_not_recorded(call: Caller, runner: ScriptedRunner, service: JobService) -> None:
    service.draining = True
    assert (await send(call, "k1")).code == 503
    service.draining = False
    assert "replayed" not in body(await send(call, "k1"))
    assert len(runner.jobs) == 1


class Claims:
    """The claims of a cluster whose broker answers when it is let."""

    def __init__(self) -> None:
        self.asked, self.answered = asyncio.Event(), asyncio.Event()
        self.withdrawn: list[str] = []

    def check(self, job: Job) -> None: ...

    def new_id(self) -> str:
        return "id"

    async def claim(self, request_id: Any, token_name: str | None, execution_id: str, key: bytes | None = None) -> None:
        self.asked.set()
        await self.answered.wait()

    async def announce(self, request_id: Any, token_name: str | None) -> None: ...

    async def release(self, execution_id: str) -> None: ...

    async def withdraw(self, execution_id: str) -> None:
        self.withdrawn.append(execution_id)


async def test_a_key_that_other_members_may_know_is_not_a_new_one(
    call: Caller, runner: ScriptedRunner, service: JobService
) -> None:
    service._claims = claims = Claims()
    first = asyncio.ensure_future(send(call, "k1"))
    await claims.asked.wait()
    with pytest.raises(Conflict):  # the answer to another member, which would let it run the job
        await service.find_by_key(IdempotencyKey(hashlib.sha256(b"k1").digest(), b""))
    assert (await send(call, "k1")).code == 409
    service.draining = True
    claims.answered.set()
    assert (await first).code == 503
    assert claims.withdrawn == ["id"]
    service.draining = False
    assert "replayed" not in body(await send(call, "k1"))
    assert len(runner.jobs) == 1


@pytest.mark.parametrize("key", ["", " ", "a b", "é", "x" * 256])
async def test_a_key_that_is_none_is_400(call: Caller, key: str) -> None:
    answer = await send(call, key)
    assert (answer.code, body(answer)["field"]) == (400, "Idempotency-Key")


async def test_a_job_that_cannot_be_stored_is_refused_and_not_run(
    call: Caller, runner: ScriptedRunner, service: JobService, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: JobStore, record: Any) -> asyncio.Future[None]:
        failed = asyncio.get_running_loop().create_future()
        failed.set_exception(sqlite3.OperationalError("database or disk is full"))
        return failed

    monkeypatch.setattr(JobStore, "accept", full)
    answer = await send(call, None)
    assert (answer.code, body(answer)["code"], body(answer)["retryable"]) == (503, "store_failed", True)
    await asyncio.sleep(0)
    assert not runner.begun.is_set()
    assert service.queued() == []
    assert answer.headers["Retry-After"]
