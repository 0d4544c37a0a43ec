from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path

import pytest
from tornado.web import Application

from gateway.core import events
from gateway.core.events import EventLog
from gateway.http.base_handler import arrivals
from gateway.jobs.service import JobService
from tests.gateway.http.harness import FETCHED, ROWS, Caller, ScriptedRunner, body, eventually, head


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
    assert found["progress"] == [FETCHED]
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


async def send_part(port: int, size: int, sent: bytes) -> asyncio.StreamWriter:
    """Send the headers of an execute request and the beginning of its body."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head("POST", "/v1/execute", f"Content-Length: {size}") + sent)
    return writer


async def test_a_poll_does_not_overtake_the_job_that_it_is_for(
    port: int, call: Caller, app: Application, runner: ScriptedRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An id that comes again: the log of the earlier job is no prefix of the new one's."""
    monkeypatch.setattr(arrivals, "ARRIVAL_SECONDS", 60.0)
    await call.execute("ok", 1)
    runner.begun.clear()
    request = b'{"code": "hold", "request_id": 1}'
    writer = await send_part(port, len(request), request[:20])
    assert await eventually(lambda: pending(app))
    poll = asyncio.ensure_future(call.get("/v1/logs", request_id=1))
    assert await eventually(lambda: awaited(app))
    unknown = await call.get("/v1/logs", request_id=2)
    assert (unknown.code, poll.done()) == (404, False)
    writer.write(request[20:])
    found = body(await poll)
    assert found["state"] in ("queued", "running")
    assert [event["message"] for event in found["events"]] in ([], ["begin"])
    assert not pending(app)
    writer.close()


@pytest.mark.parametrize("rest", [b"no json at all", None])
async def test_a_request_that_comes_to_nothing_holds_no_poll(
    port: int, call: Caller, app: Application, monkeypatch: pytest.MonkeyPatch, rest: bytes | None
) -> None:
    monkeypatch.setattr(arrivals, "ARRIVAL_SECONDS", 60.0)
    await call.execute("ok", 1)
    writer = await send_part(port, 15, b"{")
    assert await eventually(lambda: pending(app))
    poll = asyncio.ensure_future(call.get("/v1/logs", request_id=1))
    assert await eventually(lambda: awaited(app))
    if rest is None:
        writer.transport.abort()
    else:
        writer.write(rest)
    assert body(await poll)["state"] == "finished"
    assert not pending(app)
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def test_a_slow_upload_holds_no_poll_for_long(
    port: int, call: Caller, app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "ARRIVAL_SECONDS", 0.01)
    await call.execute("ok", 1)
    writer = await send_part(port, 100, b"{")
    assert await eventually(lambda: pending(app))
    assert body(await call.get("/v1/logs", request_id=1))["state"] == "finished"
    assert pending(app)
    writer.close()


def pending(app: Application) -> bool:
    return bool(app.settings["default_handler_args"]["context"].arrivals._arriving)


def awaited(app: Application) -> bool:
    """Return whether a poll waits for a request that is arriving. One that comes later may find its job, and pass it."""
    arriving = app.settings["default_handler_args"]["context"].arrivals._arriving
    return any(submitted._waiters for _, submitted in arriving.values())


async def test_offset_gives_only_new_events(call: Caller) -> None:
    await call.execute("ok", 1)
    found = body(await call.get("/v1/logs", request_id=1, offset=1))
    assert [event["message"] for event in found["events"]] == ["end"]
    assert found["next_offset"] == 2
    assert body(await call.get("/v1/logs", request_id=1, offset=2))["events"] == []


async def test_log_that_did_not_change_is_304(call: Caller, runner: ScriptedRunner) -> None:
    waiting = asyncio.ensure_future(call.execute("hold", 1))
    await runner.begun.wait()
    first = await call.get("/v1/logs", request_id=1)
    tag = first.headers["Etag"]
    same = await call.send("GET", "/v1/logs?request_id=1", **{"If-None-Match": tag})
    assert (same.code, same.body, same.headers["Etag"]) == (304, b"", tag)
    newer = await call.send("GET", "/v1/logs?request_id=1&offset=1", **{"If-None-Match": tag})
    assert newer.code == 200, "another part of the log is another answer"
    runner.release.set()
    await waiting
    changed = await call.send("GET", "/v1/logs?request_id=1", **{"If-None-Match": tag})
    assert (changed.code, body(changed)["state"]) == (200, "finished")
    runner.begun.clear()
    await call.execute("ok", 1)
    again = await call.send("GET", "/v1/logs?request_id=1", **{"If-None-Match": changed.headers["Etag"]})
    assert again.code == 200, "an id that comes again is another log"


