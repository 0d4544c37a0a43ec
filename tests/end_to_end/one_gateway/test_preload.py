"""PRELOAD: a job finds the module imported, the list of packages says so, and doctor shows the cost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from gateway.process.app import TransformGatewayApp
from gateway.process.checks import warnings_of
from tests.support.gateway_process import GatewayProcess

ROOT = Path(__file__).parents[3]
SECONDS = 120

IMPORTED = (
    "import sys\nbefore = {'scipy.special', 'matplotlib'} & set(sys.modules)\nimport pandas as pd\n"
    "def transform():\n    return pd.DataFrame({'module': sorted(before)})\n"
)


def test_preloaded_module_is_there_before_the_job() -> None:
    with GatewayProcess({"PRELOAD": "scipy.special"}) as gateway:
        answer = gateway.execute(IMPORTED, 1, inline=True).body
        assert answer["exit_code"] == 0, answer
        assert json.loads(answer["output"]) == {"module": "scipy.special"}
        listed = {each["name"]: each["preloaded"] for each in gateway.request("GET", "/v1/packages").body["packages"]}
        assert (listed["scipy"], listed["matplotlib"]) == (True, False)
        assert gateway.request("GET", "/v1/status").body["fork_server"]["state"] == "ready"


def test_doctor_shows_the_cost_of_each_module_and_the_reason_for_a_refused_one() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "doctor", "--json", "--require", "D"],
        cwd=ROOT,
        env=os.environ | {"PRELOAD": "scipy.special,nosuch,tests.kernel_spec.threaded_module"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    report = json.loads(done.stdout)
    usable, missing, threaded = report["preload"]
    assert usable["module"] == "scipy.special"
    assert usable["problem"] is None
    assert usable["memory_bytes"] > 1_000_000
    assert missing["problem"] == "its import fails: ModuleNotFoundError: No module named 'nosuch'"
    assert "starts a thread" in threaded["problem"]
    assert "PRELOAD names modules that are not installed: nosuch" in report["host"]["warnings"]


def test_module_that_is_not_installed_is_warned_of() -> None:
    app = TransformGatewayApp()
    app.initialize(["--preload=scipy,nosuch.part"])
    assert app.settings().preload == ("scipy", "nosuch.part")
    assert any("nosuch" in text for text in warnings_of(app.settings()))
