"""The client brings tables there and results back whole, shows the log live, and tells failures apart."""

from __future__ import annotations

import email
import gzip
import hashlib
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from gateway.client import GatewayRefused, GatewayUnreachable, TransformClient, TransformFailed
from gateway.client.tables import Frame
from gateway.core.events import Event, LogLine, Progress, StateChanged
from gateway.core.job import JobState
from tests.support.fake_gateway import Asked, FakeGateway, Reply
from tests.support.gateway_process import GatewayProcess

OUTPUT = b'{"n":1}\n'
SUCCESS = {
    "exit_code": 0,
    "execution_id": "e1",
    "code": "ok",
    "rows": 1,
    "fields": 1,
    "bytes_out": len(OUTPUT),
    "execution_time": 0.5,
    "stages": {"execute": 0.4},
    "sha256": hashlib.sha256(OUTPUT).hexdigest(),
    "peak_memory_bytes": 7,
}
CLOCK = "2026-01-02T03:04:05.678Z"


def log_answer(*messages: str, state: str = "running", offset: int = 0, **more: Any) -> Reply:
    events = [{"timestamp": CLOCK, "stream": "stdout", "message": text} for text in messages]
    answer = {"state": state, "stage": "execute", "events": events, "next_offset": offset + len(events)}
    return 200, {**answer, "progress": [], **more}


def offset_of(asked: Asked) -> int:
    return int(asked.path.rpartition("offset=")[2])


def working(fake: FakeGateway, request_id: str = "r1") -> FakeGateway:
    """Let the fake gateway answer a job that succeeds, and that has said one line."""

    def logs(asked: Asked) -> Reply:  # a client that waits longer than a poll asks again
        offset = offset_of(asked)
        return log_answer(*["said"][offset:], state="finished", offset=offset)

    fake.handlers |= {
        "POST /v1/execute": lambda asked: (200, SUCCESS),
        "GET /v1/logs": logs,
        f"GET /v1/results/{request_id}/output": lambda asked: (200, OUTPUT),
        f"GET /v1/results/{request_id}/manifest": lambda asked: (200, {"fields": [{"name": "n"}]}),
    }
    return fake


def parts_of(asked: Asked) -> dict[str, tuple[str | None, bytes]]:
    """Parse a multipart body with the standard library's own parser: name to file name and content."""
    head = f"Content-Type: {asked.headers['content-type']}\r\n\r\n".encode()
    message = email.message_from_bytes(head + asked.body)
    found = {}
    for part in message.get_payload():
        assert isinstance(part, email.message.Message)
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        found[str(part.get_param("name", header="content-disposition"))] = (part.get_filename(), content)
    return found


def test_job_without_tables_is_plain_json_with_the_token() -> None:
    with working(FakeGateway()) as fake:
        result = TransformClient(fake.url, "t0ken").run("code", request_id="r1", timeout=5, library={"a": "b"})
    execute = next(asked for asked in fake.asked if asked.method == "POST")
    assert execute.headers["authorization"] == "Bearer t0ken"
    assert execute.headers["content-type"] == "application/json"
    assert json.loads(execute.body) == {
        "code": "code",
        "request_id": "r1",
        "timeout": 5,
        "library": {"a": "b"},
        "output_format": "arrow",
    }
    assert (result.output, result.output_path, result.rows, result.fields) == (OUTPUT, None, 1, 1)
    assert (result.manifest, result.peak_memory_bytes) == ({"fields": [{"name": "n"}]}, 7)
    assert [line.message for line in result.log] == ["said"]
    assert result.log[0].timestamp == pytest.approx(1767323045.678)


def test_tables_and_manifests_are_parts_named_after_them(tmp_path: Path) -> None:
    (tmp_path / "o.CSV").write_bytes(b"a\r\n1\r\n")
    (tmp_path / "m.json").write_bytes(b"{}")
    tables: dict[str, str | Path | Frame] = {"orders": tmp_path / "o.CSV", 'we "ird': str(tmp_path / "o.CSV")}
    with working(FakeGateway()) as fake:
        TransformClient(fake.url).run(
            "c", tables, manifests={"orders": tmp_path / "m.json", 'we "ird': {"x": 1}}, request_id="r1"
        )
    asked = next(asked for asked in fake.asked if asked.method == "POST")
    assert asked.headers["content-length"] == str(len(asked.body))
    assert "transfer-encoding" not in asked.headers
    parts = parts_of(asked)
    assert json.loads(parts.pop("request")[1])["code"] == "c"
    assert parts == {
        "table:orders": ("table.csv", b"a\r\n1\r\n"),
        "table:we %22ird": ("table.csv", b"a\r\n1\r\n"),
        "manifest:orders": ("table.json", b"{}"),
        "manifest:we %22ird": ("manifest.json", b'{"x": 1}'),
    }


