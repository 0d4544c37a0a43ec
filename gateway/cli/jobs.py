"""`transform-gateway logs`, `cancel` and `status`: commands about the jobs of a running gateway."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from gateway.cli import common
from gateway.cli.display import Display, printable
from gateway.cli.history import is_job_id, job_id_of
from gateway.client.client import TransformClient
from gateway.client.errors import GatewayRefused, GatewayUnreachable
from gateway.core.events import LogLine
from gateway.process.health import health_of, sandbox_of, slow_starts_of

DESCRIPTIONS = {
    "logs": "Show the log of a job; without an id, of the job that runs, else waits, else the last one.",
    "cancel": "Cancel a job that runs or waits.",
    "status": "Show the state of the gateway (exit code 3: not healthy) or, with an id, of a job.",
}


def main(name: str, arguments: Sequence[str]) -> int:
    """Show a log or a state, or cancel a job, and return the exit code."""
    parser = common.parser(name, DESCRIPTIONS[name])
    parser.add_argument("id", nargs=None if name == "cancel" else "?", help="job_id or request_id of the job")
    if name == "logs":
        text = "follow the log until the job is finished; the exit code is 0 also if the job fails"
        parser.add_argument("--follow", action="store_true", help=text)
    if name == "status":
        parser.add_argument("--json", action="store_true", help="print the whole response as JSON")
    common.add_gateway(parser)
    options = parser.parse_args(arguments)
    action = {"logs": _logs, "cancel": _cancel, "status": _status}[name]
    return common.guarded(lambda: action(common.client_of(options), options))


def _logs(client: TransformClient, options: argparse.Namespace) -> int:
    if options.follow:
        return _follow(client, options.id)
    display = Display(progress=False)
    for line in _lines(client, options.id):
        display(line)
    return 0


def _lines(client: TransformClient, text: str | None) -> list[LogLine]:
    """Return the log of a job, also of one that ended too long ago to be known by its request_id."""
    try:
        return client.logs(text)
    except GatewayRefused as refusal:
        if text is None or refusal.status != 404:
            raise
    return client.job_logs(job_id_of(client, text))


def _follow(client: TransformClient, text: str | None) -> int:
    job = _current_job(client) if text is None else client.job(job_id_of(client, text))
    if text is None:
        sys.stderr.write(f"following job {printable(str(job['request_id']))}\n")
    with Display() as display:

        def tell(error: GatewayUnreachable) -> None:
            display(LogLine(time.time(), "stderr", common.lost_text(error)))

        client.follow_job(job["job_id"], display, tell)
    job = client.job(job["job_id"])
    name = printable(str(job["request_id"]))
    # the log ends with the reason of a failure; it was shown, so the exit code is 0, as that of `kubectl logs`
    if job["code"] == "ok":
        sys.stderr.write(f"job {name} succeeded: {common.counted(job['rows'] or 0, 'row')}\n")
    else:
        sys.stderr.write(f"job {name} failed: {job['code']}\n")
    return 0


def _current_job(client: TransformClient) -> dict[str, Any]:
    """Return the job that runs, else the next one that waits, else the last one."""
    for query in ({"state": "running"}, {"state": "queued", "sort": "created_at"}, {}):
        if found := client.jobs(**query, limit=1)["jobs"]:
            job: dict[str, Any] = found[0]
            return job
    raise common.UsageError("there is no job yet")


def _cancel(client: TransformClient, options: argparse.Namespace) -> int:
    calls = [partial(client.cancel, request_id) for request_id in common.request_ids(options.id)]
    if is_job_id(options.id):
        calls.append(partial(client.cancel_job, options.id))
    *first, last = calls
    for call in first:
        try:
            call()
        except GatewayRefused as refusal:
            if refusal.status != 404:
                raise
        else:
            break
    else:
        last()
    sys.stdout.write(f"cancelling job {options.id}\n")
    return 0


def _status(client: TransformClient, options: argparse.Namespace) -> int:
    try:
        status = client.status(options.id)
    except GatewayRefused as refusal:
        if options.id is None or refusal.status != 404:
            raise
        status = client.job(job_id_of(client, options.id))
    text = json.dumps(status, indent=2) if options.json else _described(status, options.id is not None)
    sys.stdout.write(text + "\n")
    return 0 if options.id is not None or status.get("healthy") else common.EXIT_UNREACHABLE


def _described(status: dict[str, Any], is_job: bool) -> str:
    if is_job:
        result = status.get("result")
        stage = "" if result else status.get("stage") or ""  # that of a finished job is the last that it was in
        lines = [f"{status.get('request_id')}: {status.get('state')} {stage}".rstrip()]
        if isinstance(result, dict):
            lines.append(
                f"{result.get('code')}, exit code {result.get('exit_code')}: {result.get('error') or 'success'}"
            )
        return "\n".join(printable(line) for each in lines for line in each.splitlines())
    metrics, kernels = status.get("metrics") or {}, status.get("kernels") or {}
    return "\n".join(
        (
            f"version   {status.get('version')}",
            f"health    {health_of(status)}",
            *slow_starts_of(status),
            f"slots     {status.get('busy_slots')} of {status.get('slots')} busy",
            f"queue     {status.get('queue_size')} of {status.get('max_queue_size')}",
            f"held      {kernels.get('held', 0)} of {kernels.get('held_limit', 0)} kernels",
            f"personal  {kernels.get('personal', 0)} of {kernels.get('personal_limit', 0)} kernels",
            f"jobs      {metrics.get('completed')} finished, {metrics.get('failed')} of them failed",
            f"sandbox   {sandbox_of(status)}",
            *_cluster(status.get("cluster") or {}, status.get("slots")),
        )
    )


def _cluster(cluster: dict[str, Any], slots: int | None) -> Iterator[str]:
    if cluster:
        members = common.counted(len(cluster.get("members") or ()), "member")
        missing = f"; missing: {', '.join(cluster['missing'])}" if cluster.get("missing") else ""
        yield f"cluster   {members}{'' if slots else ', no slots'}{missing}"
