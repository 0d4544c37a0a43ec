from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from gateway.jobs.events import EventLog
from gateway.jobs.service import JobService
from tests.gateway.http.harness import ROWS, Caller, ScriptedRunner, body, eventually, head


@pytest.mark.parametrize("request_id", [7, "7", "V1StGXR8_Z5jdHi6B-myT", "a b&c=%☃"])
async def test_logs_give_the_id_back_with_its_type(call: Caller, runner: ScriptedRunner, request_id: int | str) -> None:
    waiting = asyncio.ensure_future(call.execute("hold", request_id))
    await runner.begun.wait()
    answer = await call.get("/v1/logs", request_id=request_id)
    found = body(answer)
    assert answer.code == 200
    assert found["execution_id"] == request_id
    assert type(found["execution_id"]) is type(request_id)
    assert found["state"] == "running"
    assert [(event["stream"], event["message"]) for event in found["events"]] == [("stdout", "begin")]
    assert found["events"][0]["timestamp"].endswith("Z")
    assert found["progress"] == [{"stage": "fetch", "table": "orders", "rows": 3, "bytes": 42}]
    runner.release.set()
    await waiting


async def test_live_log_is_a_prefix_of_the_final_one(call: Caller, runner: ScriptedRunner) -> None:
    waiting = asyncio.ensure_future(call.execute("hold", 1))
    await runner.begun.wait()
    live = body(await call.get("/v1/logs", request_id=1))["events"]
    runner.release.set()
    await waiting
    final = body(await call.get("/v1/logs", request_id=1))["events"]
    assert final[: len(live)] == live
    assert [event["message"] for event in final] == ["begin", "end"]


async def test_offset_gives_only_what_is_new(call: Caller) -> None:
    await call.execute("ok", 1)
    found = body(await call.get("/v1/logs", request_id=1, offset=1))
    assert [event["message"] for event in found["events"]] == ["end"]
    assert found["next_offset"] == 2
    assert body(await call.get("/v1/logs", request_id=1, offset=2))["events"] == []


@pytest.mark.parametrize("offset", ["-1", "x", "1.5", "9" * 30, "²"])
async def test_odd_offset_is_400(call: Caller, offset: str) -> None:
    await call.execute("ok", 1)
    assert (await call.get("/v1/logs", request_id=1, offset=offset)).code == 400


@pytest.mark.parametrize("request_id", [987654321, "", "nosuch", "-0", "01", "9" * 40])
async def test_unknown_id_is_404(call: Caller, request_id: int | str) -> None:
    await call.execute("ok", 1)
    answer = await call.get("/v1/logs", request_id=request_id)
    assert (answer.code, body(answer)["code"]) == (404, "not_found")


async def test_without_an_id_the_current_job_answers(call: Caller, runner: ScriptedRunner) -> None:
    assert (await call.get("/v1/logs")).code == 404
    waiting = asyncio.ensure_future(call.execute("hold", "only"))
    await runner.begun.wait()
    assert body(await call.get("/v1/logs"))["execution_id"] == "only"
    runner.release.set()
    await waiting
    assert body(await call.get("/v1/logs"))["state"] == "finished"


async def test_text_of_a_number_means_the_live_job(call: Caller, runner: ScriptedRunner) -> None:
    await call.execute("ok", 7)
    waiting = asyncio.ensure_future(call.execute("hold", "7"))
    assert await eventually(lambda: len(runner.jobs) == 2)
    assert body(await call.get("/v1/logs", request_id=7))["execution_id"] == "7"
    runner.release.set()
    await waiting
    assert body(await call.get("/v1/logs", request_id=7))["execution_id"] == 7


def test_offsets_hold_across_dropped_lines() -> None:
    log = EventLog(cap_bytes=2000)
    seen: list[str] = []
    offset = 0
    for number in range(200):
        log.line("stdout", f"line {number}")
        if number % 3 == 0:
            lines, offset = log.lines_from(offset)
            seen += [line.message for line in lines]
    assert offset == 199 - 199 % 3 + 1
    assert [text for text in seen if text.startswith("line")] == [f"line {number}" for number in range(offset)]
    assert any("dropped" in line.message for line in log.lines_from(0)[0])


