"""``/v1/jobs/JOB_ID/bundle``: a failed job, as far as it takes to run it again."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from gateway.core.settings import Settings
from gateway.storage import FetchedTable
from tests.gateway.http.harness import Caller, ScriptedRunner, body

KEPT = pytest.mark.parametrize("settings", [{"keep_failed_jobs": True, "keep_failed_bytes": 100_000}], indirect=True)
SIGNED = "http://s3.test/in?X-Amz-Signature=sECRET"


def fetched(runner: ScriptedRunner, directory: Path, **data: bytes) -> None:
    """Let the runner have fetched tables."""
    for name, content in data.items():
        (directory / name).write_bytes(content)
    runner.inputs = tuple(FetchedTable(n, directory / n, None, "jsonl", None, len(data[n])) for n in data)


async def fail(call: Caller, **fields: Any) -> str:
    answer = body(await call.execute("user_error", 7, **fields))
    return str(answer["execution_id"])


@KEPT
async def test_a_failed_job_is_described_and_its_tables_are_sent(
    call: Caller, runner: ScriptedRunner, tmp_path: Path, settings: Settings
) -> None:
    fetched(runner, tmp_path, small=b'{"a":1}\n', large=b'{"a":1}\n' * 2000)
    runner.message = "no \ud800"  # a lone surrogate
    tables = {"small": SIGNED, "large": SIGNED, "a/b": SIGNED}
    job_id = await fail(call, library={"a.py": "x = 1"}, table_mapping=tables, timeout=45, label="nightly")
    link = body(await call.get(f"/v1/jobs/{job_id}"))["bundle"]
    assert link == f"/v1/jobs/{job_id}/bundle"
    found = body(await call.get(link))
    expected = {
        "job_id": job_id,
        "request_id": 7,
        "label": "nightly",
        "failure_code": "user_error",
        "message": "no \\ud800",
        "code": "user_error",
        "library": {"a": "x = 1"},
        "output_format": "jsonl",
        "output_schema": None,
        "timeout": 45.0,
        "packages": {"pandas": "2.3.3", "scipy": "1.16.0"},
    }
    assert {name: found[name] for name in expected} == expected
    assert found["limits"]["memory_bytes"] == settings.limits.memory_bytes
    assert [line["message"] for line in found["log"]] == ["begin"]
    kept = {table["name"]: (table["kept"], table["bytes"]) for table in found["tables"]}
    assert kept == {"small": ("whole", 8), "large": ("first_rows", 16_000), "a/b": ("nothing", None)}
    answer = await call.get(f"{link}/small")
    assert (answer.body, answer.headers["Content-Type"]) == (b'{"a":1}\n', "application/x-ndjson")
    assert (await call.get(f"{link}/large")).body == b'{"a":1}\n' * 20
    assert (await call.send("HEAD", f"{link}/large")).headers["Content-Length"] == "160"
    assert (await call.get(f"{link}/a%2Fb")).code == (await call.get(f"{link}/nosuch")).code == 404


@KEPT
async def test_a_job_that_succeeds_and_one_that_runs_have_no_bundle(call: Caller) -> None:
    for code in ("ok", "hold"):
        answer = body(
            await call.send("POST", "/v1/execute", {"code": code, "request_id": code}, Prefer="respond-async")
        )
        job_id = answer["execution_id"]
        assert body(await call.get(f"/v1/jobs/{job_id}"))["bundle"] is None
        assert (await call.get(f"/v1/jobs/{job_id}/bundle")).code == 404
        assert (await call.get(f"/v1/jobs/{job_id}/bundle/t")).code == 404


@KEPT
async def test_a_cancelled_job_has_no_bundle(call: Caller) -> None:
    request = {"code": "hold", "request_id": "held"}
    job_id = body(await call.send("POST", "/v1/execute", request, Prefer="respond-async"))["execution_id"]
    assert (await call.send("POST", "/v1/cancel", {"request_id": "held"})).code == 200
    async with asyncio.timeout(60):
        while (job := body(await call.get(f"/v1/jobs/{job_id}")))["state"] != "finished":  # noqa: ASYNC110 - the API has no event
            await asyncio.sleep(0.01)
    assert (job["code"], job["bundle"]) == ("cancelled", None)


async def test_nothing_is_kept_by_default(call: Caller) -> None:
    job_id = await fail(call)
    assert body(await call.get(f"/v1/jobs/{job_id}"))["bundle"] is None
    assert body(await call.get(f"/v1/jobs/{job_id}/bundle"))["error"].startswith(f"the job {job_id} has no bundle")


@KEPT
async def test_a_removed_job_takes_its_bundle_along(call: Caller, settings: Settings) -> None:
    job_id = await fail(call)
    assert (settings.state_dir / "store/bundles" / job_id).is_dir()
    assert (await call.send("DELETE", f"/v1/jobs/{job_id}")).code == 200
    assert (await call.get(f"/v1/jobs/{job_id}/bundle")).code == 404
    assert list((settings.state_dir / "store/bundles").iterdir()) == []


@KEPT
async def test_a_bundle_that_cannot_be_kept_costs_the_caller_nothing(
    call: Caller, runner: ScriptedRunner, tmp_path: Path
) -> None:
    fetched(runner, tmp_path, t=b"x")
    runner.inputs = tuple(dataclasses.replace(table, data_path=tmp_path / "gone") for table in runner.inputs)
    answer = await call.execute("user_error", 7, table_mapping={"t": SIGNED})
    assert body(answer)["code"] == "user_error"
    assert (await call.get(f"/v1/jobs/{body(answer)['execution_id']}/bundle")).code == 404