def test_nothing_is_sent_when_a_table_is_missing_or_of_no_known_format(tmp_path: Path) -> None:
    (tmp_path / "t.csv.gz").write_bytes(b"a\n1\n")
    (tmp_path / "t.xls").write_bytes(b"x")
    with FakeGateway() as fake:
        client = TransformClient(fake.url)
        for gone in ("gone.csv", "gone.csv.gz"):
            with pytest.raises(FileNotFoundError, match=gone):
                client.run("c", {"t": tmp_path / gone})
        with pytest.raises(ValueError, match=r"unknown ending '\.xls'"):
            client.run("c", {"t": tmp_path / "t.xls"})
        with pytest.raises(ValueError, match=r"t\.csv\.gz: not valid gzip"):
            client.run("c", {"t": tmp_path / "t.csv.gz"})
        with pytest.raises(TypeError, match="not list"):
            client.run("c", {"t": [1]})  # type: ignore[dict-item]
    assert fake.asked == []


def test_output_replaces_the_file_only_when_it_came_whole(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    target.write_bytes(b"old")
    with working(FakeGateway()) as fake:
        client = TransformClient(fake.url)
        fake.handlers["GET /v1/results/r1/output"] = lambda asked: (200, b"damaged")
        with pytest.raises(GatewayUnreachable, match="checksum"):
            client.run("c", request_id="r1", output=target)
        assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("out.jsonl", b"old")]
        fake.handlers["GET /v1/results/r1/output"] = lambda asked: (200, OUTPUT)
        result = client.run("c", request_id="r1", output=target)
    assert (result.output_path, result.output, target.read_bytes()) == (target, None, OUTPUT)
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_events_come_while_the_job_runs_and_each_once() -> None:
    seen: list[Event] = []
    released = threading.Event()
    lines = ["one", "two", "three"]

    def logs(asked: Asked) -> Reply:
        offset = offset_of(asked)
        progress = [{"stage": "read", "table": "t", "rows": 5, "bytes": None}]
        return log_answer(*lines[offset : offset + 1], offset=offset, progress=progress)

    def execute(asked: Asked) -> Reply:
        assert released.wait(60)
        return 200, SUCCESS

    def on_event(event: Event) -> None:
        seen.append(event)
        if isinstance(event, LogLine) and event.message == "two":
            released.set()  # only now may the job end: the lines came before its answer

    with working(FakeGateway()) as fake:
        fake.handlers |= {"GET /v1/logs": logs, "POST /v1/execute": execute}
        TransformClient(fake.url).run("c", request_id="r1", on_event=on_event)
    messages = [event.message for event in seen if isinstance(event, LogLine)]
    assert messages == lines[: len(messages)]
    assert len(messages) >= 2
    assert [event for event in seen if isinstance(event, Progress)] == [Progress("read", "t", 5, None)]
    assert sum(isinstance(event, StateChanged) for event in seen) == 1


def test_log_of_an_earlier_job_with_the_same_id_is_not_taken_for_that_of_this_one() -> None:
    polled, accepted = threading.Event(), threading.Event()

    def logs(asked: Asked) -> Reply:
        if accepted.is_set():
            return log_answer(*["new", "end"][offset_of(asked) :], state="finished", offset=offset_of(asked))
        polled.set()
        return log_answer("old", "end", state="finished")

    def execute(asked: Asked) -> Reply:
        assert polled.wait(60)  # the client has asked for the log while its tables were still being sent
        accepted.set()
        return 200, SUCCESS

    with working(FakeGateway()) as fake:
        fake.handlers |= {"GET /v1/logs": logs, "POST /v1/execute": execute}
        result = TransformClient(fake.url).run("c", request_id="r1")
    assert [line.message for line in result.log] == ["new", "end"]


