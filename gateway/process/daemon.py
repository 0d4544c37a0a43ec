"""Start and stop a gateway in the background: the commands behind `make run`, `status`, `logs` and `stop`.

The pid file identifies its process, and its output goes to ``gateway.log`` in the state directory. Signals go through
a pidfd (pidfd_open(2)), so that no other process is ever signalled. A supervisor or systemd would need an installation
of its own before `make run` works on a laptop.
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
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from gateway.core.errors import ConfigurationError
from gateway.core.settings import Settings
from gateway.core.standard_output import with_output
from gateway.process.health import fetch_status, health_of, sandbox_of, slow_starts_of, wait_until_up
from gateway.process.pidfile import DaemonError, Running, find_running, locked, open_own

#: A first start on a cold disk takes some ten seconds for imports; one that takes longer than this hangs.
START_SECONDS = 60.0

#: Time after the drain time in which a gateway responds to its last jobs, kills kernels and removes directories.
STOP_MARGIN_SECONDS = 15.0

#: Size at which the log is renamed to ``gateway.log.1`` at the next start.
LOG_KEEP_BYTES = 10_000_000

RUNS_ALREADY = "already running with the settings of its start; `make restart` starts it with those of now"

#: Exit code of init scripts for "not running" (Linux Standard Base, init script actions).
EXIT_NOT_RUNNING = 3


class _Ended(DaemonError):
    """The gateway ended instead of becoming healthy."""


def log_path(state_dir: Path) -> Path:
    """Return the file with the gateway's output."""
    return state_dir / "gateway.log"


