"""Jobs are found by the gateway's own id, listed with filters, and removed."""

from __future__ import annotations

import asyncio
import math
import sqlite3
from datetime import datetime
from typing import Any
from urllib.parse import quote

import pytest

from gateway.http.schemas.history import PARAMETERS
from gateway.http.schemas.responses import iso_utc
from gateway.jobs.service import JobService
from tests.gateway.http.harness import FETCHED, ROWS, TOKEN, Caller, ScriptedRunner, body


async def run(call: Caller, code: str = "ok", request_id: Any = 1, **fields: Any) -> str:
    return str(body(await call.execute(code, request_id, **fields))["execution_id"])


async def listed(call: Caller, **query: str | int) -> list[str]:
    return [job["job_id"] for job in body(await call.get("/v1/jobs", **query))["jobs"]]


async def test_a_job_is_listed_with_label_tables_and_outcome(call: Caller) -> None:
    job_id = await run(call, "ok", 7, label="nightly report", table_mapping={"orders": "http://s3.test/in"})
    (job,) = body(await call.get("/v1/jobs"))["jobs"]
    assert job["job_id"] == job_id
    assert {name: job[name] for name in ("request_id", "label", "tables", "state", "code", "error", "rows")} == {
        "request_id": 7,
        "label": "nightly report",
        "tables": ["orders"],
        "state": "finished",
        "code": "ok",
        "error": None,
        "rows": 2,
    }
    assert (job["duration"], job["attempts"], job["stage"]) == (1.5, 1, None)
    assert job["created_at"] <= job["started_at"] <= job["finished_at"]


async def test_columns_of_a_job_are_shown_after_a_restart_too(call: Caller, service: JobService) -> None:
    job_id = await run(call)
    columns = [{"name": "id", "base_type": "Integer"}, {"name": "note", "base_type": ""}]
    inputs = [{"name": "orders", "rows": 3, "bytes": 42, "columns": columns}]
    for _ in range(2):
        job = body(await call.get(f"/v1/jobs/{job_id}"))
        assert (job["inputs"], job["columns"]) == (inputs, columns[:1])
        service._store._recent._jobs.clear()  # as after a restart: from the disk


async def test_a_job_shows_when_each_stage_ran(call: Caller) -> None:
    job = body(await call.get(f"/v1/jobs/{await run(call)}"))
    spans = {span["name"]: span for span in job["waterfall"]}
    assert spans.keys() == job["result"]["stages"].keys()
    assert spans["queue"]["begin"] == 0
    assert spans["execute"]["end"] - spans["execute"]["begin"] == pytest.approx(job["result"]["stages"]["execute"])
    assert {span["parent"] for span in job["waterfall"]} == {None}


async def test_a_failure_says_why_in_the_list(call: Caller, runner: ScriptedRunner) -> None:
    runner.message = "KeyError: 'amount'"
    failed, _ = await run(call, "user_error", 1), await run(call, "ok", 2)
    assert await listed(call, code="failed") == [failed]
    assert body(await call.get("/v1/jobs", code="user_error"))["jobs"][0]["error"] == "KeyError: 'amount'"


@pytest.mark.parametrize("settings", [{"asynchronous": True}], indirect=True)
async def test_a_running_job_is_listed_with_its_stage_and_cannot_be_removed(
    call: Caller, runner: ScriptedRunner, service: JobService
) -> None:
    job_id = await run(call, "hold", 1)
    await runner.begun.wait()
    (job,) = body(await call.get("/v1/jobs", state="running"))["jobs"]
    assert (job["job_id"], job["state"], job["stage"], job["code"]) == (job_id, "running", "", None)
    detail = body(await call.get(f"/v1/jobs/{job_id}"))
    assert (detail["state"], detail["result"]) == ("running", None)
    assert detail["progress"] == [FETCHED]
    assert (await call.send("DELETE", f"/v1/jobs/{job_id}")).code == 409
    assert (await call.get(f"/v1/jobs/{job_id}/result")).code == 404
    runner.release.set()
    record = await service.get(job_id)
    await record.wait()
    assert await listed(call, state="running") == []


