"""An output contract of a request or of a command's file: nothing is published when it is broken."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from gateway.client import TransformClient, failures, refusals
from tests.support.gateway_process import GatewayProcess

CODE = "import pandas as pd\ndef transform(t):\n    return t.assign(n=t.n - 1)\n"
SCHEMA: dict[str, Any] = {"columns": {"n": {"type": "integer", "nullable": False, "min": 0}}}


def test_request_with_a_contract(running_gateway: GatewayProcess) -> None:
    client = TransformClient(running_gateway.url, running_gateway.token)
    good, bad = pd.DataFrame({"n": [1, 2]}), pd.DataFrame({"n": [1, 0]})
    assert client.run(CODE, {"t": good}, output_schema=SCHEMA).frame()["n"].tolist() == [0, 1]
    with pytest.raises(failures.OutputSchemaViolated, match=r"column 'n': min 0: 1 row of 2 .*\(row 1: -1\)") as caught:
        client.run(CODE, {"t": bad}, output_schema=SCHEMA, request_id="broken")
    assert not caught.value.retryable
    assert "row 1: -1" in caught.value.log[-1].message
    with pytest.raises(refusals.NotFound):  # nothing is kept either
        client.fetch("broken", "nowhere")
    with pytest.raises(
        failures.UserError, match=r"^output_schema: columns\['n'\].type: expected integer, .*, not 'int'"
    ):
        client.run(CODE, {"t": good}, output_schema={"columns": {"n": {"type": "int"}}})
    with pytest.raises(refusals.BadRequest, match="output_schema: expected an object"):
        client.run(CODE, {"t": good}, output_schema=["n"])  # type: ignore[arg-type]


def test_command_finds_the_contract_of_its_script(running_gateway: GatewayProcess, tmp_path: Path) -> None:
    (tmp_path / "less.py").write_text(CODE)
    (tmp_path / "t.csv").write_text("n\n1\n0\n")
    contract = tmp_path / "less.schema.yaml"

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-m", "gateway", *command, "less.py", "--table", "t=t.csv",
             "--url", running_gateway.url, "--token", running_gateway.token],
            cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip

    contract.write_text("columns:\n  n: {type: integer, min: 0}\n")
    broken = run("run", "--out", "out.csv")
    assert broken.returncode == 1
    assert "ERROR: The output contract is violated: column 'n': min 0" in broken.stderr
    assert "transform-gateway: output_schema_violated" in broken.stderr
    assert not (tmp_path / "out.csv").exists()
    contract.write_text("columns:\n  n: {type: integer, min: -1}\n")
    assert run("run", "--out", "out.csv").returncode == 0
    for text, said in (("columns: [", "not valid YAML"), ("- n\n", "expected `columns:`")):
        contract.write_text(text)
        wrong = run("submit")
        assert wrong.returncode == 2
        assert f"less.schema.yaml: {said}" in wrong.stderr
