from __future__ import annotations

import asyncio
import json
import logging

import pytest

from gateway.core.job import JobState, KeptDelivery, UrlDelivery, UrlSource
from gateway.jobs.service import JobService
from tests.gateway.http.harness import Caller, ScriptedRunner, body, eventually, head, raw

URLS = {
    "output_url": "http://s3.test/out?X-Amz-Signature=a%2Fb",
    "output_manifest_url": "http://s3.test/manifest",
    "events_url": "http://s3.test/events",
}


async def test_success_answers_200_with_the_facts(call: Caller) -> None:
    answer = await call.execute("ok", 7, **URLS)
    assert answer.code == 200
    found = body(answer)
    assert found["exit_code"] == 0
    assert found["timeout"] is False
    assert found["cancelled"] is False
    assert found["code"] == "ok"
    assert (found["rows"], found["fields"], found["bytes_in"]) == (2, 1, 42)
    assert found["stages"].keys() == {"queue", "claim", "execute"}
    assert found["execution_time"] == 1.5
    assert found["peak_memory_bytes"] == 50_000_000
    assert "error" not in found
    assert "results" not in found


async def test_log_names_the_members_that_have_no_effect_and_no_value(
    call: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    members = {"secrets": {"KEY": "hush-1"}, "state": {"at": "hush-2"}, "timout": "hush-3", "brand\nnew": "hush-4"}
    assert (await call.execute("ok", 7, **members)).code == 200
    events = body(await call.get("/v1/logs", request_id=7))["events"]
    assert [(event["stream"], event["message"]) for event in events] == [
        ("stderr", "WARNING: This gateway does not pass `secrets` and `state` of the request to transform()"),
        ("stderr", "WARNING: The request's member 'timout' is ignored; did you mean 'timeout'?"),
        ("stdout", "begin"),
        ("stderr", "end"),
    ]
    assert "unknown members of the request were ignored: 'brand\\nnew'" in caplog.text
    assert "hush" not in caplog.text


async def test_members_without_a_value_to_pass_are_not_mentioned(call: Caller) -> None:
    assert (await call.execute("ok", 7, secrets=None, state=None, runtime="python")).code == 200
    events = body(await call.get("/v1/logs", request_id=7))["events"]
    assert [event["message"] for event in events] == ["begin", "end"]


@pytest.mark.parametrize("request_id", [1, -3, 2**62, "1", "V1StGXR8_Z5jdHi6B-myT", "a/b?c%"])
async def test_request_id_comes_back_with_its_type(call: Caller, request_id: int | str) -> None:
    found = body(await call.execute("ok", request_id))["request_id"]
    assert found == request_id
    assert type(found) is type(request_id)


async def test_an_id_that_comes_again_runs_again(call: Caller, runner: ScriptedRunner) -> None:
    first, second = body(await call.execute("ok", 1)), body(await call.execute("ok", 1))
    assert first["execution_id"] != second["execution_id"]
    assert len(runner.jobs) == 2


@pytest.mark.parametrize(
    ("code", "status", "exit_code"),
    [("user_error", 500, 1), ("memory_limit", 500, 137), ("queue_timeout", 504, -1), ("shutting_down", 503, -1)],
)
async def test_failure_answers_with_its_code(call: Caller, code: str, status: int, exit_code: int) -> None:
    answer = await call.execute(code)
    found = body(answer)
    assert (answer.code, found["code"], found["exit_code"]) == (status, code, exit_code)
    assert found["timeout"] is False
    assert found["error"]


async def test_error_of_a_timeout_holds_the_word_timeout(call: Caller, runner: ScriptedRunner) -> None:
    runner.message = "The job was ended after 2 s"
    answer = await call.execute("timeout")
    found = body(answer)
    assert answer.code == 500
    assert found["timeout"] is True
    assert found["exit_code"] == -1
    assert "timeout" in found["error"]


async def test_user_message_with_half_a_surrogate_still_answers(call: Caller, runner: ScriptedRunner) -> None:
    runner.message = "bad \udc80 text"
    assert body(await call.execute("user_error"))["error"].startswith("bad ")


async def test_request_becomes_the_job_unchanged(call: Caller, runner: ScriptedRunner) -> None:
    tables = {"orders ☃ ../x": "http://s3.test/o?sig=%2B", "b": "https://s3.test:8443/b"}
    await call.execute(
        "ok",
        3,
        **URLS,
        timeout=5,
        library={"common.py": "A = 1", "utils": ""},
        table_mapping=tables,
        manifest_mapping={"b": "http://s3.test/bm"},
        runtime="python",
        something_new={"a": [1]},
        stdout_url=None,
    )
    (job,) = runner.jobs
    assert job.timeout_seconds == 5
    assert job.delivery == UrlDelivery(URLS["output_url"], URLS["output_manifest_url"], URLS["events_url"])
    assert [(module.name, module.source) for module in job.library] == [("common", "A = 1"), ("utils", "")]
    assert [(table.alias, table.data) for table in job.tables] == [(k, UrlSource(v)) for k, v in tables.items()]
    assert [table.manifest for table in job.tables] == [None, UrlSource("http://s3.test/bm")]
    assert job.output_format == "jsonl"


async def test_null_fields_mean_the_defaults(call: Caller, runner: ScriptedRunner) -> None:
    answer = await call.execute(
        "ok", 1, library=None, table_mapping=None, manifest_mapping=None, timeout=None, runtime=None
    )
    assert answer.code == 200
    assert runner.jobs[0].timeout_seconds == 30
    assert not runner.jobs[0].library
    assert not runner.jobs[0].tables


async def test_data_format_by_table_name(call: Caller, runner: ScriptedRunner) -> None:
    tables = {"a": "http://s3.test/a", "b": "http://s3.test/b"}
    await call.execute("ok", 1, table_mapping=tables, data_format={"a": "csv"}, output_format="parquet")
    assert [table.data_format for table in runner.jobs[0].tables] == ["csv", "jsonl"]
    assert runner.jobs[0].output_format == "parquet"


async def test_an_id_that_runs_now_is_refused(call: Caller, runner: ScriptedRunner) -> None:
    first = asyncio.ensure_future(call.execute("hold", 5))
    await runner.begun.wait()
    answer = await call.execute("ok", 5)
    assert answer.code == 409
    assert body(answer)["request_id"] == 5
    text_id = asyncio.ensure_future(call.execute("ok", "5"))
    runner.release.set()
    assert [(await task).code for task in (first, text_id)] == [200, 200]


@pytest.mark.parametrize("settings", [{"queue_length": 1}], indirect=True)
async def test_full_queue_answers_503_at_once(call: Caller, runner: ScriptedRunner) -> None:
    running = asyncio.ensure_future(call.execute("hold", 1))
    await runner.begun.wait()
    waiting = asyncio.ensure_future(call.execute("ok", 2))
    assert await eventually(lambda: len(runner.jobs) == 2)
    answer = await call.execute("ok", 3)
    found = body(answer)
    assert (answer.code, found["code"], found["queue_size"]) == (503, "queue_full", 1)
    assert found["retryable"] is True
    assert int(answer.headers["Retry-After"]) > 0
    runner.release.set()
    assert [(await task).code for task in (running, waiting)] == [200, 200]


@pytest.mark.parametrize("settings", [{"queue_timeout_seconds": 0.1}], indirect=True)
async def test_waiting_too_long_answers_504(call: Caller, runner: ScriptedRunner) -> None:
    running = asyncio.ensure_future(call.execute("hold", 1))
    await runner.begun.wait()
    answer = await call.execute("ok", 2)
    assert (answer.code, body(answer)["code"]) == (504, "queue_timeout")
    runner.release.set()
    await running


async def test_draining_gateway_answers_503(call: Caller, service: JobService) -> None:
    service.draining = True
    answer = await call.execute("ok", 1)
    assert (answer.code, body(answer)["code"]) == (503, "shutting_down")


@pytest.mark.parametrize("half_close", [False, True])
async def test_disconnect_cancels_the_job(
    port: int, runner: ScriptedRunner, service: JobService, caplog: pytest.LogCaptureFixture, half_close: bool
) -> None:
    caplog.set_level(logging.INFO)
    data = json.dumps({"code": "hold", "request_id": "gone"}).encode()
    sent = head("POST", "/v1/execute", f"Content-Length: {len(data)}") + data
    if half_close:
        await raw(port, sent, half_close=True)
    else:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        await runner.begun.wait()
        writer.close()
    record = await service.find("gone")
    assert record is not None
    verdict = await asyncio.wait_for(record.wait(), 60)
    assert verdict.cancelled

    def logged() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == "gateway.access"]

    assert await eventually(logged)
    assert [line.split()[2] for line in logged()] == ["499"]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("settings", [{"asynchronous": True}], indirect=True)
