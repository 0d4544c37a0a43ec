"""Jobs accepted with 202 while processes are killed again and again: each must get one verdict and one result.

Killed are, in turn, the gateway, its launcher, its S3 server, its fork server and a kernel. Every second job uploads its
result to that S3 server.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

from gateway.storage.embedded_s3.sigv4 import Signer
from kernel_spec.linux import procfs
from tests.support.gateway_process import GatewayProcess, descendants
from tests.support.ports import free_port
from tests.support.recording_proxy import RecordingProxy

SCRIPT = (
    "import time\nimport pandas as pd\n"
    "def transform():\n"
    "    time.sleep({seconds})\n"
    "    return pd.DataFrame({{'n': [{number}] * 3, 'at': time.time_ns()}})"
)
ASYNC = {"Prefer": "respond-async"}
BUCKET = "metabase-python-runner"
URLS = {"output_url": "output", "output_manifest_url": "manifest", "events_url": "events"}

#: In the order in which they are killed.
TARGETS = ("gateway", "launcher", "S3 server", "fork server", "kernel")


@dataclass
class Outcome:
    """Counts of one run."""

    accepted: dict[str, str] = field(default_factory=dict)
    kills: int = 0
    killed: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TARGETS, 0))
    refused: int = 0
    unknown: int = 0
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    codes: dict[str, int] = field(default_factory=dict)
    attempts: dict[int, int] = field(default_factory=dict)
    uploads: dict[int, int] = field(default_factory=dict)
    errors: set[str] = field(default_factory=set)


def run_chaos(start_gateway: Callable[..., GatewayProcess], jobs: int, kills: int) -> Outcome:
    """Submit `jobs` while something is killed `kills` times, wait for all, and compare what became of each.

    Each kill comes at a random moment after a random number of finished jobs, so that the kills are spread over all
    jobs, however slow the machine is.
    """
    chance, outcome, port = random.Random(jobs * 1000 + kills), Outcome(), free_port()
    settings = {"SLOTS": "2", "QUEUE_LENGTH": str(jobs), "QUEUE_TIMEOUT": "3600", "MAX_ATTEMPTS": "100"}
    settings |= {"RESULT_KEEP": "86400", "RESULT_KEEP_BYTES": "2000000000", "DELIVERY_RETRY_SECONDS": "3600"}
    settings |= {"ENABLE_INTERNAL_S3": "true", "INTERNAL_S3_PORT": str(port)}
    with RecordingProxy(port) as proxy:
        gateway = start_gateway(**settings)
        settings["STATE_DIR"] = str(gateway.state_dir / "s")
        submitted, kill_after = 0, chance.randint(0, jobs // kills)
        while submitted < jobs or outcome.kills < kills:
            if submitted < jobs:
                _submit(gateway, submitted, proxy.port, outcome)
                submitted += 1
            else:
                time.sleep(0.05)
            completed = gateway.request("GET", "/v1/status").body["metrics"]["completed"]
            if outcome.kills < kills and completed >= kill_after:
                time.sleep(chance.uniform(0, 0.3))
                gateway = _kill(TARGETS[outcome.kills % len(TARGETS)], gateway, start_gateway, settings, outcome)
                outcome.kills += 1
                completed = gateway.request("GET", "/v1/status").body["metrics"]["completed"]
                kill_after = completed + chance.randint(0, jobs // kills)
        _wait_for_all(gateway, len(outcome.accepted))
        _judge(gateway, outcome, proxy.uploads)
        assert gateway.stop(signal.SIGTERM) == 0
    return outcome


def _submit(gateway: GatewayProcess, number: int, proxy_port: int, outcome: Outcome) -> None:
    request_id = f"job-{number}"
    request = {"code": SCRIPT.format(seconds=0.05 * (number % 4), number=number), "request_id": request_id}
    if number % 2:
        signer = Signer(f"http://127.0.0.1:{proxy_port}", "test", "test", "us-east-1")
        request |= {
            member: signer.url("PUT", f"/{BUCKET}/{request_id}/{name}", seconds=86_400) for member, name in URLS.items()
        }
    try:
        answer = gateway.request("POST", "/v1/execute", request, headers=ASYNC)
    except (OSError, HTTPException):
        outcome.unknown += 1
        return
    if answer.status == 202:
        outcome.accepted[request_id] = answer.body["execution_id"]
    else:
        outcome.refused += 1


def _kill(
    target: str,
    gateway: GatewayProcess,
    start_gateway: Callable[..., GatewayProcess],
    settings: dict[str, str],
    outcome: Outcome,
) -> GatewayProcess:
    """Kill one process, and return the gateway that runs then."""
    if target == "gateway":
        gateway.kill()
        outcome.killed[target] += 1
        return start_gateway(**settings)
    if (pid := find(target, gateway)) is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            outcome.killed[target] += 1
    return gateway


def find(target: str, gateway: GatewayProcess) -> int | None:
    """Return the process; None if it is being started again just now."""
    by_start: list[tuple[int, int, bytes]] = []
    for pid in descendants(gateway.pid):
        with suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            by_start.append((procfs.read_start_ticks(pid) or 0, pid, command))
    by_start.sort()
    # the oldest of those that go by the name of the fork server is itself; the others are what it has forked
    forked = [pid for _, pid, command in by_start if b"kernel_spec.fork_server" in command]
    found = {
        "launcher": [pid for _, pid, command in by_start if b"kernel_spec.launcher" in command],
        "S3 server": [pid for _, pid, command in by_start if command.startswith(b"rclone")],
        "fork server": forked[:1],
        "kernel": forked[1:],
    }[target]
    return found[0] if found else None


def _wait_for_all(gateway: GatewayProcess, count: int) -> None:
    deadline = time.monotonic() + 60 + count
    while time.monotonic() < deadline:
        # in this order: a job that begins between the two is in the second
        states = [gateway.request("GET", f"/v1/jobs?state={state}&limit=1").body for state in ("queued", "running")]
        if not any(page["jobs"] for page in states):
            return
        time.sleep(0.2)
    raise AssertionError("jobs still run")


def _judge(gateway: GatewayProcess, outcome: Outcome, uploads: dict[str, list[bytes]]) -> None:
    history: dict[str, list[dict[str, Any]]] = {}
    cursor: str | None = ""
    while cursor is not None:
        page = gateway.request("GET", f"/v1/jobs?limit=200{f'&cursor={cursor}' if cursor else ''}").body
        cursor = page["cursor"]
        for entry in page["jobs"]:
            history.setdefault(entry["request_id"], []).append(entry)
    for request_id, job_id in outcome.accepted.items():
        entries = history.get(request_id, [])
        if len(entries) > 1:
            outcome.twice.append(request_id)
        if not entries or entries[0]["job_id"] != job_id or entries[0]["state"] != "finished":
            outcome.lost.append(f"{request_id} ({job_id}): {entries}")
            continue
        code, attempts = entries[0]["code"], entries[0]["attempts"]
        outcome.codes[code] = outcome.codes.get(code, 0) + 1
        if code != "ok":
            outcome.errors.add(f"{code}: {entries[0]['error']}")
        outcome.attempts[attempts] = outcome.attempts.get(attempts, 0) + 1
        _judge_result(gateway, request_id, entries[0], uploads, outcome)


def _judge_result(
    gateway: GatewayProcess, request_id: str, job: dict[str, Any], uploads: dict[str, list[bytes]], outcome: Outcome
) -> None:
    number = int(request_id.removeprefix("job-"))
    if number % 2:
        found = {name: uploads.get(f"/{BUCKET}/{request_id}/{name}", []) for name in URLS.values()}
        outputs = found["output"]
        outcome.uploads[len(outputs)] = outcome.uploads.get(len(outputs), 0) + 1
        if len(set(outputs)) > 1 or len(set(found["manifest"])) > 1:
            outcome.twice.append(f"{request_id}: {outputs}")  # computed twice, and published twice
        published = bool(outputs) and bool(found["manifest"])
        if job["code"] == "ok" and not (published and found["events"]):
            outcome.wrong.append(f"{request_id}: ok without {[name for name, made in found.items() if not made]}")
        if job["code"] != "ok" and (outputs or found["manifest"]):
            outcome.wrong.append(f"{request_id}: {job['code']} with an output")
    else:
        outputs = [gateway.request("GET", f"/v1/jobs/{job['job_id']}/result").raw] if job["code"] == "ok" else []
    for output in outputs:
        rows = [json.loads(line) for line in output.splitlines()]
        if [row["n"] for row in rows] != [number] * 3:
            outcome.wrong.append(f"{request_id}: {job['code']}, {output[:60]!r}")
