"""The real application and the real job service over a runner that does what a job's code says, without kernels."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tornado.httpclient import HTTPResponse

from gateway.core.cancellation import StopSignal
from gateway.core.errors import FAILURES, FailureCode, JobFailed
from gateway.core.events import JobLog, Progress
from gateway.core.job import HeldKernel, Job, KeptDelivery, OutputFacts, TableFacts, Verdict
from gateway.core.uploads import Uploads
from gateway.jobs.runner import KeptResult, RunnerStatus, SlotCount
from gateway.local.slots import Slots
from gateway.storage import FetchedTable
from gateway.storage.outputs.job_files import open_output
from gateway.storage.outputs.kept_results import KeptResultStore
from kernel_spec.packages import Package

TOKEN = "s3cret-t0ken"
ROWS = b'{"x":1}\n{"x":2}\n'
READ = (TableFacts("orders", 3, 42, (("id", "Integer"), ("note", ""))),)
#: The progress that `ScriptedRun` reports, as the API answers it.
FETCHED = {"stage": "fetch", "table": "orders", "rows": 3, "bytes": 42} | {
    "bar": None,
    "description": "",
    "done": None,
    "total": None,
}
MANIFEST = {"fields": [{"name": "x", "base_type": "Integer"}]}


@dataclass
class ScriptedRun:
    """One job: its code is ``ok``, the name of a failure code, or ``hold`` (until released or stopped)."""

    runner: ScriptedRunner
    job: Job
    log: JobLog
    stop: StopSignal
    execution_id: str
    verdict: Verdict | None = None
    lost_verdict: Verdict | None = None
    answered: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def inputs(self) -> tuple[FetchedTable, ...]:
        return self.runner.inputs

    def take_slot(self) -> bool:
        return self.runner.pool.take()

    async def execute(self) -> None:
        self.log.line("stdout", "begin")
        self.log.emit(Progress("fetch", "orders", 3, 42))
        self.runner.begun.set()
        try:
            if self.job.code == "hold":
                await self.stop.guard(self.runner.release.wait())
            elif self.job.code != "ok":
                code = FailureCode(self.job.code)
                raise JobFailed(code, self.runner.message or FAILURES[code].meaning)
        except JobFailed as failure:
            self.fail(Verdict(failure.code, failure.message, failure.exit_code, 1.25))
            return
        self.log.line("stderr", "end")
        facts = OutputFacts(2, 1, len(ROWS), "ab" * 32, self.job.output_format, (("id", "Integer"),))
        stages = {"claim": 0.01, "execute": 0.5}
        self.verdict = Verdict(None, "", 0, 1.5, stages, facts, peak_memory_bytes=50_000_000, bytes_in=42, tables=READ)

    def leave_slot(self) -> None:
        self.runner.pool.leave(self.answered, self.terminate)

    async def terminate(self) -> None:
        """Nothing of it lives already."""

    async def deliver(self) -> Verdict:
        assert self.verdict is not None
        if isinstance(self.job.delivery, KeptDelivery):
            await self.runner.keep(self.execution_id, self.verdict)
        return self.verdict

    def fail(self, verdict: Verdict) -> None:
        self.verdict = verdict

    async def close(self) -> None:
        self.answered.set()
        self.runner.closed.append(self.job)


@dataclass
class ScriptedRunner:
    """Stands in for the machine that runs jobs."""

    directory: Path
    results: KeptResultStore
    slot_count: int
    jobs: list[Job] = field(default_factory=list)
    uploads: list[dict[str, bytes]] = field(default_factory=list)
    closed: list[Job] = field(default_factory=list)
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event = field(default_factory=asyncio.Event)
    message: str = ""
    healthy: bool = True
    data: bytes = ROWS
    inputs: tuple[FetchedTable, ...] = ()

    def __post_init__(self) -> None:
        self.pool = Slots(self.slot_count, lambda: False)

    def on_slot_free(self, callback: Callable[[], None]) -> None:
        self.pool.on_free(callback)

    def slots(self) -> SlotCount:
        return self.pool.count()

    def open(self, job: Job, log: JobLog, stop: StopSignal, execution_id: str, uploads: Uploads | None) -> ScriptedRun:
        self.jobs.append(job)
        files = uploads.directory.iterdir() if uploads is not None else ()
        self.uploads.append({path.name: path.read_bytes() for path in files})
        return ScriptedRun(self, job, log, stop, execution_id)

    def has_output(self, execution_id: str) -> bool:
        return False

    def runs_elsewhere(self, job: Job) -> bool:
        return False

    def status(self) -> RunnerStatus:
        return RunnerStatus(
            healthy=self.healthy,
            slots=self.slots(),
            details={
                "ready_kernels": {"ready": 1, "starting": 0, "hits": 3, "misses": 1},
                "kernels": {},
                "sandbox": {
                    "tier": "B",
                    "layers": [
                        {"layer": name, "state": state}
                        for name, state in (("seccomp", "on"), ("landlock", "on"), ("user_namespace", "off"))
                    ],
                },
                "fork_server": {"alive": True, "restarts": 2},
            },
        )

    async def packages(self, *, renew: bool = False) -> list[Package]:
        return [Package("pandas", "2.3.3", preloaded=True), Package("scipy", "1.16.0", preloaded=False)]

    def held_kernels(self) -> list[HeldKernel]:
        return []

    def kept_result(self, execution_id: str) -> KeptResult | None:
        return self.results.get(execution_id)

    def drop_result(self, execution_id: str) -> None:
        self.results.drop(execution_id)

    async def aclose(self) -> None:
        self.release.set()
        await self.pool.aclose()
        self.results.close()

    async def keep(self, execution_id: str, verdict: Verdict) -> None:
        if not verdict.ok:
            await self.results.keep(execution_id, None, None, b"")
            return
        path = self.directory / f"{execution_id}.out"
        path.write_bytes(self.data)
        with open_output(path, owner_uid=None, max_bytes=1 << 30) as output:
            await self.results.keep(execution_id, output, json.dumps(MANIFEST).encode(), b'{"message":"begin"}\n')


class Caller:
    """Sends requests as Metabase does and parses what comes back."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def send(
        self, method: str, path: str, body: Any = None, *, token: str | None = TOKEN, **headers: str
    ) -> HTTPResponse:
        sent = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        data = body if isinstance(body, bytes | type(None)) else json.dumps(body).encode()
        answer: HTTPResponse = await self._client.fetch(
            path, method=method, body=data, headers=sent, raise_error=False, allow_nonstandard_methods=True
        )
        return answer

    async def get(self, path: str, **query: str | int) -> HTTPResponse:
        return await self.send("GET", f"{path}?{urlencode(query)}" if query else path)

    async def execute(self, code: str = "ok", request_id: Any = 1, **fields: Any) -> HTTPResponse:
        return await self.send("POST", "/v1/execute", {"code": code, "request_id": request_id, **fields})


