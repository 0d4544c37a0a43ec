"""The two servers under measurement as child processes, and what /proc says about them."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from tests.support.ports import free_port

HEALTHY_SECONDS = 60.0
STOP_SECONDS = 40.0
GATEWAY_COMMAND = str(Path(sys.executable).with_name("transform-gateway"))


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answers: its address and its process."""

    name: str
    url: str
    process: subprocess.Popen[bytes]
    log_path: Path

    @property
    def pid(self) -> int:
        return self.process.pid


@contextlib.contextmanager
def gateway(slots: int = 1, command: Sequence[str] = (), **settings: str) -> Iterator[Server]:
    """Run a gateway of its own over a fresh state directory; keyword arguments are environment variables."""
    with _state_dir() as directory:
        server = launch_gateway(directory, slots, command, **settings)
        try:
            wait_until_healthy(server)
            yield server
        finally:
            end(server)


def launch_gateway(directory: Path, slots: int = 1, command: Sequence[str] = (), **settings: str) -> Server:
    """Start a gateway and return at once; `command` starts another one than ``transform-gateway``."""
    port = free_port()
    ours = {"HOST": "127.0.0.1", "PORT": str(port), "STATE_DIR": str(directory / "s"), "SLOTS": str(slots)}
    environment = _plain_environment() | ours | {"AUTH_TOKEN": ""} | settings
    log_path = directory / "gateway.log"
    with log_path.open("wb") as log:
        process = _spawn([*command] or [GATEWAY_COMMAND], log, environment)
    return Server("gateway", f"http://127.0.0.1:{port}", process, log_path)


@contextlib.contextmanager
def subprocess_runner(slots: int = 1) -> Iterator[Server]:
    """Run the subprocess design on a free port."""
    with _state_dir() as directory:
        port_file, log_path = directory / "port", directory / "runner.log"
        command = [sys.executable, "-m", "tests.benchmarks.baseline.subprocess_runner"]
        command += ["--slots", str(slots), "--port-file", str(port_file)]
        with log_path.open("wb") as log:
            process = _spawn(command, log, _plain_environment())
        server = Server("subprocess design", "", process, log_path)
        try:
            deadline = time.monotonic() + HEALTHY_SECONDS
            while not port_file.exists():
                _check_alive(server, deadline)
                time.sleep(0.01)
            server = Server(server.name, f"http://127.0.0.1:{port_file.read_text()}", process, log_path)
            wait_until_healthy(server)
            yield server
        finally:
            end(server)


def _spawn(command: list[str], log: IO[bytes], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)


def _plain_environment() -> dict[str, str]:
    settings = {"AUTH_TOKEN", "HOST", "PORT", "STATE_DIR", "SLOTS"}
    return {name: value for name, value in os.environ.items() if name not in settings}


@contextlib.contextmanager
def _state_dir() -> Iterator[Path]:
    # kernels run as users of their own when root starts the gateway: they must be able to pass through here
    path = Path(tempfile.mkdtemp(prefix="bench-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def wait_until_healthy(server: Server) -> None:
    """Return when the server answers its status request."""
    deadline = time.monotonic() + HEALTHY_SECONDS
    while True:
        try:
            urllib.request.urlopen(f"{server.url}/healthz/live", timeout=5).close()
            return
        except OSError:
            _check_alive(server, deadline)
            time.sleep(0.01)


def _check_alive(server: Server, deadline: float) -> None:
    if server.process.poll() is not None or time.monotonic() > deadline:
        tail = "\n".join(server.log_path.read_text(errors="replace").splitlines()[-20:])
        raise RuntimeError(f"the {server.name} did not start; its log ends:\n{tail}")


def end(server: Server) -> None:
    """Stop the server; its children are its own affair."""
    server.process.terminate()
    try:
        server.process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.process.kill()
        server.process.wait()


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """The resources of one process; memory in bytes, None where /proc does not tell us."""

    pid: int
    role: str
    pss_bytes: int | None
    private_dirty_bytes: int | None
    descriptors: int | None
    threads: int


def facts(pid: int, role: str) -> ProcessFacts:
    """Read what /proc tells about one process (proc_pid_smaps(5))."""
    sizes: dict[str, int] = {}
    with contextlib.suppress(PermissionError):  # not dumpable and of another user: only root may look
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
            name, amount = line.split()[:2]
            sizes[name.rstrip(":")] = int(amount) * 1024
    descriptors: int | None = None
    with contextlib.suppress(PermissionError):
        descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    threads = len(list(Path(f"/proc/{pid}/task").iterdir()))
    return ProcessFacts(pid, role, sizes.get("Pss"), sizes.get("Private_Dirty"), descriptors, threads)


def processor_seconds(server: Server) -> float:
    """Return the processor time of a server, of the processes below it, and of those that they have waited for."""
    root = psutil.Process(server.pid)
    seconds = 0.0
    for process in (root, *root.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            seconds += times.user + times.system + times.children_user + times.children_system
    return seconds


def family(gateway_pid: int) -> list[ProcessFacts]:
    """Find the processes of a gateway by who started whom, and read what each holds.

    The supervisor is the gateway's first child, the launcher the supervisor's only one, and the fork server the
    launcher's oldest. Every other child of the launcher belongs to a kernel, because the launcher is their subreaper.
    Those that are process 1 of a namespace are inits.
    """
    found = [facts(gateway_pid, "gateway")]
    for supervisor in _children(psutil.Process(gateway_pid))[:1]:
        found.append(facts(supervisor.pid, "supervisor"))
        for launcher in _children(supervisor):
            found.append(facts(launcher.pid, "launcher"))
            for number, child in enumerate(_children(launcher)):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError, psutil.NoSuchProcess):
                    role = "kernel's init" if _is_init(child.pid) else "ready kernel"
                    is_fork_server = number == 0 and "fork_server" in " ".join(child.cmdline())
                    found.append(facts(child.pid, "fork server" if is_fork_server else role))
    return found


def _children(parent: psutil.Process) -> list[psutil.Process]:
    """Return the children, the oldest first."""
    return sorted(parent.children(), key=lambda child: child.create_time())


def _is_init(pid: int) -> bool:
    """Return whether the process is the first of a pid namespace below ours (proc_pid_status(5), NSpid)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    ids = next((line.split()[1:] for line in lines if line.startswith("NSpid:")), [])
    return len(ids) > 1 and ids[-1] == "1"