async def test_a_job_is_cancelled_by_its_own_id_once(call: Caller, runner: ScriptedRunner) -> None:
    waiting = asyncio.ensure_future(call.execute("hold", 9))
    await runner.begun.wait()
    (job,) = body(await call.get("/v1/jobs"))["jobs"]
    refused = await call.send("POST", f"/v1/jobs/{job['job_id']}/hold", {})
    assert (refused.code, body(refused)["error"][:31]) == (409, "the code of the job does not ru"), "it has no kernel"
    answer = await call.send("POST", f"/v1/jobs/{job['job_id']}/cancel")
    assert (answer.code, body(answer)["execution_id"], body(answer)["request_id"]) == (200, job["job_id"], 9)
    assert body(await waiting)["cancelled"] is True
    assert (await call.send("POST", f"/v1/jobs/{job['job_id']}/cancel")).code == 404
    assert (await call.send("POST", f"/v1/jobs/{'0' * 32}/cancel")).code == 404


async def test_pages_follow_one_another(call: Caller) -> None:
    ids = [await run(call, "ok", number) for number in range(5)]
    first = body(await call.get("/v1/jobs", limit=2))
    second = body(await call.get("/v1/jobs", limit=2, cursor=first["cursor"]))
    third = body(await call.get("/v1/jobs", limit=2, cursor=second["cursor"]))
    seen = [job["job_id"] for page in (first, second, third) for job in page["jobs"]]
    assert seen == ids[::-1]
    assert third["cursor"] is None


async def test_filters_of_the_url_reach_the_store(call: Caller) -> None:
    one, text = await run(call, "ok", 7, label="a"), await run(call, "timeout", "7", label="b")
    assert await listed(call, request_id=7) == [text, one]
    assert await listed(call, label="a") == [one]
    assert await listed(call, min_rows=2) == [one]
    assert await listed(call, min_duration="1.4") == [one]
    assert await listed(call, sort="created_at") == [one, text]
    created = body(await call.get(f"/v1/jobs/{one}"))["created_at"]
    assert await listed(call, since=created, sort="created_at") == [one, text]
    assert await listed(call, until=created) == []
    assert await listed(call, since="2000-01-01", until=4_000_000_000) == [text, one]
    answer = await call.send("GET", f"/v1/jobs?since={created.replace('Z', '+00:00')}")  # the plus is not quoted
    assert len(body(answer)["jobs"]) == 2


@pytest.mark.parametrize("seconds", [1_700_000_000.124, 1_700_000_000.028])  # the second rounds when it is multiplied
def test_a_time_as_it_is_shown_is_not_later_than_the_time(seconds: float) -> None:
    for _ in range(10):
        shown = datetime.fromisoformat(iso_utc(seconds)).timestamp()
        assert seconds - 0.0011 < shown <= seconds
        seconds = math.nextafter(seconds, 0)


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("state=runing", "expected queued, running, finished"),
        ("code=time_out", "did you mean timeout?"),
        ("since=yesterday", "expected a time in ISO 8601"),
        ("until=99999999999999", "expected a time"),
        ("min_duration=-1", "expected a number, 0 or more"),
        ("min_rows=1e9", "expected a whole number, 0 or more"),
        ("limit=0", "from 1 to 500"),
        ("limit=501", "from 1 to 500"),
        ("sort=name", "expected created_at, finished_at, duration, rows"),
        ("cursor=x", "expected the `cursor`"),
        ("lable=x", "did you mean label?"),
        ("state=queued&state=running", "expected once"),
    ],
)
async def test_a_wrong_parameter_is_400_with_the_accepted_values(call: Caller, query: str, text: str) -> None:
    answer = await call.send("GET", f"/v1/jobs?{query}")
    assert answer.code == 400
    assert text in body(answer)["error"]
    assert body(answer)["field"] == query.partition("=")[0]


def test_each_parameter_is_described() -> None:
    assert all(text.endswith(".") for text in PARAMETERS.values())