def test_failed_job_is_an_exception_with_its_code_exit_code_and_log() -> None:
    failure = {"execution_id": "e", "exit_code": 137, "code": "memory_limit", "error": "too much memory"}
    with working(FakeGateway()) as fake:
        fake.handlers["POST /v1/execute"] = lambda asked: (500, failure)
        with pytest.raises(TransformFailed, match="too much memory") as caught:
            TransformClient(fake.url).run("c", request_id="r1")
    assert (caught.value.code, caught.value.exit_code) == ("memory_limit", 137)
    assert [line.message for line in caught.value.log] == ["said"]


@pytest.mark.parametrize(
    ("status", "body", "code", "retryable"),
    [
        (503, {"error": "full", "code": "queue_full", "retryable": True}, "queue_full", True),
        (401, {"error": "no", "code": "unauthorized", "retryable": False}, "unauthorized", False),
        (404, {"error": "no route", "code": "not_found"}, "not_found", False),
    ],
)
def test_refusal_raises_gateway_refused(status: int, body: Any, code: str, retryable: bool) -> None:
    with FakeGateway({"POST /v1/execute": lambda asked: (status, body)}) as fake:
        with pytest.raises(GatewayRefused) as caught:
            TransformClient(fake.url).run("c")
        assert (caught.value.status, caught.value.code, caught.value.retryable) == (status, code, retryable)


@pytest.mark.parametrize("status", [200, 404, 502])
def test_page_of_a_proxy_is_not_the_answer_of_a_gateway(status: int) -> None:
    said = r"no answer from http://127.0.0.1:\d+: its response \(\d+\) is not that of a gateway"
    html = (status, b"<html>")
    with FakeGateway({"POST /v1/execute": lambda asked: html, "GET /v1/status": lambda asked: html}) as fake:
        for call in (lambda: TransformClient(fake.url).run("c"), lambda: TransformClient(fake.url).status()):
            with pytest.raises(GatewayUnreachable, match=said):
                call()


def test_following_waits_for_a_gateway_behind_a_proxy() -> None:
    answers = iter([(502, b"<html>"), log_answer("said", state="finished")])
    lost: list[str] = []
    seen: list[Event] = []
    with FakeGateway({"GET /v1/jobs/j": lambda asked: (200, {})}) as fake:
        fake.handlers["GET /v1/jobs/j/logs"] = lambda asked: next(answers)
        TransformClient(fake.url).follow_job("j", seen.append, lambda error: lost.append(error.message))
    assert [event.message for event in seen if isinstance(event, LogLine)] == ["said"]
    assert len(lost) == 1


def test_unreachable_gateway_is_reported_in_one_line() -> None:
    with pytest.raises(GatewayUnreachable, match=r"no answer from http://127.0.0.1:1: Connection refused"):
        TransformClient("http://127.0.0.1:1").run("c")
    for url in ("localhost:5001", "ftp://x", "http://", "http://h?x=1", "http://a b"):
        with pytest.raises(ValueError, match="not a gateway's URL"):
            TransformClient(url)


def test_token_and_path_beyond_ascii_are_sent_as_utf8() -> None:
    with FakeGateway({"GET /%C3%A9/v1/status": lambda asked: (200, {"healthy": True})}) as fake:
        assert TransformClient(f"{fake.url}/\u00e9", "gehe\u00ed\u017e").status() == {"healthy": True}
        assert fake.asked[0].headers["authorization"].encode("latin-1").decode() == "Bearer gehe\u00ed\u017e"


def test_exception_while_waiting_cancels_the_job() -> None:
    cancelled = threading.Event()

    def execute(asked: Asked) -> Reply:
        assert cancelled.wait(60)
        return 500, {"execution_id": "e", "exit_code": -1, "code": "cancelled"}

    def cancel(asked: Asked) -> Reply:
        assert json.loads(asked.body) == {"request_id": 7}
        cancelled.set()
        return 200, {}

    def interrupt(event: Event) -> None:
        raise KeyboardInterrupt

    with working(FakeGateway()) as fake:
        running = {"GET /v1/logs": lambda asked: log_answer("said")}
        fake.handlers |= {"POST /v1/execute": execute, "POST /v1/cancel": cancel, **running}
        with pytest.raises(KeyboardInterrupt):
            TransformClient(fake.url).run("c", request_id=7, on_event=interrupt)
    assert cancelled.is_set()