async def test_an_answer_with_awkward_text_is_json(call: Caller, runner: ScriptedRunner, service: JobService) -> None:
    texts = ["", 'quote " and \\', "tab\tand\x00nul", "\N{SNOWMAN}\U0001f600", "line\u2028sep\x85", "\udfff", "\r"]
    waiting = asyncio.ensure_future(call.execute("hold", 1))
    await runner.begun.wait()
    for text in texts:
        service.running()[0].log.line("stdout", text)
    found = body(await call.get("/v1/logs"))
    assert [event["message"] for event in found["events"][1:]] == [text.replace("\udfff", "?") for text in texts]
    assert body(await call.get("/v1/logs", offset=100))["events"] == []
    runner.release.set()
    await waiting


async def test_a_poll_encodes_no_line_again(
    call: Caller, runner: ScriptedRunner, service: JobService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A poll only copies bytes on the loop: with 20,000 lines, encoding them took 40 ms of each."""
    encoded: list[str] = []
    plain = events.encode_line

    def counted(timestamp: float, stream: str, message: str, *, display: bool = False) -> bytes:
        encoded.append(message)
        return plain(timestamp, stream, message, display=display)

    monkeypatch.setattr(events, "encode_line", counted)
    waiting = asyncio.ensure_future(call.execute("hold", 1))
    await runner.begun.wait()
    for number in range(30_000):
        service.running()[0].log.line("stdout", f"line {number}")
    assert len(encoded) == 30_001
    del encoded[:]
    for offset in (0, 0, 20_000):
        await call.get("/v1/logs", request_id=1, offset=offset)
    assert [text for text in encoded if "dropped" not in text] == []
    assert len(encoded) == 1, "the marker of a response that is made once"
    service.running()[0].log.line("stdout", "one more")
    assert body(await call.get("/v1/logs", request_id=1))["events"][-1]["message"] == "one more"
    assert len(body(await call.get("/v1/logs", request_id=1, offset=30_001))["events"]) == 1
    runner.release.set()
    await waiting


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


async def test_status_shows_the_running_job(call: Caller, runner: ScriptedRunner) -> None:
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


async def test_head_of_a_result_has_its_size(call: Caller) -> None:
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
    assert "there is no job" in body(await call.get("/v1/results/1/output"))["error"]
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


@pytest.mark.parametrize("path", ["/v1/logs", "/v1/status", "/status"])
@pytest.mark.parametrize("query", ["requestid=7", "execution_id=7", "job_id=7", "request_id2=7&offset=0"])
async def test_an_unknown_parameter_never_gets_the_log_of_another_job(call: Caller, path: str, query: str) -> None:
    await call.execute("ok", 1)
    answer = await call.send("GET", f"{path}?{query}")
    assert answer.code == 400
    found = body(answer)
    assert found["field"] == query.partition("=")[0]
    assert "did you mean request_id?" in found["error"] or "expected one of request_id" in found["error"]
    # a newer caller that names its job may send more
    assert (await call.send("GET", f"{path}?request_id=1&{query}")).code == 200


@pytest.mark.parametrize(
    ("path", "hint"),
    [("/logs?ofset=1", "did you mean offset?"), ("/result?wat=x", "mean what?"), ("/displays?n=1", "n: ")],
)
async def test_a_misspelt_parameter_of_one_job_is_refused(call: Caller, path: str, hint: str) -> None:
    job_id = body(await call.execute("ok", 1))["execution_id"]
    answer = await call.send("GET", f"/v1/jobs/{job_id}{path}")
    assert answer.code == 400
    assert hint in body(answer)["error"]
