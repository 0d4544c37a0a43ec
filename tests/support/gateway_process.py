"""A real gateway as a child process, for tests that look at it from outside."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from gateway.process.pidfile import pid_file_path
from tests.support.machines import HERE, Machine

START_SECONDS = 60
STOP_SECONDS = 60
TOKEN = "test-token-1234"
LISTENING = re.compile(r"listening on (https?://\S+?),")

#: the variables that a gateway under test inherits; a developer's own AUTH_TOKEN or SLOTS must not change a test
INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "VIRTUAL_ENV", "PYTHONPATH", "PYTHONSAFEPATH", "TMPDIR")


@dataclass
class Answer:
    """Status, headers and parsed body of one HTTP answer."""

    status: int
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.raw)


@dataclass
class GatewayProcess:
    """Starts `python -m gateway` with settings from the environment, and ends it with everything it started.

    `python` is another interpreter than that of the tests, `launch` replaces ``-m gateway``, and `owner_uid` the owner of
    the directory in which the state directory is made. It runs on `machine`.
    """

    settings: dict[str, str] = field(default_factory=dict)
    token: str = TOKEN
    launch: tuple[str, ...] = ("-m", "gateway")
    owner_uid: int = -1
    machine: Machine = HERE
    python: str = sys.executable
    url: str = ""
    port: int = 0
    output: list[str] = field(default_factory=list)

    def __enter__(self) -> GatewayProcess:
        # short, because sockets live below it, and world-traversable, because kernels run as other users
        self.state_dir = Path(tempfile.mkdtemp(prefix="tg-", dir="/tmp"))
        self.state_dir.chmod(0o755)
        os.chown(self.state_dir, self.owner_uid, -1)
        environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
        environment |= {"AUTH_TOKEN": self.token, "PORT": "0", "STATE_DIR": str(self.state_dir / "s"), **self.settings}
        self.process = subprocess.Popen(
            [*self.machine.prefix, self.python, *self.launch], env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
            cwd=Path(__file__).parents[2],
        )  # fmt: skip
        self._settled = threading.Event()
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        try:
            self._wait_until_listening()
        except BaseException:
            self.stop(signal.SIGKILL)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        """End the gateway alone, at once; its state directory stays for another one."""
        self.process.kill()
        self.process.wait(STOP_SECONDS)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the end, and return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            self._reader.join(STOP_SECONDS)
            if self.process.stderr is not None:
                self.process.stderr.close()
            shutil.rmtree(self.state_dir, ignore_errors=True)
        return self.process.returncode

    def request(
        self, method: str, path: str, body: Any = None, *, headers: dict[str, str] | None = None, timeout: float = 60
    ) -> Answer:
        """Send one request with the token and return the whole answer."""
        sent = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"} | (headers or {})
        data = body if isinstance(body, bytes | type(None)) else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.sock = self.machine.connect("127.0.0.1", self.port, timeout)
            connection.request(method, path, data, {k: v for k, v in sent.items() if v})
            answer = connection.getresponse()
            return Answer(answer.status, {k.title(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def execute(self, code: str, request_id: int | str = 1, **fields: Any) -> Answer:
        """Run a transform; without URLs its result is kept by the gateway.

        One that is not answered in time fails with what the gateway says of it.
        """
        request = {"code": code, "request_id": request_id, "timeout": 30, **fields}
        try:
            return self.request("POST", "/v1/execute", request)
        except TimeoutError:
            job = self.request("GET", f"/v1/status?request_id={urllib.parse.quote(str(request_id))}").raw
            status = self.request("GET", "/v1/status").raw
            text = "\n".join(self.output[-30:])
            raise AssertionError(f"job {request_id!r} got no answer\n{job!r}\n{status!r}\n{text}") from None

    def log(self, request_id: int | str) -> list[dict[str, Any]]:
        """Return the events of a job, live or finished."""
        answer = self.request("GET", f"/v1/logs?request_id={urllib.parse.quote(str(request_id))}")
        return answer.body["events"] if answer.status == 200 else []

    def release_all(self) -> None:
        """End the held kernels, of which there may be a few at a time only."""
        for kernel in self.request("GET", "/v1/held").body["held"]:
            self.request("POST", "/v1/release", {"id": kernel["id"]})

    def wait_for_line(self, request_id: int | str, text: str, seconds: float = 60) -> None:
        """Return when the job has printed `text`: the log is polled, as Metabase does."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if any(text in event["message"] for event in self.log(request_id)):
                return
            time.sleep(0.05)
        raise AssertionError(f"{text!r} did not show within {seconds} s")

    def wait_for_stage(self, request_id: str, stage: str, seconds: float = 60) -> None:
        """Return when the job has a slot and is in `stage`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            status = self.request("GET", f"/v1/status?request_id={urllib.parse.quote(request_id)}")
            if status.body.get("stage") == stage:
                return
            time.sleep(0.01)
        raise AssertionError(f"the job {request_id} was not in stage {stage} within {seconds} s")

    def wait_for_end(self, job_id: str, seconds: float = 60) -> dict[str, Any]:
        """Return the job of the history when it is finished."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            job: dict[str, Any] = self.request("GET", f"/v1/jobs/{job_id}").body
            if job["state"] == "finished":
                return job
            time.sleep(0.05)
        raise AssertionError(f"the job {job_id} is not finished within {seconds} s")

    def _read_log(self) -> None:
        """Keep the pipe empty: a gateway whose log nobody reads would come to stand at 64 KiB."""
        assert self.process.stderr is not None
        for raw in self.process.stderr:
            line = raw.decode(errors="replace").rstrip("\n")
            self.output.append(line)
            if not self.url and (found := LISTENING.search(line)):
                self.url = found.group(1)
                self.port = int(self.url.rsplit(":", 1)[1])
                self._settled.set()
        self._settled.set()

    def _wait_until_listening(self) -> None:
        self._settled.wait(START_SECONDS)
        if not self.url:
            raise AssertionError("the gateway did not start:\n" + "\n".join(self.output[-30:]))


def gateway_command(*options: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run `transform-gateway` to its end, with these settings and no others in its environment."""
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/tmp"), **settings}
    return subprocess.run(
        [sys.executable, "-m", "gateway", *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def command_of(pid: int) -> bytes:
    """Return the command line of a process; empty if it has ended, as kernels do at any time."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def descendants(pid: int) -> set[int]:
    """Return the pids of all processes below `pid`."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found: set[int] = set()
    todo = [pid]
    while todo:
        for child in children.get(todo.pop(), []):
            found.add(child)
            todo.append(child)
    return found


def ephemeral_gateway_below(pid: int) -> tuple[int, Path]:
    """Return the pid and the directory of the gateway that a process has started for itself.

    Its environment says neither: Linux shows that of a gateway to root alone.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        below = descendants(pid)
        for directory in Path("/tmp").glob("tg-*"):
            with contextlib.suppress(OSError, ValueError):  # another user's, or one that ends
                found = json.loads(pid_file_path(directory / "s").read_text())["pid"]
                if found in below:
                    return found, directory
        time.sleep(0.02)
    raise AssertionError(f"the process {pid} has started no gateway")


def alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