async def test_asynchronous_form_answers_202_and_status_has_the_outcome(
    call: Caller, runner: ScriptedRunner, service: JobService
) -> None:
    accepted = await call.execute("hold", 4)
    assert accepted.code == 202
    assert body(accepted)["request_id"] == 4
    await runner.begun.wait()
    assert body(await call.get("/v1/status"))["state"] == "running"
    runner.release.set()
    assert await eventually(lambda: not service.running())
    status = body(await call.get("/v1/status"))
    assert status["state"] == "finished"
    assert status["result"]["exit_code"] == 0
    assert status["result"]["timeout"] is False
    one = body(await call.get("/v1/status", request_id=4))
    assert one["state"] == "finished"
    assert one["result"] == status["result"]


@pytest.mark.parametrize("sent", [b"9.0", b"9e0", b"0.9E1"])
async def test_a_number_is_an_id_by_its_value(call: Caller, runner: ScriptedRunner, sent: bytes) -> None:
    """JSON has one type of numbers, and by JSON Schema such a number is an integer."""
    waiting = asyncio.ensure_future(call.send("POST", "/v1/execute", b'{"code": "hold", "request_id": %s}' % sent))
    await runner.begun.wait()
    answer = await call.send("POST", "/v1/cancel", b'{"request_id": %s}' % sent)
    assert answer.code == 200, answer.body
    for found in (answer, await waiting):
        assert repr(body(found)["request_id"]) == "9"


