"""The quick start of the first public runner works with the gateway's default settings."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gateway_process import GatewayProcess

CODE = "import pandas as pd\n\ndef transform():\n    return pd.DataFrame({'name': ['Alice', 'Bob'], 'age': [25, 30]})\n"


@pytest.fixture
def work() -> Iterator[Path]:
    """A directory that does not exist yet, below the system's temporary directory."""
    path = Path(tempfile.gettempdir(), f"{next(tempfile._get_candidate_names())}-work")  # type: ignore[attr-defined]
    yield path
    shutil.rmtree(path, ignore_errors=True)


def test_execute_writes_the_output_into_a_new_working_dir(running_gateway: GatewayProcess, work: Path) -> None:
    for _ in range(2):  # the second time it exists
        sent = {"code": CODE, "working_dir": str(work), "timeout": 30}
        answer = running_gateway.request("POST", "/execute", sent)
        assert answer.status == 200, answer.raw
        assert answer.body["output_file"] == f"{work}/output.csv"
        assert (work / "output.csv").read_text() == "name,age\nAlice,25\nBob,30\n"
    assert sorted(path.name for path in work.iterdir()) == ["output.csv", "stderr.log", "stdout.log"]


def test_a_directory_that_the_gateway_may_not_write_to_is_refused_before_the_job(work: Path) -> None:
    work.mkdir()
    work.chmod(0o555)  # root may write there, but a gateway that root starts gives up root
    with GatewayProcess({"WORKING_DIR_ROOTS": str(work)}) as gateway:
        answer = gateway.request("POST", "/execute", {"code": CODE, "working_dir": str(work)})
        assert answer.status == 400
        assert answer.body["error"].startswith("working_dir: user ")
        assert gateway.request("GET", "/v1/jobs").body["jobs"] == []
