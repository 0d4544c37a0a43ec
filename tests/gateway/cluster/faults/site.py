"""A small cluster to break: one member that only accepts, two hosts with one slot each, their broker and their storage."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.gateway.cluster.faults.network import Network
from tests.gateway.cluster.faults.storage import CountingStorage
from tests.gateway.cluster.members import wait_for_members
from tests.support.gateway_process import Answer, GatewayProcess
from tests.support.machines import HERE
from tests.support.nats_server import NatsServer

HOST = ("-m", "gateway", "host")
ASYNC = {"Prefer": "respond-async"}

#: does what its table says, so that each attempt can be another one
SCRIPT = """
import time
import pandas as pd

def transform(told):
    attempt, seconds, kilobytes = (told[name][0] for name in ("attempt", "seconds", "kilobytes"))
    print(f"attempt {attempt} runs", flush=True)
    time.sleep(float(seconds))
    return pd.DataFrame({"attempt": attempt, "text": ["x" * 1000] * kilobytes})
"""
FIELDS = [{"name": name, "base_type": "type/Integer"} for name in ("attempt", "seconds", "kilobytes")]


@dataclass
class Sent:
    """A job whose caller waits for the answer, and the host that has it first."""

    site: Site
    prefix: str
    host: GatewayProcess | None = None
    answers: list[Answer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._call)
        self._thread.start()

    def _call(self) -> None:
        self.answers.append(self.site.front.execute(SCRIPT, self.prefix, **self.site.request(self.prefix)))

    def wait(self) -> Answer:
        """Return the answer."""
        self._thread.join(90)
        (answer,) = self.answers
        return answer

    def was_delivered_once(self, *, attempt: int) -> None:
        """Wait for the answer, and fail unless the results of this attempt, and no others, were accepted."""
        answer = self.wait()
        assert answer.status == 200, answer.raw
        self.site.shows_once(self.prefix, attempt=attempt)
        shown = [line["message"] for line in self.site.front.log(self.prefix)]
        assert sum("this job runs again (attempt 2)" in line for line in shown) == attempt - 1
        assert sum("Successfully saved output manifest" in line for line in shown) == 1


@dataclass
class Site:
    """The parts."""

    server: NatsServer
    storage: CountingStorage
    front: GatewayProcess
    hosts: list[GatewayProcess]
    stack: ExitStack

    def tell(self, prefix: str, *, attempt: int = 1, seconds: int = 0, kilobytes: int = 1) -> None:
        """Set what the next attempt of a job does."""
        told = {"attempt": attempt, "seconds": seconds, "kilobytes": kilobytes}
        self.storage.put(f"{prefix}/told", json.dumps(told).encode() + b"\n")
        self.storage.put(f"{prefix}/fields", json.dumps({"schema_version": 1, "fields": FIELDS}).encode())

    def request(self, prefix: str) -> dict[str, Any]:
        """Return the members of a request besides its script and its id."""
        url = self.storage.get_url(prefix)
        results = {"output_url": "output", "output_manifest_url": "manifest", "events_url": "events"}
        tables = {"table_mapping": {"told": f"{url}/told"}, "manifest_mapping": {"told": f"{url}/fields"}}
        return {"timeout": 60, **tables, **{name: f"{url}/{key}" for name, key in results.items()}}

    def send(self, prefix: str, **told: int) -> Sent:
        """Send a job, and return when it runs."""
        self.tell(prefix, **told)
        before = [counted("attempts", host) for host in self.hosts]
        sent = Sent(self, prefix)
        shows = "attempt 1 runs"
        until(lambda: sent.answers or any(shows in line["message"] for line in self.front.log(prefix)), shows)
        assert not sent.answers, sent.answers[0].raw
        (sent.host,) = (
            host for host, count in zip(self.hosts, before, strict=True) if counted("attempts", host) > count
        )
        return sent

    def accept(self, prefix: str, **told: int) -> str:
        """Send a job that nobody waits for, and return its id."""
        self.tell(prefix, **told)
        request = {"code": SCRIPT, "request_id": prefix, **self.request(prefix)}
        answer = self.front.request("POST", "/v1/execute", request, headers=ASYNC)
        assert answer.status == 202, answer.raw
        job_id: str = answer.body["execution_id"]
        return job_id

    def shows_once(self, prefix: str, *, attempt: int) -> None:
        """Fail unless the storage accepted the results of one attempt, once."""
        assert self.storage.accepted(prefix) == {"output": 1, "manifest": 1, "events": 1}
        (output,) = self.storage.bodies(f"{prefix}/output")
        assert {json.loads(line)["attempt"] for line in output.splitlines()} == {attempt}

    def run_on_both(self) -> None:
        """Return when both hosts run jobs again."""
        wait_for_members([self.front], 3)
        ids = {prefix: self.accept(prefix, seconds=50) for prefix in (f"{time.time_ns()}-a", f"{time.time_ns()}-b")}
        for prefix in ids:  # neither ends by itself while it is waited for, and each host has one slot
            self.front.wait_for_line(prefix, "attempt 1 runs")
        for prefix, job_id in ids.items():
            assert self.front.request("POST", "/v1/cancel", {"request_id": prefix}).status == 200
            self.front.wait_for_end(job_id)

    def start_again(self, gateway: GatewayProcess) -> GatewayProcess:
        """Start a gateway that was killed, on its state directory."""
        settings = gateway.settings | {"STATE_DIR": state_of(gateway)}
        again = GatewayProcess(settings, launch=gateway.launch, machine=gateway.machine)
        return self.stack.enter_context(again)


@contextmanager
def site(network: Network | None = None, *, is_bad: bool = False) -> Iterator[Site]:
    """Start the parts: on this machine, or with certificates each on one of its own; a bad network is that of members."""
    with ExitStack() as stack:
        machines = [network.machine(is_bad=is_bad and number > 1) if network else HERE for number in range(5)]
        server = stack.enter_context(NatsServer(tls=network is not None, machine=machines[0]))
        storage = stack.enter_context(CountingStorage(machines[1]))
        as_front = server.settings("acceptor") | {"SLOTS": "0", "DRAIN_SECONDS": "0"}
        as_host = server.settings("host") | {"SLOTS": "1", "READY_KERNELS": "0", "DRAIN_SECONDS": "0"}
        front = stack.enter_context(GatewayProcess(as_front, machine=machines[2]))
        hosts = [stack.enter_context(GatewayProcess(dict(as_host), launch=HOST, machine=each)) for each in machines[3:]]
        wait_for_members([front], 3)
        yield Site(server, storage, front, hosts, stack)


def state_of(gateway: GatewayProcess) -> str:
    return gateway.settings.get("STATE_DIR", f"{gateway.state_dir}/s")


def counted(what: str, host: GatewayProcess) -> int:
    """Return what a host has counted: ``attempts``, or ``fenced``, jobs that it ended because it lost their lease."""
    text = host.request("GET", "/metrics").raw.decode()
    found = re.search(rf"^transform_gateway_{what}_total ([0-9.]+)$", text, re.MULTILINE)
    return int(float(found[1])) if found else 0


@contextmanager
def frozen(gateway: GatewayProcess) -> Iterator[None]:
    gateway.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        gateway.process.send_signal(signal.SIGCONT)


def until(look: Callable[[], Any], what: str) -> Any:
    """Return what a function returns once that is something."""
    deadline = time.monotonic() + 60
    while not (found := look()):
        assert time.monotonic() < deadline, f"{what}: not within 60 s"
        time.sleep(0.05)
    return found
