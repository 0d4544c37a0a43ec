"""A failed job is run again from its bundle: by the command line, as a notebook; the bundle holds no secret."""

from __future__ import annotations

import gzip
import json
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.client.client import TransformClient
from gateway.client.errors import TransformFailed
from tests.gateway.cli.commands import call
from tests.notebooks.executed import execute
from tests.support.gateway_process import GatewayProcess
from tests.support.s3 import SECRET_KEY, S3Server

SECRETS = {"METABASE_API_KEY": "mb_sECRET-of-the-environment", "AWS_SECRET_ACCESS_KEY": "aws-sECRET"}
#: A tenth of it is for the tables of one job.
KEEP_BYTES = 2_000_000
MANIFEST = {
    "schema_version": 1,
    "data_format": "jsonl",
    "data_version": 1,
    "fields": [{"name": "when", "base_type": "type/Date"}, {"name": "amount", "base_type": "type/Decimal"}],
    "table_metadata": {"table_id": 42},
}
ROWS = b'{"when":"2026-01-02","amount":"1.50"}\n{"when":null,"amount":"2.25"}\n'
#: The type of a column decides that it fails, so that a replay without the manifest would not.
SCRIPT = """
from helpers import days
def transform(orders):
    print("rows", len(orders))
    return days(orders)
"""
HELPERS = "def days(orders):\n    return orders.assign(day=orders['when'].dt.nosuch)\n"
REPAIRED = "def days(orders):\n    return orders.assign(day=orders['when'].dt.day_name())\n"


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewayProcess]:
    settings = {"KEEP_FAILED_JOBS": "true", "KEEP_FAILED_BYTES": str(KEEP_BYTES), "MEMORY_LIMIT_BYTES": "400MiB"}
    with GatewayProcess(settings | SECRETS) as process:
        yield process


@pytest.fixture(scope="module")
def client(gateway: GatewayProcess) -> TransformClient:
    return TransformClient(gateway.url, gateway.token)


def fail(client: TransformClient, script: str, request_id: str, tables: dict[str, Path], **more: Any) -> str:
    with pytest.raises(TransformFailed) as failure:
        client.run(script, tables, request_id=request_id, **more)
    return str(failure.value.answer["execution_id"])


