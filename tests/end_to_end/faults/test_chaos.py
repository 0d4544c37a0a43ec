"""A gateway that is killed while it has jobs loses none of them, and runs none to its end twice."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPException

import pytest

from tests.end_to_end.faults.chaos import ASYNC, run_chaos
from tests.support.gateway_process import GatewayProcess

SCRIPT = (
    "import time\nimport pandas as pd\n"
    "def transform():\n"
    "    time.sleep({seconds})\n"
    "    return pd.DataFrame({{'n': [{number}] * 3}})"
)


def test_jobs_that_were_accepted_survive_kills(start_gateway: Callable[..., GatewayProcess]) -> None:
    outcome = run_chaos(start_gateway, jobs=10, kills=5)  # one of each
    assert (outcome.lost, outcome.wrong, outcome.twice) == ([], [], [])
    # a kernel that is killed from outside is a failure of its job, and the only one
    assert outcome.codes.pop("killed", 0) <= outcome.killed["kernel"]
    assert set(outcome.codes) == {"ok"}, outcome.errors
    assert len(outcome.accepted) >= 6


def test_an_orderly_stop_leaves_accepted_jobs_to_the_next_start(start_gateway: Callable[..., GatewayProcess]) -> None:
    settings = {"DRAIN_SECONDS": "0", "MAX_ATTEMPTS": "1"}
    gateway = start_gateway(**settings)
    ids = []
    for number in range(3):
        request = {"code": SCRIPT.format(seconds=2, number=number), "request_id": number}
        answer = gateway.request("POST", "/v1/execute", request, headers=ASYNC)
        ids.append(answer.body["execution_id"])
    gateway.process.send_signal(signal.SIGTERM)
    assert gateway.process.wait(60) == 0
    again = start_gateway(STATE_DIR=str(gateway.state_dir / "s"), **settings)
    for number, job_id in enumerate(ids):
        again.wait_for_end(job_id)
        assert again.request("GET", f"/v1/jobs/{job_id}/result").raw == b'{"n":%d}\n' % number * 3
    log = again.request("GET", f"/v1/jobs/{ids[0]}/logs").body["events"]
    assert "The gateway was restarted: this job is queued again" in [event["message"] for event in log]


@dataclass
class Restarted:
    """A gateway whose process before was killed while two jobs ran."""

    gateway: GatewayProcess
    #: id of the job that was accepted with 202
    accepted: str


@pytest.fixture(scope="module")
def restarted() -> Iterator[Restarted]:
    with ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        gateway = stack.enter_context(GatewayProcess({"SLOTS": "2"}))
        code = "import time\ndef transform():\n    print('script started')\n    time.sleep(60)"
        going = pool.submit(gateway.execute, code, "waited")
        gateway.wait_for_line("waited", "script started")
        accepted = _submit_table(gateway)
        gateway.wait_for_line("files", "script started")
        gateway.kill()
        with pytest.raises((OSError, HTTPException)):
            going.result(timeout=60)
        settings = {"SLOTS": "2", "STATE_DIR": str(gateway.state_dir / "s")}
        yield Restarted(stack.enter_context(GatewayProcess(settings)), accepted)


def _submit_table(gateway: GatewayProcess) -> str:
    """Submit a job with a table in its request, and return its id."""
    code = "import time\ndef transform(t):\n    print('script started')\n    time.sleep(1)\n    return t"
    part = '--b\r\nContent-Disposition: form-data; name="{}"{}\r\n\r\n{}\r\n'
    request = json.dumps({"request_id": "files", "code": code})
    body = part.format("request", "", request) + part.format("table:t", '; filename="t.csv"', "x\n1\n2") + "--b--\r\n"
    headers = ASYNC | {"Content-Type": "multipart/form-data; boundary=b"}
    answer = gateway.request("POST", "/v1/execute", body.encode(), headers=headers)
    assert answer.status == 202, answer.raw
    job_id: str = answer.body["execution_id"]
    return job_id


def test_an_awaited_job_has_a_result_after_the_restart(restarted: Restarted) -> None:
    again = restarted.gateway
    job_id = again.request("GET", "/v1/status?request_id=waited").body["execution_id"]
    again.wait_for_end(job_id)
    result = again.request("GET", "/v1/status?request_id=waited").body["result"]
    assert (result["code"], result["retryable"]) == ("gateway_restarted", True)
    assert "its caller waited" in again.log("waited")[-1]["message"]


def test_tables_that_came_along_are_there_for_the_second_attempt(restarted: Restarted) -> None:
    again = restarted.gateway
    job = again.wait_for_end(restarted.accepted)
    assert (job["code"], job["attempts"]) == ("ok", 2)
    assert again.request("GET", f"/v1/jobs/{job['job_id']}/result").raw == b'{"x":1}\n{"x":2}\n'
    metrics = again.request("GET", "/metrics").raw
    assert b'transform_gateway_jobs_recovered_total{end="run_again"} 1.0' in metrics
