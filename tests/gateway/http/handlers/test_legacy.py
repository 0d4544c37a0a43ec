from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path

import pytest

from gateway.core.job import DirectoryDelivery, FileSource, MetabaseSource, UrlDelivery, UrlSource
from gateway.core.settings import Settings
from tests.gateway.http.harness import Caller, ScriptedRunner, body


@pytest.fixture
def shared(tmp_path: Path, settings: Settings) -> Path:
    directory = tmp_path / "shared"
    (directory / "run").mkdir()
    (directory / "orders.csv").write_text("a\n1\n")
    (directory / "link").symlink_to("/etc")
    return directory


async def test_working_dir_form_answers_with_its_files(call: Caller, runner: ScriptedRunner, shared: Path) -> None:
    directory = str(shared / "run")
    answer = await call.send("POST", "/execute", {"code": "ok", "working_dir": directory, "timeout": 10})
    found = body(answer)
    assert answer.code == 200
    assert found["exit_code"] == 0
    assert found["timeout"] is False
    assert found["output_file"] == f"{directory}/output.csv"
    assert found["stdout_file"] == f"{directory}/stdout.log"
    assert found["stderr_file"] == f"{directory}/stderr.log"
    assert isinstance(found["request_id"], str)
    assert runner.jobs[0].delivery == DirectoryDelivery(shared / "run")
    assert (runner.jobs[0].form, runner.jobs[0].output_format) == ("first", "csv")


async def test_url_form_delivers_texts(call: Caller, runner: ScriptedRunner) -> None:
    urls = {f"{name}_url": f"http://s3.test/{name}" for name in ("output", "output_manifest", "stdout", "stderr")}
    tables = {"table_mapping": {"t": "http://s3.test/t"}, "manifest_mapping": {"t": "http://s3.test/m"}}
    answer = await call.send("POST", "/execute", {"code": "ok", "request_id": "a", **urls, **tables})
    assert answer.code == 200
    assert body(answer)["request_id"] == "a"
    delivery = runner.jobs[0].delivery
    assert isinstance(delivery, UrlDelivery)
    assert (delivery.stdout_url, delivery.stderr_url) == (urls["stdout_url"], urls["stderr_url"])
    assert runner.jobs[0].tables[0].manifest == UrlSource("http://s3.test/m")


async def test_timeout_reports_the_limit_itself(call: Caller, shared: Path) -> None:
    sent = {"code": "timeout", "working_dir": str(shared / "run"), "timeout": 2}
    answer = await call.send("POST", "/execute", sent)
    found = body(answer)
    assert (answer.code, found["exit_code"], found["timeout"], found["execution_time"]) == (500, -1, True, 2)


async def test_failure_is_500_without_output_file(call: Caller, shared: Path) -> None:
    answer = await call.send("POST", "/execute", {"code": "user_error", "working_dir": str(shared / "run")})
    found = body(answer)
    assert (answer.code, found["exit_code"], found["output_file"]) == (500, 1, None)
    assert found["error"]


async def test_tables_are_files_below_the_roots_or_metabase_tables(
    call: Caller, runner: ScriptedRunner, shared: Path
) -> None:
    sent = {"code": "ok", "working_dir": str(shared / "run"), "table_mapping": {"o": str(shared / "orders.csv")}}
    assert (await call.send("POST", "/execute", sent)).code == 200
    assert runner.jobs[0].tables[0].data == FileSource(shared / "orders.csv")
    assert runner.jobs[0].tables[0].data_format == "csv"
    sent |= {"metabase_url": "http://metabase:3000", "api_key": "k", "table_mapping": {"a": 12.0, "b": "13"}}
    assert (await call.send("POST", "/execute", sent)).code == 200
    sources = [table.data for table in runner.jobs[1].tables]
    assert sources == [MetabaseSource("http://metabase:3000", "k", number) for number in (12, 13)]


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("working_dir", {"working_dir": "/etc"}),
        ("working_dir", {"working_dir": "{shared}/../state"}),
        ("working_dir", {"working_dir": "{shared}/link"}),
        ("working_dir", {"working_dir": "{shared}/nosuch"}),
        ("working_dir", {"working_dir": "{shared}/orders.csv"}),
        ("working_dir", {"working_dir": "run"}),
        ("working_dir", {"working_dir": "{shared}/a\0b"}),
        ("working_dir", {"working_dir": None}),
        ("working_dir", {"output_url": "http://s3.test/o", "request_id": 1}),
        ("request_id", {"working_dir": None, "output_url": "http://s3.test/o"}),
        ("table_mapping", {"table_mapping": {"t": "/etc/passwd"}}),
        ("table_mapping", {"table_mapping": {"t": "{shared}/link/passwd"}}),
        ("table_mapping", {"table_mapping": {"t": "{shared}/run"}}),
        ("table_mapping", {"table_mapping": {"t": "file:///etc/passwd"}}),
        ("table_mapping", {"table_mapping": {"t": 5}}),
        ("table_mapping", {"table_mapping": {"t": True}}),
        ("api_key", {"metabase_url": "http://metabase:3000"}),
        ("manifest_mapping", {"manifest_mapping": {"t": "http://s3.test/m"}}),
        ("code", {"code": None}),
        ("timeout", {"timeout": 0}),
    ],
)
async def test_wrong_field_is_400_naming_it(
    call: Caller, runner: ScriptedRunner, shared: Path, field: str, changes: dict[str, object]
) -> None:
    def fill(value: object) -> object:
        if isinstance(value, dict):
            return {key: fill(item) for key, item in value.items()}
        return value.replace("{shared}", str(shared)) if isinstance(value, str) else value

    sent = {"code": "ok", "working_dir": str(shared / "run"), **{k: fill(v) for k, v in changes.items()}}
    answer = await call.send("POST", "/execute", sent)
    assert answer.code == 400
    assert body(answer)["error"].startswith(field)
    assert not runner.jobs