async def test_cancel_ends_the_waiting_call(call: Caller, runner: ScriptedRunner) -> None:
    waiting = asyncio.ensure_future(call.execute("hold", 9))
    await runner.begun.wait()
    answer = await call.send("POST", "/v1/cancel", {"request_id": 9})
    assert answer.code == 200
    assert body(answer)["request_id"] == 9
    done = await waiting
    assert done.code == 500
    assert body(done)["cancelled"] is True
    assert (await call.send("POST", "/v1/cancel", {"request_id": 9})).code == 404


@pytest.mark.parametrize("other", [10, "9", "*", "%"])
async def test_cancel_of_another_id_leaves_the_job_alone(
    call: Caller, runner: ScriptedRunner, service: JobService, other: int | str
) -> None:
    waiting = asyncio.ensure_future(call.execute("hold", 9))
    await runner.begun.wait()
    assert (await call.send("POST", "/v1/cancel", {"request_id": other})).code == 404
    assert [record.state for record in service.running()] == [JobState.RUNNING]
    runner.release.set()
    assert (await waiting).code == 200


@pytest.mark.parametrize("sent", [{}, [], None, b"", b"not json", {"request_id": None}, {"request_id": ["x"]}])
async def test_bad_cancel_bodies_are_400(call: Caller, sent: object) -> None:
    data = b"null" if sent is None else sent
    answer = await call.send("POST", "/v1/cancel", data)
    assert answer.code == 400
    assert body(answer)["error"]


async def test_without_urls_the_result_is_kept_and_linked(call: Caller, runner: ScriptedRunner) -> None:
    found = body(await call.execute("ok", "a/b"))
    assert isinstance(runner.jobs[0].delivery, KeptDelivery)
    assert found["results"] == {
        "output": "/v1/results/a%2Fb/output",
        "manifest": "/v1/results/a%2Fb/manifest",
        "events": "/v1/results/a%2Fb/events",
    }
    failed = body(await call.execute("user_error", 2))
    assert failed["results"] == {"events": "/v1/results/2/events"}


@pytest.mark.parametrize("name", ["output_manifest_url", "events_url"])
async def test_other_urls_without_output_url_are_refused(call: Caller, name: str) -> None:
    answer = await call.execute("ok", 1, **{name: "http://s3.test/x"})
    assert answer.code == 400
    assert body(answer)["field"] == "output_url"


async def test_inline_puts_a_small_result_into_the_answer(call: Caller, runner: ScriptedRunner) -> None:
    found = body(await call.execute("ok", 1, inline=True))
    assert found["output"] == '{"x":1}\n{"x":2}\n'
    assert found["output_encoding"] == "utf-8"
    assert found["manifest"]["fields"][0]["name"] == "x"
    binary = body(await call.execute("ok", 1, inline=True, output_format="parquet"))
    assert binary["output_encoding"] == "base64"


@pytest.mark.parametrize("settings", [{"inline_cap_bytes": 10}], indirect=True)
async def test_inline_leaves_out_a_large_result(call: Caller) -> None:
    found = body(await call.execute("ok", 1, inline=True))
    assert "output" not in found
    assert found["results"]["output"]
