"""Starts, watches and stops one gateway in the background: behind `make run`, `status`, `logs` and `stop`.

`gateway.runfile` says which process it is, ``gateway.log`` in the state directory takes its output. Signals
go through a descriptor of the process (pidfd_open(2)), so that nobody else is ever signalled.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gateway.errors import ConfigurationError
from gateway.health import health_of
from gateway.runfile import (
    DaemonError,
    Running,
    find_running,
    locked,
    open_own,
    run_file_path,
    write_run_file,
)
from gateway.settings import Settings

START_SECONDS = 60.0
"""A first start on a cold disk imports for some ten seconds; one that takes longer than this hangs."""

STOP_MARGIN_SECONDS = 15.0
"""What a gateway may need after its drain time: jobs are answered, kernels killed, directories removed."""

LOG_KEEP_BYTES = 10_000_000
"""A log above this is put aside (once) at the next start."""

EXIT_NOT_RUNNING = 3
"""What init scripts return for "not running" (Linux Standard Base, init script actions)."""


def log_path(state_dir: Path) -> Path:
    """Return the file that takes the gateway's output."""
    return state_dir / "gateway.log"


def _url(settings: Settings) -> str:
    here = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}  # noqa: S104 - to talk to, not to listen on
    host = here.get(settings.host, settings.host)
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