async def test_one_job_has_its_answer_log_and_result(call: Caller) -> None:
    job_id = await run(call, "ok", 7)
    detail = body(await call.get(f"/v1/jobs/{job_id}"))
    assert detail["result"]["exit_code"] == 0
    assert detail["bundle"] is None
    links = detail["result"]["results"]
    assert links["output"] == f"/v1/jobs/{job_id}/result"
    assert (await call.get(links["output"])).body == ROWS
    assert b'"fields"' in (await call.get(links["manifest"])).body
    assert b"begin" in (await call.get(links["events"])).body
    log = body(await call.get(f"/v1/jobs/{job_id}/logs"))
    assert [event["message"] for event in log["events"]] == ["begin", "end"]
    assert (log["execution_id"], log["job_id"], log["next_offset"]) == (7, job_id, 2)
    assert body(await call.get(f"/v1/jobs/{job_id}/logs", offset=1))["events"][0]["message"] == "end"
    assert (await call.get(f"/v1/jobs/{job_id}/result", what="code")).code == 400


async def test_a_repeated_id_gives_the_log_of_its_last_run_and_the_history_both(call: Caller) -> None:
    first, second = await run(call, "ok", 7), await run(call, "user_error", 7)
    assert body(await call.get("/v1/logs", request_id=7))["job_id"] == second
    assert body(await call.get(f"/v1/jobs/{first}"))["code"] == "ok"
    assert await listed(call, request_id=7) == [second, first]


async def test_a_removed_job_is_gone(call: Caller) -> None:
    job_id = await run(call, "ok", 7)
    assert body(await call.send("DELETE", f"/v1/jobs/{job_id}")) == {"deleted": job_id}
    for path in ("", "/logs", "/result"):
        assert (await call.get(f"/v1/jobs/{job_id}{path}")).code == 404
    assert (await call.get("/v1/logs", request_id=7)).code == 404
    assert (await call.get("/v1/results/7/output")).code == 404
    assert (await call.send("DELETE", f"/v1/jobs/{job_id}")).code == 404
    assert await listed(call) == []


async def test_a_job_that_a_full_disk_keeps_from_being_removed_may_be_removed_later(
    call: Caller, service: JobService, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(job_id: str) -> bool:
        raise sqlite3.OperationalError("database or disk is full")

    job_id = await run(call, "ok", 7)
    with monkeypatch.context() as full:
        full.setattr(service._store, "delete", fail)
        answer = await call.send("DELETE", f"/v1/jobs/{job_id}")
    assert (answer.code, body(answer)["code"], body(answer)["retryable"]) == (503, "store_failed", True)
    assert body(await call.send("DELETE", f"/v1/jobs/{job_id}")) == {"deleted": job_id}


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/jobs/a", "/v1/jobs/a/logs", "/v1/jobs/a/result"])
async def test_history_needs_the_token(call: Caller, path: str) -> None:
    assert (await call.send("GET", path, token=None)).code == 401
    assert (await call.send("GET", path, token=TOKEN)).code in (200, 404)


@pytest.mark.parametrize("job_id", ["../jobs", "é", "a" * 300, "%00"])
async def test_a_foreign_job_id_is_404(call: Caller, job_id: str) -> None:
    assert (await call.get(f"/v1/jobs/{quote(job_id, safe='')}")).code == 404


@pytest.mark.parametrize(
    ("code", "label"),
    [
        ('"""Orders by day.\n\nMore.\n"""\ndef transform(): ...', "Orders by day."),
        ("#!/usr/bin/env python\n# a comment\n\nr'''\n  Daily  \n'''", "Daily"),
        ("import pandas\n'''no docstring'''", None),
        ('""""""', None),
        ('"""bell\a"""', None),
        ('"""' + "x" * 300 + '"""', "x" * 200),
        ("#" * 100_000, None),
        (" " * 100_000 + "x", None),
    ],
)
async def test_the_docstring_is_the_label_of_a_job_without_one(call: Caller, code: str, label: str | None) -> None:
    await call.execute(code, 1, label="mine")
    await call.execute(code, 2)
    jobs = body(await call.get("/v1/jobs", sort="created_at"))["jobs"]
    assert [job["label"] for job in jobs] == ["mine", label]


@pytest.mark.parametrize("label", ["", "x" * 201, "two\nlines", 7])
async def test_a_wrong_label_is_400(call: Caller, label: Any) -> None:
    answer = await call.execute("ok", 1, label=label)
    assert (answer.code, body(answer)["field"]) == (400, "label")