@pytest.fixture(scope="module")
def failed(client: TransformClient, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The job_id of a job that failed by its module, with a table that has a manifest."""
    path = tmp_path_factory.mktemp("tables") / "orders.jsonl"
    path.write_bytes(ROWS)
    options = {"library": {"helpers": HELPERS}, "manifests": {"orders": MANIFEST}, "timeout": 45}
    return fail(client, SCRIPT, "failed", {"orders": path}, **options)


def bundles(gateway: GatewayProcess) -> Path:
    return gateway.state_dir / "s/store/bundles"


def around(content: bytes, secret: str) -> bytes:
    at = content.index(secret.encode())
    return content[max(0, at - 100) : at + 100]


def replay(here: Path, *arguments: str, gateway: GatewayProcess | None = None) -> subprocess.CompletedProcess[str]:
    return call(here, "replay", *arguments, gateway=gateway)


# -- what is kept


def test_a_bundle_has_no_url_no_token_and_no_environment_variable(
    gateway: GatewayProcess, client: TransformClient, tmp_path: Path
) -> None:
    packed = gzip.compress(ROWS)
    script = "import os\ndef transform(orders):\n    print(dict(os.environ))\n    raise ValueError(orders)"
    with S3Server() as s3:
        prefix = s3.new_prefix()
        s3.put(f"{prefix}/orders", packed, ContentEncoding="gzip")
        s3.put(f"{prefix}/manifest", json.dumps(MANIFEST | {"data_url": s3.get_url(f"{prefix}/orders")}).encode())
        urls = {
            "table_mapping": {"orders": s3.get_url(f"{prefix}/orders")},
            "manifest_mapping": {"orders": s3.get_url(f"{prefix}/manifest")},
            "output_url": s3.put_url(f"{prefix}/output"),
            "output_manifest_url": s3.put_url(f"{prefix}/output-manifest"),
            "events_url": s3.put_url(f"{prefix}/events"),
        }
        refused = urls | {"table_mapping": {"orders": urls["table_mapping"]["orders"][:-3] + "000"}}
        live = {"table_mapping": {"orders": 42}, "metabase_url": s3.endpoint, "api_key": "mb_sECRET-of-the-request"}
        live |= {"code": script, "request_id": "secrets", "output_url": urls["output_url"]}
        codes = [gateway.execute(script, "secrets", **fields).body["code"] for fields in (urls, refused)]
        assert gateway.request("POST", "/execute", live).status == 500
    assert codes == ["user_error", "input_unavailable"]
    jobs = client.jobs(request_id="secrets", sort="created_at")["jobs"]
    assert [client.bundle(job["job_id"])["tables"][0]["table_id"] for job in jobs] == [42, None, 42]
    found = [path.read_bytes() for path in bundles(gateway).rglob("*") if path.is_file()]
    assert any(b"ValueError" in content for content in found)
    assert any(content == packed for content in found)
    words = ("X-Amz", "Signature=", "http://", "https://", prefix, "sECRET", SECRET_KEY)
    for secret in (*words, gateway.token, *SECRETS.values()):
        assert [around(content, secret) for content in found if secret.encode() in content] == []
    assert replay(tmp_path, jobs[0]["job_id"], "--notebook", "n.ipynb", gateway=gateway).returncode == 0
    assert (tmp_path / "n.ipynb.tables/orders.jsonl.gz").read_bytes() == packed


def test_only_the_gateway_may_read_it_and_no_link_to_the_tables_is_left(failed: str, gateway: GatewayProcess) -> None:
    assert stat.S_IMODE((bundles(gateway) / failed).stat().st_mode) == 0o700
    files = list((bundles(gateway) / failed).iterdir())
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert sorted(path.name for path in files) == ["0.data", "bundle.json"]
    deadline = time.monotonic() + 60
    while any((gateway.state_dir / "s/jobs").iterdir()):  # removed after the answer
        assert time.monotonic() < deadline
        time.sleep(0.01)


# -- run again


def test_replay_fails_as_the_job_did(failed: str, gateway: GatewayProcess, tmp_path: Path) -> None:
    done = replay(tmp_path, "failed", gateway=gateway)
    assert done.returncode == 1
    assert "job failed failed with user_error: AttributeError" in done.stderr.splitlines()[0]
    assert "rows 2" in done.stderr
    assert 'File "helpers.py", line 2, in days' in done.stderr
    assert "'DatetimeProperties' object has no attribute 'nosuch'" in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_replay_takes_a_table_that_is_given_and_needs_no_token_on_the_gateways_machine(
    client: TransformClient, gateway: GatewayProcess, tmp_path: Path
) -> None:
    (tmp_path / "bad.csv").write_text("a\n0\n")
    (tmp_path / "good.csv").write_text("a\n4\n")
    code = "def transform(t):\n    assert t.a[0] > 0, 'none'\n    return t"
    job_id = fail(client, code, "given", {"t": tmp_path / "bad.csv"})
    state = str(gateway.state_dir / "s")
    done = replay(tmp_path, job_id, "--state-dir", state, "--table", "t=good.csv", "--out", "out.csv")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.csv").read_text() == "a\n4\n"


def test_replay_has_the_limits_of_the_job_and_takes_first_rows_on_request(
    client: TransformClient, gateway: GatewayProcess, tmp_path: Path
) -> None:
    (tmp_path / "t.csv").write_text("a\n" + "1\n" * (KEEP_BYTES // 10))
    code = "def transform(t):\n    print('rows', len(t))\n    return bytearray(600 << 20)"
    job_id = fail(client, code, "memory", {"t": tmp_path / "t.csv"})
    assert client.job(job_id)["code"] == "memory_limit"
    done = replay(tmp_path, job_id, gateway=gateway)
    assert (done.returncode, done.stdout) == (2, "")
    assert "table 't' has 400,002 bytes, which is too large for the bundle" in done.stderr
    assert "Give it with --table t=FILE, or take its first rows with --first-rows" in done.stderr
    again = replay(tmp_path, job_id, "--first-rows", gateway=gateway)
    assert "rows 20" in again.stderr
    assert "memory_limit: " in again.stderr
    assert again.returncode == client.job(job_id)["result"]["exit_code"]


def test_wrong_use_explains_the_correction(failed: str, gateway: GatewayProcess, tmp_path: Path) -> None:
    (tmp_path / "n.ipynb").write_text("")
    (tmp_path / "t.csv").write_text("a\n")
    state = str(gateway.state_dir / "s")
    for arguments, code, text in (
        (["nosuch"], 1, "there is no failed job with the id 'nosuch'"),
        (["0" * 32], 1, "there is no job with job_id"),
        ([failed, "--notebook", "n.ipynb"], 2, "n.ipynb: the file exists"),
        ([failed, "--notebook", "n.txt"], 2, "n.txt: the name must end in .ipynb"),
        ([failed, "--table", "nosuch=t.csv"], 2, "--table nosuch: the job has no table of this name"),
        ([failed, "--table", "orders=nosuch.csv"], 2, "nosuch.csv: no such file"),
    ):
        done = replay(tmp_path, *arguments, gateway=gateway)
        assert (done.returncode, text in done.stderr) == (code, True), done.stderr
    done = replay(tmp_path, "failed", "--state-dir", state)
    assert done.returncode == 2
    assert "'failed' is not a job_id; to find a job by its request_id, give --url and the token" in done.stderr


# -- as a notebook


def test_the_notebook_runs_from_top_to_bottom_and_repaired_to_a_result(
    failed: str, client: TransformClient, gateway: GatewayProcess, tmp_path: Path
) -> None:
    path = tmp_path / "my notebook.ipynb"
    done = replay(tmp_path, failed, "--notebook", path.name, gateway=gateway)
    assert done.returncode == 0, done.stderr
    notebook = json.loads(path.read_text())
    assert failed in notebook["cells"][0]["source"]
    assert sorted(each.name for each in (tmp_path / f"{path.name}.tables").iterdir()) == [
        "orders.jsonl",
        "orders.manifest.json",
    ]
    cells = notebook["cells"]
    last, library = cells[-1], next(cell for cell in cells if "".join(cell["source"]).startswith("%%library"))
    mended = "".join(library["source"]).replace(HELPERS, REPAIRED)
    cells += [library | {"id": "mended", "source": mended}, last | {"id": "again"}]
    path.write_text(json.dumps(notebook))
    run = execute(path, gateway)
    assert "rows 2" in run.log(last["id"])
    assert "'DatetimeProperties' object has no attribute 'nosuch'" in "\n".join(run.log(last["id"]))
    assert "Friday" in run.text("again")


def test_the_notebook_says_which_table_is_not_whole_and_keeps_the_contract_of_the_request(
    client: TransformClient, gateway: GatewayProcess, tmp_path: Path
) -> None:
    (tmp_path / "t.jsonl").write_text('{"a":1}\n' * (KEEP_BYTES // 10))
    manifest = {"fields": [{"name": "a", "base_type": "type/Integer"}], "table_metadata": {"table_id": 42}}
    contract = {"columns": {"a": {"type": "integer", "min": 2}}}
    options = {"manifests": {"t": manifest}, "output_schema": contract}
    job_id = fail(client, "def transform(t):\n    return t", "contract", {"t": tmp_path / "t.jsonl"}, **options)
    path = tmp_path / "n.ipynb"
    assert replay(tmp_path, job_id, "--notebook", path.name, gateway=gateway).returncode == 0
    introduction = json.loads(path.read_text())["cells"][0]["source"]
    assert "Table `t` has 1,600,000 bytes, which is too large for the bundle, which has its first rows" in introduction
    assert "`%table t metabase:42` loads it" in introduction
    last = json.loads(path.read_text())["cells"][-1]["id"]
    # the request's contract holds in the notebook
    assert "column 'a': min 2: 20 rows of 20" in "\n".join(execute(path, gateway).log(last))
