"""The health of a gateway as text, from the answer of ``GET /v1/status``."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gateway.process.pidfile import Running, find_running
from gateway.process.tls import local_trust


def fetch_status(running: Running, timeout_seconds: float = 5.0) -> dict[str, Any] | None:
    """Return the answer of ``GET /v1/status``, also of a gateway that accepts no jobs; None without an answer."""
    try:
        https = urllib.request.HTTPSHandler(context=local_trust(running.cert))
        # it is on this machine, which a proxy does not reach
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), https)
        try:
            response = opener.open(f"{running.url}/v1/status", timeout=timeout_seconds)
        except urllib.error.HTTPError as refusal:
            response = refusal
        with response:
            found = json.load(response)
    except (OSError, ValueError):  # URLError and timeouts are OSErrors
        return None
    return found if isinstance(found, dict) else None


def wait_until_up(
    state_dir: Path, lives: Callable[[], bool], is_up: Callable[[Mapping[str, Any]], bool], timeout_seconds: float
) -> Running | None:
    """Return the gateway of `state_dir` once its status is as wanted.

    Parameters
    ----------
    state_dir : Path
        Of the gateway that is starting.
    lives : callable
        Whether the process that is expected to become this gateway still runs.
    is_up : callable
        Decides by the answer of ``GET /v1/status``.
    timeout_seconds : float
        The longest wait.

    Returns
    -------
    Running or None
        None when the process ended or the time is over.
    """
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline and lives():
        running = find_running(state_dir)
        if running is not None and (status := fetch_status(running, 2.0)) is not None and is_up(status):
            return running
        time.sleep(0.02)
    return None


def health_of(status: Mapping[str, Any]) -> str:
    """Return ``ok``, or ``not healthy`` with the reason; in a cluster also that no machine runs jobs."""
    if status.get("healthy"):
        runs_none = status.get("cluster") and status.get("slots") == 0
        return "ok, but no machine of the cluster runs jobs: accepted ones wait" if runs_none else "ok"
    parts = ("internal_s3", "kernels", "disk", "launcher", "cluster")
    s3, kernels, disk, launcher, cluster = (status.get(name) or {} for name in parts)
    if status.get("draining"):
        why = "it is stopping and waits for running jobs"
    elif status.get("paused"):
        why = "it is paused; `transform-gateway resume` ends the pause"
    elif disk.get("problem"):
        why = str(disk["problem"])
    elif s3.get("failure"):
        why = str(s3["failure"])
    elif cluster.get("connected") is False:
        why = "no broker of the cluster answers; it accepts jobs again when one does"
    elif launcher.get("up") is False:
        why = "the launcher of kernels has ended and is being restarted"
    elif kernels.get("last_start_failure"):
        why = f"kernels do not start: {kernels['last_start_failure']}"
    else:
        why = "no kernel is ready yet"
    return f"not healthy: {why}"


def sandbox_of(status: Mapping[str, Any]) -> str:
    """Return the tier of the sandbox, or that this gateway runs no jobs."""
    sandbox = status.get("sandbox") or {}
    root = ", but the gateway keeps root" if sandbox.get("gateway_has_root") else ""
    return f"tier {sandbox['tier']}{root}" if "tier" in sandbox else "none: this gateway only accepts jobs (SLOTS=0)"


def slow_starts_of(status: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line if kernels start slowly, because the fork server is down; they wait for its first start."""
    fork_server = status.get("fork_server") or {}
    if fork_server.get("state") == "waiting":
        advice = "until it is ready, each kernel starts as a new Python process"
        yield f"forking   the fork server {fork_server.get('reason')} and is started again; {advice}"