def body(answer: HTTPResponse) -> dict[str, Any]:
    """Return the JSON object of an answer; everything here is one."""
    assert answer.headers["Content-Type"] == "application/json"
    value = json.loads(answer.body)
    assert isinstance(value, dict)
    return value


@dataclass
class Raw:
    """The answer over a plain socket."""

    data: bytes
    is_closed: bool

    @property
    def status(self) -> int:
        return int(self.data.split(b" ", 2)[1])

    @property
    def body(self) -> Any:
        return json.loads(self.data.partition(b"\r\n\r\n")[2])


async def raw(port: int, data: bytes, *, half_close: bool = False, seconds: float = 60) -> Raw:
    """Send bytes as they are; return all that came until the server closed, or for `seconds`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = b""
    try:
        writer.write(data)
        if half_close:
            writer.write_eof()
        async with asyncio.timeout(seconds):
            while chunk := await reader.read(65_536):
                received += chunk
        return Raw(received, True)
    except TimeoutError:
        return Raw(received, False)
    except ConnectionError:
        return Raw(received, True)
    finally:
        writer.close()


def head(method: str, path: str, *lines: str, token: str | None = TOKEN) -> bytes:
    """Return a request's head; further header lines as given."""
    sent = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", *lines]
    if token is not None:
        sent.append(f"Authorization: Bearer {token}")
    return ("\r\n".join(sent) + "\r\n\r\n").encode("latin-1")


async def eventually(holds: Callable[[], Any]) -> bool:
    """Wait until `holds()`; nothing tells about these things, so it is asked again and again."""
    deadline = time.monotonic() + 50
    while not holds():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.01)
    return True