async def test_status_of_one_job(call: Caller, runner: ScriptedRunner) -> None:
    await call.execute("user_error", "mine")
    found = body(await call.get("/v1/status", request_id="mine"))
    assert found["state"] == "finished"
    assert found["result"]["code"] == "user_error"
    assert found["finished_at"] >= found["created_at"]
    assert (await call.get("/v1/status", request_id="nosuch")).code == 404


async def test_status_has_the_counters_of_the_first_runner(call: Caller) -> None:
    for code in ("ok", "user_error", "timeout", "ok"):
        await call.execute(code)
    for path in ("/status", "/v1/status"):
        found = body(await call.get(path))
        assert found["healthy"] is True
        assert (found["queue_size"], found["max_queue_size"]) == (0, 10)
        assert found["currently_executing"] is False
        assert found["current_execution_id"] is None
        counters = found["metrics"]
        assert (counters["total_requests"], counters["completed"], counters["timeouts"]) == (4, 4, 1)
        assert (counters["success_rate"], counters["rejected"]) == (0.5, 0)
        assert counters["avg_execution_time"] == pytest.approx(1.375)
        assert counters["failures_by_code"] == {"user_error": 1, "timeout": 1}
        assert found["sandbox"]["tier"] == "B"


async def test_status_shows_who_runs(call: Caller, runner: ScriptedRunner) -> None:
    waiting = asyncio.ensure_future(call.execute("hold", 3))
    await runner.begun.wait()
    found = body(await call.get("/status"))
    assert (found["state"], found["currently_executing"], found["current_execution_id"]) == ("running", True, 3)
    runner.release.set()
    await waiting


async def test_status_is_503_when_no_job_can_run(call: Caller, runner: ScriptedRunner) -> None:
    runner.healthy = False
    answer = await call.get("/v1/status")
    assert answer.code == 503
    assert body(answer)["healthy"] is False


async def test_kept_result_is_streamed(call: Caller, runner: ScriptedRunner) -> None:
    runner.data = b"0123456789abcdef" * 100_000
    await call.execute("ok", 5, output_format="csv")
    answer = await call.get("/v1/results/5/output")
    assert answer.code == 200
    assert answer.body == runner.data
    assert answer.headers["Content-Type"].startswith("text/csv")
    assert int(answer.headers["Content-Length"]) == len(runner.data)
    assert 'filename="output.csv"' in answer.headers["Content-Disposition"]
    assert (await call.get("/v1/results/5/manifest")).headers["Content-Type"] == "application/json"
    assert (await call.get("/v1/results/5/events")).code == 200


async def test_head_of_a_result_tells_its_size(call: Caller) -> None:
    await call.execute("ok", 5)
    answer = await call.send("HEAD", "/v1/results/5/output")
    assert (answer.code, answer.body) == (200, b"")
    assert int(answer.headers["Content-Length"]) == len(ROWS)


async def test_download_that_is_broken_off_is_no_fault_of_ours(
    port: int, call: Caller, runner: ScriptedRunner, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    runner.data = b"x" * 50_000_000
    await call.execute("ok", 5)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head("GET", "/v1/results/5/output"))
    assert (await reader.read(12)) == b"HTTP/1.1 200"
    writer.transport.abort()

    def logged() -> list[str]:
        return [record.getMessage() for record in caplog.records if "/v1/results" in record.getMessage()]

    assert await eventually(logged)
    assert (await call.get("/v1/status")).code == 200
    assert [line.split()[2] for line in logged()] == ["499"]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_results_tell_why_there_is_none(call: Caller, runner: ScriptedRunner, service: JobService) -> None:
    assert "nothing is known" in body(await call.get("/v1/results/1/output"))["error"]
    await call.execute("user_error", 1)
    assert "failed" in body(await call.get("/v1/results/1/output"))["error"]
    await call.execute("ok", 2, output_url="http://s3.test/o")
    assert "URLs" in body(await call.get("/v1/results/2/output"))["error"]
    waiting = asyncio.ensure_future(call.execute("hold", 3))
    assert await eventually(service.running)
    assert "running" in body(await call.get("/v1/results/3/output"))["error"]
    runner.release.set()
    await waiting


async def test_result_id_is_never_a_path(call: Caller, tmp_path: Path) -> None:
    for text in ("..%2F..%2Fetc%2Fpasswd", "%2e%2e", "a%00b"):
        assert (await call.get(f"/v1/results/{text}/output")).code in (400, 404)