@pytest.mark.parametrize("settings", [{"working_dir_roots": (), "host": "0.0.0.0"}], indirect=True)
async def test_without_roots_no_directory_is_allowed(call: Caller, tmp_path: Path) -> None:
    answer = await call.send("POST", "/execute", {"code": "ok", "working_dir": str(tmp_path / "shared")})
    assert answer.code == 400
    assert "WORKING_DIR_ROOTS" in body(answer)["error"]


@pytest.mark.parametrize("settings", [{"working_dir_roots": ()}], indirect=True)
async def test_on_loopback_the_output_may_go_below_the_temporary_directory_but_no_input_is_read(
    call: Caller, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    sent: dict[str, object] = {"code": "ok", "working_dir": str(tmp_path / "new" / "work")}
    assert (await call.send("POST", "/execute", sent)).code == 200
    (tmp_path / "orders.csv").write_text("a\n1\n")
    answer = await call.send("POST", "/execute", sent | {"table_mapping": {"t": str(tmp_path / "orders.csv")}})
    assert (answer.code, "WORKING_DIR_ROOTS" in body(answer)["error"]) == (400, True)


@pytest.mark.parametrize("settings", [{"working_dir_roots": ()}], indirect=True)
@pytest.mark.parametrize("starter", ["container engine", "systemd"])
async def test_a_service_allows_no_directory_by_default(
    call: Caller, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, starter: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    if starter == "systemd":
        log = os.fstat(2)
        monkeypatch.setenv("JOURNAL_STREAM", f"{log.st_dev}:{log.st_ino}")
    else:
        monkeypatch.setenv("container", "oci")
    answer = await call.send("POST", "/execute", {"code": "ok", "working_dir": str(tmp_path / "work")})
    assert (answer.code, "WORKING_DIR_ROOTS" in body(answer)["error"]) == (400, True)
    assert not (tmp_path / "work").exists()


async def test_logs_are_empty_when_idle_and_texts_while_running(
    call: Caller, runner: ScriptedRunner, shared: Path
) -> None:
    idle = {"execution_id": None, "status": "no_execution", "stdout": "", "stderr": ""}
    assert body(await call.get("/logs")) == idle
    sent = {"code": "hold", "working_dir": str(shared / "run"), "request_id": 5}
    waiting = asyncio.ensure_future(call.send("POST", "/execute", sent))
    await runner.begun.wait()
    assert body(await call.get("/logs")) == {
        "execution_id": 5,
        "status": "executing",
        "stdout": "begin\n",
        "stderr": "",
    }
    answer = await call.send("POST", "/cancel", {"request_id": 5})
    assert (answer.code, "5" in body(answer)["message"]) == (200, True)
    assert body(await waiting)["cancelled"] is True
    assert body(await call.get("/logs")) == idle


@pytest.mark.parametrize("settings", [{"asynchronous": True}], indirect=True)
async def test_first_form_always_waits(call: Caller, shared: Path) -> None:
    sent = {"code": "ok", "working_dir": str(shared / "run")}
    assert (await call.send("POST", "/execute", sent)).code == 200