def _check_port(settings: Settings) -> None:
    try:
        host = settings.host or None  # all addresses
        found = socket.getaddrinfo(host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        where = f"port {settings.port} on {settings.host or 'all addresses'}"
        if error.errno != errno.EADDRINUSE:
            raise DaemonError(f"cannot listen on {where}: {error.strerror}; change HOST or PORT") from None
        advice = f"choose another with PORT, for example `make run PORT={settings.port + 1}`"
        raise DaemonError(f"{where} is in use by another program; {advice}") from None


def start(settings: Settings, options: Sequence[str] = ()) -> tuple[Running, bool]:
    """Start the gateway unless it runs already, and wait until it is healthy.

    Parameters
    ----------
    settings : Settings
        The settings that the gateway will load; `state_dir`, `host` and `port` are used here.
    options : sequence of str
        Command-line options for the gateway.

    Returns
    -------
    running : Running
        The gateway.
    started : bool
        False when it was running before.

    Raises
    ------
    DaemonError
        The port is in use, or the gateway did not become healthy and was ended.
    """
    state_dir = settings.state_dir
    with locked(state_dir):
        running = find_running(state_dir)
        if running is not None:
            with suppress(_Ended):  # it was being stopped, or it was killed a moment ago
                return _wait_until_healthy(state_dir, lambda: running.alive), False
        _check_port(settings)
        process = _spawn(settings, options)
        try:
            return _wait_until_healthy(state_dir, lambda: process.poll() is None), True
        except BaseException:
            process.terminate()
            try:
                process.wait(STOP_MARGIN_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            raise


def _spawn(settings: Settings, options: Sequence[str]) -> subprocess.Popen[bytes]:
    log = log_path(settings.state_dir)
    if log.exists() and log.stat().st_size > LOG_KEEP_BYTES:
        log.replace(log.with_suffix(".log.1"))
    script = Path(sys.executable).with_name("transform-gateway")
    command = [str(script)] if script.exists() else [sys.executable, "-P", "-m", "gateway"]
    output = open_own(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        # its own session: Ctrl-C in the terminal must not stop it
        return subprocess.Popen(
            [*command, *options],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    finally:
        os.close(output)


def _wait_until_healthy(state_dir: Path, lives: Callable[[], bool]) -> Running:
    running = wait_until_up(state_dir, lives, lambda status: bool(status.get("healthy")), START_SECONDS)
    if running is not None:
        return running
    log_says = f"its log says:\n{_tail(state_dir, 30)}"
    if lives():
        raise DaemonError(f"the gateway did not become healthy within {START_SECONDS:.0f} s; {log_says}")
    raise _Ended(f"the gateway ended while it started; {log_says}")


def stop(settings: Settings) -> bool:
    """Stop the gateway and return whether one was running; it is killed when it outlives its drain time."""
    if not settings.state_dir.exists():  # the lock would make it
        return False
    with locked(settings.state_dir):
        running = find_running(settings.state_dir)
        if running is not None and not _end(running, settings.drain_seconds + STOP_MARGIN_SECONDS):
            _say("the gateway did not end in time and was killed")
        return running is not None


def _end(running: Running, patience_seconds: float) -> bool:
    try:
        descriptor = os.pidfd_open(running.pid)
    except ProcessLookupError:
        return True
    try:
        # checked after the pidfd was opened, which from now on refers to this process only
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
    """Return the description of a running gateway for `make status`."""
    lines = [f"gateway   running at {running.url} (pid {running.pid})"]
    status = fetch_status(running)
    if status is None:
        lines.append("health    it does not answer")
    elif "healthy" not in status:
        lines.append("role      host of a cluster: the status of a member counts its slots")
    else:
        limits, ready = status.get("limits") or {}, status.get("ready_kernels") or {}
        busy = f"{status.get('busy_slots', '?')} of {status.get('slots', '?')} slots busy"
        queue = f"queue {status.get('queue_size', '?')} of {status.get('max_queue_size', '?')}"
        memory, cpu = limits.get("memory_bytes", 0) >> 20, limits.get("cpu_seconds", "?")
        layers = " (`make doctor` lists the layers)" if status.get("sandbox") else ""
        lines += [
            f"health    {health_of(status)}, {busy}, {queue}",
            f"kernels   {ready.get('ready', 0)} ready; {memory} MiB and {cpu} CPU seconds a job",
            *slow_starts_of(status),
            f"sandbox   {sandbox_of(status)}{layers}",
        ]
    lines.append(f"log       {log_path(state_dir)}")
    return "\n".join(lines)


def next_steps(settings: Settings, running: Running) -> str:
    """Return commands for the next steps of a new user."""
    token = ' -H "Authorization: Bearer $AUTH_TOKEN"' if settings.auth_token or settings.auth_token_file else ""
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
    from gateway.process.app import TransformGatewayApp

    app = TransformGatewayApp()
    app.initialize(options)
    return app.settings()


def _run(command: str, settings: Settings, options: list[str], lines: int, follow: bool) -> int:
    state_dir = settings.state_dir
    if command == "start":
        running, fresh = start(settings, options)
        _say("started" if fresh else RUNS_ALREADY, describe(state_dir, running))
    elif command == "stop":
        _say("stopped" if stop(settings) else _not_running(state_dir))
    elif command == "logs":
        _say(_tail(state_dir, lines))
        if follow:
            subprocess.run(["tail", "-n", "0", "-F", str(log_path(state_dir))], check=False)
    else:
        found = find_running(state_dir)
        if found is None:
            _say(_not_running(state_dir))
            return EXIT_NOT_RUNNING
        _say(describe(state_dir, found) if command == "status" else next_steps(settings, found))
    return 0


def _not_running(state_dir: Path) -> str:
    return "not running" if state_dir.exists() else f"not running: there is no state directory {state_dir}"


def _say(*texts: str) -> None:
    for text in texts:
        print(text, flush=True)  # noqa: T201


def main(arguments: list[str] | None = None) -> int:
    """Run one command; unknown options are passed to the gateway."""
    parser = argparse.ArgumentParser("python -m gateway.process.daemon")
    parser.add_argument("command", choices=("start", "stop", "status", "logs", "next"))
    parser.add_argument("--lines", type=int, default=100, help="how many lines `logs` prints")
    parser.add_argument("--follow", action="store_true", help="print new lines until interrupted")
    known, options = parser.parse_known_args(arguments)
    if known.lines < 0:
        parser.error(f"--lines={known.lines}: expected a number of at least 0")
    try:
        return _run(known.command, _settings(options), options, known.lines, known.follow)
    except (DaemonError, ConfigurationError) as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(with_output(main))