def test_accepted_job_is_followed_to_its_end() -> None:
    states = iter(["queued", "running", "finished", "finished"])

    with working(FakeGateway()) as fake:
        fake.handlers |= {
            "POST /v1/execute": lambda asked: (202, {"state": "queued"}),
            "GET /v1/logs": lambda asked: log_answer(state=next(states)),
            "GET /v1/status": lambda asked: (200, {"state": "finished", "result": SUCCESS}),
        }
        assert TransformClient(fake.url).run("c", request_id="r1").output == OUTPUT


def test_following_a_job_that_is_unknown_or_forgotten_ends() -> None:
    with FakeGateway({"GET /v1/jobs/j": lambda asked: (200, {})}) as fake:
        client = TransformClient(fake.url)
        for follow in (client.follow, client.follow_job):  # the second is forgotten after the look at it
            with pytest.raises(GatewayRefused) as refused:
                follow("j", print)
            assert refused.value.status == 404
        answers = iter([(200, {"state": "queued", "events": []})])
        fake.handlers["GET /v1/logs"] = lambda asked: next(answers, (404, {"code": "not_found"}))
        seen: list[Event] = []
        client.follow("j", seen.append)
    assert seen == [StateChanged(JobState.QUEUED, "")]


def test_name_of_a_file_is_not_taken_for_a_source() -> None:
    with FakeGateway() as fake:
        client = TransformClient(fake.url)
        with pytest.raises(ValueError, match=r"pass Path\('dir/totals\.py'\)"):
            client.run("dir/totals.py")
        with pytest.raises(ValueError, match=r"pass Path\('common\.py'\)"):
            client.submit("c", library={"common": "common.py"})
    assert fake.asked == []


def test_job_whose_output_has_no_directory_does_not_run(tmp_path: Path) -> None:
    with FakeGateway() as fake, pytest.raises(FileNotFoundError, match=r"no such directory: '.*/gone'"):
        TransformClient(fake.url).run("c", output=tmp_path / "gone" / "o.csv")
    assert fake.asked == []


def test_job_whose_workbook_cannot_be_written_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with FakeGateway() as fake, pytest.raises(ValueError, match="a workbook needs the package openpyxl"):
        TransformClient(fake.url).run("c", output=tmp_path / "o.xlsx")
    assert fake.asked == []


def test_submit_asks_for_an_answer_at_once() -> None:
    with FakeGateway({"POST /v1/execute": lambda asked: (202, {"state": "queued"})}) as fake:
        request_id = TransformClient(fake.url).submit("c")
    asked = fake.asked[-1]
    assert asked.headers["prefer"] == "respond-async"
    assert json.loads(asked.body)["request_id"] == request_id


def test_gateway_below_a_path_of_a_proxy_is_reached() -> None:
    with FakeGateway({"GET /deep/v1/status": lambda asked: (200, {"healthy": True})}) as fake:
        assert TransformClient(fake.url + "/deep/").status() == {"healthy": True}


def test_real_job_takes_files_and_frames_and_gives_a_file(running_gateway: GatewayProcess, tmp_path: Path) -> None:
    (tmp_path / "orders.csv").write_text("id,amount\n1,10.5\n2,4.5\n")
    names = pd.DataFrame(
        {"id": [1, 2], "name": ["a", "\N{SNOWMAN}"], "when": pd.to_datetime(["2024-01-01", "2024-01-02"])}
    )
    code = (
        "import helper\n"
        "def transform(orders, names):\n"
        "    print('joining', names['when'].dtype)\n"
        "    both = orders.merge(names, on='id')\n"
        "    return both.assign(amount=both.amount * helper.FACTOR)[['name', 'amount']]\n"
    )
    seen: list[Event] = []
    result = TransformClient(running_gateway.url, running_gateway.token).run(
        code,
        {"orders": tmp_path / "orders.csv", "names": names},
        library={"helper.py": "FACTOR = 2\n"},
        output=tmp_path / "out.parquet",
        on_event=seen.append,
    )
    frame = pd.read_parquet(tmp_path / "out.parquet")
    assert frame.to_dict("list") == {"name": ["a", "\N{SNOWMAN}"], "amount": [21.0, 9.0]}
    assert (result.rows, result.fields, result.data_format) == (2, 2, "parquet")
    assert [field["name"] for field in result.manifest["fields"]] == ["name", "amount"]
    assert result.log[0].message.startswith("joining datetime64")
    assert [line.message for line in result.log] == [e.message for e in seen if isinstance(e, LogLine)]


