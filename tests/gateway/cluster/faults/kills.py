"""Jobs accepted with 202 by three members and a host while processes are killed again and again.

Killed are, in turn, a member, the host, the broker, a launcher and a kernel. Each job must get one verdict, and the
results of one attempt. Only a host that is killed between its first upload and the record of its verdict leaves uploads
that the next attempt repeats: nobody can know of them.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import datetime
from http.client import HTTPException
from typing import Any

from tests.end_to_end.faults.chaos import find
from tests.gateway.cluster.faults.site import ASYNC, HOST, state_of, until
from tests.gateway.cluster.faults.storage import CountingStorage
from tests.gateway.cluster.members import wait_for_members
from tests.support.gateway_process import GatewayProcess
from tests.support.nats_server import NatsServer

SCRIPT = (
    "import time\nimport pandas as pd\n"
    "def transform():\n"
    "    time.sleep({seconds})\n"
    "    return pd.DataFrame({{'n': [{number}] * 3, 'at': time.time_ns()}})"
)

#: In the order in which they are killed.
TARGETS = ("member", "host", "broker", "launcher", "kernel")

MEMBERS = 3


@dataclass
class Outcome:
    """Counts of one run."""

    accepted: dict[str, str] = field(default_factory=dict)
    killed: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    unknown: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    #: jobs whose first attempt was killed within its uploads
    repeated: list[str] = field(default_factory=list)
    errors: set[str] = field(default_factory=set)


class Chaos:
    """The processes, and what became of the jobs."""

    def __init__(self, stack: ExitStack, seed: int) -> None:
        self.outcome = Outcome()
        self._stack = stack
        self._chance = random.Random(seed)
        self._server = stack.enter_context(NatsServer())
        self.storage = stack.enter_context(CountingStorage())
        shared = {"SLOTS": "1", "READY_KERNELS": "1", "QUEUE_LENGTH": "10000", "QUEUE_TIMEOUT": "3600"}
        shared |= {"MAX_ATTEMPTS": "100", "DELIVERY_RETRY_SECONDS": "3600"}
        as_member, as_host = (self._server.settings(role) | shared for role in ("member", "host"))
        self.members = [stack.enter_context(GatewayProcess(dict(as_member))) for _ in range(MEMBERS)]
        self.host = stack.enter_context(GatewayProcess(as_host, launch=HOST))
        wait_for_members(self.members, MEMBERS + 1)

    def submit(self, number: int) -> None:
        """Send a job to a member, and to the next one if that refuses it."""
        request_id = f"job-{number}"
        urls = {"output_url": "output", "output_manifest_url": "manifest", "events_url": "events"}
        request = {"code": SCRIPT.format(seconds=0.05 * (number % 4), number=number), "request_id": request_id}
        request |= {name: self.storage.put_url(f"{request_id}/{key}") for name, key in urls.items()}
        for turn in range(number, number + 1000):
            try:
                answer = self.members[turn % MEMBERS].request("POST", "/v1/execute", request, headers=ASYNC)
            except ConnectionRefusedError:
                time.sleep(0.05)
                continue
            except (OSError, HTTPException):
                self.outcome.unknown += 1
                return
            if answer.status == 202:
                self.outcome.accepted[request_id] = answer.body["execution_id"]
                return
            self.outcome.refused += 1
            time.sleep(0.05)
        raise AssertionError(f"nobody took {request_id}")

    def kill_until(self, ended: threading.Event) -> None:
        """Kill one process after the other."""
        targets: list[str] = []
        while not ended.wait(self._chance.uniform(0.2, 1.5)):
            if not targets:
                targets = self._chance.sample(TARGETS, len(TARGETS))
            self._kill(targets.pop())

    def _kill(self, target: str) -> None:
        place = self._chance.randrange(MEMBERS)
        match target:
            case "broker":
                self._server.kill()
                time.sleep(self._chance.uniform(0, 1))
                self._server.start()
            case "member":
                self.members[place].kill()
                self.members[place] = self._again(self.members[place])
            case "host":
                self.host.kill()
                self.host = self._again(self.host)
            case _:
                pid = find(target, self._chance.choice([*self.members, self.host]))
                if pid is None:
                    return
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.outcome.killed[target] += 1

    def _again(self, gateway: GatewayProcess) -> GatewayProcess:
        settings = gateway.settings | {"STATE_DIR": state_of(gateway)}
        return self._stack.enter_context(GatewayProcess(settings, launch=gateway.launch))

    def wait_for_all(self) -> None:
        """Return when no member has a job that is not finished."""
        wait_for_members(self.members, MEMBERS + 1)
        deadline = time.monotonic() + 120 + len(self.outcome.accepted)
        while any(self._history(f"state={state}&") for state in ("queued", "running")):
            assert time.monotonic() < deadline, "jobs still run"
            time.sleep(0.2)

    def _history(self, query: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        cursor: str | None = ""
        while cursor is not None:
            path = f"/v1/jobs?{query}limit=200" + (f"&cursor={cursor}" if cursor else "")
            page = until(lambda path=path: self._whole_page(path), "the history of all members")
            found, cursor = found + page["jobs"], page["cursor"]
        return found

    def _whole_page(self, path: str) -> dict[str, Any] | None:
        """Return a page; None while a member is too slow to answer for its own."""
        page: dict[str, Any] = self.members[0].request("GET", path).body
        return None if page.get("missing_members") else page

    def judge(self) -> None:
        """Compare what was accepted with what became of it."""
        history: dict[str, list[dict[str, Any]]] = {}
        for job in self._history(""):
            history.setdefault(job["request_id"], []).append(job)
        for request_id, job_id in self.outcome.accepted.items():
            jobs = history.get(request_id, [])
            if [job["job_id"] for job in jobs] != [job_id] or jobs[0]["state"] != "finished":
                self.outcome.lost.append(f"{request_id} ({job_id}): {jobs}")
        for request_id, jobs in history.items():  # also those whose acceptance nobody heard of
            self._judge(request_id, jobs)

    def _judge(self, request_id: str, jobs: list[dict[str, Any]]) -> None:
        outcome, job = self.outcome, jobs[0]
        outcome.codes[job["code"]] += 1
        if job["code"] != "ok":
            outcome.errors.add(f"{job['code']}: {job['error']}")
        uploads = [each for each in self.storage.uploads if each.key.startswith(f"{request_id}/")]
        keys = [each.key.rpartition("/")[2] for each in uploads]
        outputs = [each.body for each in uploads if each.key.endswith("/output")]
        for output in outputs:
            rows = [json.loads(line) for line in output.splitlines()]
            if [row["n"] for row in rows] != [int(request_id.removeprefix("job-"))] * 3:
                outcome.wrong.append(f"{request_id}: {output[:60]!r}")
        if job["code"] == "ok" and keys[-3:] != ["output", "manifest", "events"]:
            outcome.wrong.append(f"{request_id}: ok after {keys}")
        # told in whole milliseconds, cut off
        finished_before = datetime.fromisoformat(job["finished_at"]).timestamp() + 0.001
        if len(jobs) > 1 or any(each.at > finished_before for each in uploads):
            outcome.twice.append(f"{request_id}: {keys}, {jobs}")
        elif len(outputs) > 1:
            outcome.repeated.append(f"{request_id}: {keys}")


def run_kills(jobs: int, kills: int, seconds: float) -> Outcome:
    """Submit jobs, spread over a time, and more until enough was killed, and wait for all of them."""
    ended = threading.Event()
    with ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        chaos = Chaos(stack, jobs)
        killing = pool.submit(chaos.kill_until, ended)
        try:
            began = time.monotonic()
            for number in itertools.count(1):
                chaos.submit(number)
                time.sleep(max(0.0, began + number * seconds / jobs - time.monotonic()))
                if killing.done() or (number >= jobs and chaos.outcome.killed.total() >= kills):
                    break
        finally:
            ended.set()
        killing.result(120)
        chaos.wait_for_all()
        chaos.judge()
        return chaos.outcome