def _check_port(settings: Settings) -> None:
    if settings.port == 0:
        raise DaemonError("a gateway in the background needs a known port: set PORT to something but 0")
    found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)
    family, kind, protocol, _, address = found[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            where = f"port {settings.port} on {settings.host}"
            if error.errno != errno.EADDRINUSE:
                raise DaemonError(f"cannot listen on {where}: {error.strerror}; see HOST and PORT") from None
            advice = f"choose another with PORT, for example `make run PORT={settings.port + 1}`"
            raise DaemonError(f"{where} is in use by another program; {advice}") from None


def fetch_status(url: str, timeout_seconds: float = 5.0) -> dict[str, Any] | None:
    """Return the answer of ``GET /v1/status``, also of a gateway that takes no jobs; None when no gateway answers."""
    try:
        try:
            answer = urllib.request.urlopen(f"{url}/v1/status", timeout=timeout_seconds)  # noqa: S310 - http
        except urllib.error.HTTPError as refusal:
            answer = refusal
        with answer:
            found = json.load(answer)
    except (OSError, ValueError):  # URLError and time-outs are OSErrors
        return None
    return found if isinstance(found, dict) else None


def start(settings: Settings, options: Sequence[str] = ()) -> tuple[Running, bool]:
    """Start the gateway unless it runs already, and wait until it is healthy.

    Parameters
    ----------
    settings : Settings
        As the gateway itself will read them; `state_dir`, `host` and `port` are used here.
    options : sequence of str
        Command-line options passed on to the gateway.

    Returns
    -------
    running : Running
    started : bool
        False when it was running before.

    Raises
    ------
    DaemonError
        The port is taken, or it did not become healthy; nothing is left running then.
    """
    with locked(settings.state_dir):
        running = find_running(settings.state_dir)
        if running is not None:
            _wait_until_healthy(settings, running)
            return running, False
        _check_port(settings)
        process = _spawn(settings, options)
        running = Running.of(process.pid, _url(settings))
        write_run_file(settings.state_dir, running)
        try:
            _wait_until_healthy(settings, running)
        except BaseException:
            process.terminate()
            try:
                process.wait(STOP_MARGIN_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            run_file_path(settings.state_dir).unlink()
            raise
        return running, True


def _spawn(settings: Settings, options: Sequence[str]) -> subprocess.Popen[bytes]:
    log = log_path(settings.state_dir)
    if log.exists() and log.stat().st_size > LOG_KEEP_BYTES:
        log.replace(log.with_suffix(".log.1"))
    script = Path(sys.executable).with_name("transform-gateway")
    command = [str(script)] if script.exists() else [sys.executable, "-P", "-m", "gateway"]
    output = open_own(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        # a session of its own: Ctrl-C in the terminal that started it must not stop it
        return subprocess.Popen(
            [*command, *options],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    finally:
        os.close(output)


def _wait_until_healthy(settings: Settings, running: Running) -> None:
    deadline = time.monotonic() + START_SECONDS
    problem = f"did not become healthy within {START_SECONDS:.0f} s"
    while time.monotonic() < deadline:
        if not running.alive:
            problem = "ended while it started"
            break
        status = fetch_status(running.url, 2.0)
        if status is not None and status.get("healthy"):
            return
        time.sleep(0.05)
    raise DaemonError(f"the gateway {problem}; its log says:\n{_tail(settings.state_dir, 30)}")


def stop(settings: Settings) -> bool:
    """End the gateway (SIGTERM; SIGKILL when its drain time is long over); return whether one was running."""
    with locked(settings.state_dir):
        running = find_running(settings.state_dir)
        if running is not None and not _end(running, settings.drain_seconds + STOP_MARGIN_SECONDS):
            _say("the gateway did not end in time and was killed")
        run_file_path(settings.state_dir).unlink(missing_ok=True)
        return running is not None


def _end(running: Running, patience_seconds: float) -> bool:
    try:
        descriptor = os.pidfd_open(running.pid)
    except ProcessLookupError:
        return True
    try:
        # looked at with the descriptor in hand: from here on it cannot be another process
        if not running.alive:
            return True
        signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        if select.select([descriptor], [], [], patience_seconds)[0]:
            return True
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        select.select([descriptor], [], [], STOP_MARGIN_SECONDS)
        return False
    finally:
        os.close(descriptor)


def _tail(state_dir: Path, lines: int) -> str:
    try:
        with log_path(state_dir).open(errors="replace") as log:
            return "".join(deque(log, maxlen=lines)).rstrip()
    except FileNotFoundError:
        return "(no log yet)"


def describe(state_dir: Path, running: Running) -> str:
    """Return what `make status` prints about a running gateway."""
    lines = [f"gateway   runs at {running.url} (pid {running.pid})"]
    status = fetch_status(running.url)
    if status is None:
        lines.append("health    it does not answer")
    else:
        limits, ready = status.get("limits") or {}, status.get("ready_kernels") or {}
        busy = f"{status.get('busy_slots', '?')} of {status.get('slots', '?')} slots busy"
        queue = f"queue {status.get('queue_size', '?')} of {status.get('max_queue_size', '?')}"
        memory, cpu = limits.get("memory_bytes", 0) >> 20, limits.get("cpu_seconds", "?")
        sandbox = status.get("sandbox") or {}
        root = ", but the gateway keeps root" if sandbox.get("gateway_has_root") else ""
        lines += [
            f"health    {health_of(status)}, {busy}, {queue}",
            f"kernels   {ready.get('ready', '?')} ready; {memory} MiB and {cpu} CPU seconds a job",
            f"sandbox   tier {sandbox.get('tier', '?')}{root} (`make doctor` lists the layers)",
        ]
    lines.append(f"log       {log_path(state_dir)}")
    return "\n".join(lines)


def next_steps(settings: Settings, running: Running) -> str:
    """Return the three lines that a new user needs next."""
    token = ' -H "Authorization: Bearer $AUTH_TOKEN"' if settings.auth_token else ""
    code = 'import pandas\ndef transform():\n    return pandas.DataFrame({"n": [1, 2]})'
    body = json.dumps({"request_id": 1, "code": code, "inline": True})
    return "\n".join(
        (
            "",
            f"call it   curl{token} -H 'Content-Type: application/json' -d '{body}' {running.url}/v1/execute",
            "see logs  make logs",
            "stop it   make stop",
        )
    )


def _settings(options: list[str]) -> Settings:
    from gateway.app import TransformGatewayApp

    app = TransformGatewayApp()
    app.initialize(options)
    return app.settings()


def _run(command: str, settings: Settings, options: list[str], lines: int, follow: bool) -> int:
    state_dir = settings.state_dir
    if command == "start":
        running, fresh = start(settings, options)
        _say("started" if fresh else "already running", describe(state_dir, running))
    elif command == "stop":
        _say("stopped" if stop(settings) else "not running")
    elif command == "logs":
        _say(_tail(state_dir, lines))
        if follow:
            subprocess.run(["tail", "-n", "0", "-F", str(log_path(state_dir))], check=False)
    else:
        found = find_running(state_dir)
        if found is None:
            _say("not running")
            return EXIT_NOT_RUNNING
        _say(describe(state_dir, found) if command == "status" else next_steps(settings, found))
    return 0


def _say(*texts: str) -> None:
    for text in texts:
        print(text, flush=True)  # noqa: T201


def main(arguments: list[str] | None = None) -> int:
    """Carry out one command; options that are not this module's own go to the gateway."""
    parser = argparse.ArgumentParser("python -m gateway.daemon")
    parser.add_argument("command", choices=("start", "stop", "status", "logs", "next"))
    parser.add_argument("--lines", type=int, default=100, help="how many lines `logs` prints")
    parser.add_argument("--follow", action="store_true", help="`logs` goes on until interrupted")
    known, options = parser.parse_known_args(arguments)
    try:
        return _run(known.command, _settings(options), options, known.lines, known.follow)
    except (DaemonError, ConfigurationError) as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