def test_real_job_that_raises_is_a_failure_with_its_traceback(running_gateway: GatewayProcess) -> None:
    with pytest.raises(TransformFailed) as caught:
        TransformClient(running_gateway.url, running_gateway.token).run("def transform():\n    raise KeyError('k')\n")
    assert (caught.value.code, caught.value.exit_code) == ("user_error", 1)
    assert caught.value.log[-1].message == "KeyError: 'k'"


def test_real_job_is_cancelled_by_another_caller(running_gateway: GatewayProcess) -> None:
    client = TransformClient(running_gateway.url, running_gateway.token)

    began = 0.0

    def cancel_when_it_runs(event: Event) -> None:
        nonlocal began
        if isinstance(event, LogLine) and event.message == "started":
            began = time.monotonic()
            client.cancel("c-1")

    with pytest.raises(TransformFailed) as caught:
        client.run(
            "import time\ndef transform():\n    print('started')\n    time.sleep(600)\n",
            request_id="c-1",
            timeout=600,
            on_event=cancel_when_it_runs,
        )
    assert caught.value.code == "cancelled"
    assert time.monotonic() - began < 60
    with pytest.raises(GatewayRefused) as refused:
        client.cancel("c-1")
    assert refused.value.status == 404
    assert client.status("c-1")["state"] == "finished"
    assert client.logs("c-1")[0].message == "started"


def test_real_gateway_refuses_a_wrong_token_even_for_a_large_upload(
    running_gateway: GatewayProcess, tmp_path: Path
) -> None:
    (tmp_path / "t.csv").write_bytes(b"a\n" + b"1\n" * 10_000_000)
    with pytest.raises(GatewayRefused) as caught:
        TransformClient(running_gateway.url, "wrong").run("c", {"t": tmp_path / "t.csv"})
    assert (caught.value.status, caught.value.code) == (401, "unauthorized")


def test_real_result_is_a_frame_with_the_types_that_a_transform_gets(
    running_gateway: GatewayProcess, tmp_path: Path
) -> None:
    (tmp_path / "t.py").write_text(
        "import datetime, decimal\nimport pandas as pd\n"
        "def transform():\n"
        "    return pd.DataFrame({\n"
        "        'n': pd.array([1, None, 2**62 + 1], 'Int64'), 'b': pd.array([True, None, False], 'boolean'),\n"
        "        'd': [decimal.Decimal('1.25'), None, None], 's': ['007', None, 'x'],\n"
        "        'day': [datetime.date(2024, 1, 2), None, datetime.date(2025, 1, 2)],\n"
        "        'at': pd.to_datetime(['2024-01-02T03:04:05.5', None, None], format='ISO8601'),\n"
        "        'all': [1, 2, 3], 'yes': [True, False, True]})\n"
    )
    client = TransformClient(running_gateway.url, running_gateway.token)
    result = client.run(tmp_path / "t.py")
    frame = result.frame()
    assert {name: str(kind) for name, kind in frame.dtypes.items() if name != "s"} == {
        "n": "Int64", "b": "boolean", "d": "float64", "day": "datetime64[ns]", "at": "datetime64[ns]",
        "all": "int64", "yes": "bool",
    }  # fmt: skip
    assert frame["n"][2] == 2**62 + 1
    assert frame["s"].tolist()[0] == "007"
    assert result.arrow().num_rows == 3
    for name in ("o.csv", "o.jsonl", "o.parquet"):
        again = client.run(tmp_path / "t.py", output=tmp_path / name)
        assert again.frame()["s"].tolist()[0] == "007"
        assert again.frame()["n"].tolist()[2] == 2**62 + 1
    for name in ("o.json", "o.csv.gz"):
        packed = client.run(tmp_path / "t.py", output=tmp_path / name)
        assert packed.output_path == tmp_path / name
        assert packed.frame()["s"].tolist()[0] == "007"
    assert json.loads((tmp_path / "o.json").read_text())[0]["s"] == "007"
    assert gzip.decompress((tmp_path / "o.csv.gz").read_bytes()).startswith(b"n,b,d,")
    client.run(tmp_path / "t.py", output=tmp_path / "l.json", output_format="jsonl")
    assert (tmp_path / "l.json").read_text().startswith("{")
    empty = client.run("import pandas as pd\ndef transform():\n    return pd.DataFrame({'a': [1]}).head(0)\n").frame()
    assert (list(empty.columns), len(empty)) == (["a"], 0)
