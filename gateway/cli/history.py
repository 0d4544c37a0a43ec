"""`transform-gateway jobs` and `result`: the history of a running gateway, and the results that it keeps."""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from gateway.cli import common
from gateway.cli.display import RunningJobs, printable
from gateway.client.client import TransformClient
from gateway.client.errors import GatewayRefused
from gateway.core.formats import FORMATS, DataFormat
from gateway.table_files.kinds import FileKind, kind_of
from gateway.table_files.writing import UnwritableResult, write_as

DESCRIPTIONS = {
    "jobs": "List jobs, the newest last.",
    "result": "Write the kept result of a job to a file.",
}


def main(name: str, arguments: Sequence[str]) -> int:
    """List jobs or write a kept result, and return the exit code."""
    parser = common.parser(name, DESCRIPTIONS[name])
    if name == "jobs":
        parser.add_argument("--failed", action="store_true", help="only jobs that failed")
        parser.add_argument("--follow", action="store_true", help="also list jobs as they finish, until Ctrl-C")
        parser.add_argument("--since", help="only jobs accepted at this time or later, in ISO 8601")
        parser.add_argument("--label", help="only jobs whose label, or else names of tables, contain this text")
        parser.add_argument("--limit", type=int, default=20, help="number of jobs (default: 20)")
        parser.add_argument("--json", action="store_true", help="print one JSON object for each job")
    else:
        parser.add_argument("id", help="job_id or request_id of the job")
        parser.add_argument("--out", type=Path, required=True, help="file for the result; - is standard output")
    common.add_gateway(parser)
    options = parser.parse_args(arguments)
    action = {"jobs": _jobs, "result": _result}[name]
    return common.guarded(lambda: action(common.client_of(options), options))


def _jobs(client: TransformClient, options: argparse.Namespace) -> int:
    query: dict[str, str | float] = {"limit": options.limit}
    if options.failed:
        query["code"] = "failed"
    query |= {name: value for name in ("since", "label") if (value := getattr(options, name)) is not None}
    if options.follow:
        query |= {"state": "finished", "sort": "-finished_at"}
    if options.follow:
        return _follow(client, query, options.json)
    page = client.jobs(**query)
    for job in reversed(page["jobs"]):
        sys.stdout.write(f"{_line(job, options.json)}\n")
    for member in page.get("missing_members") or ():
        sys.stderr.write(f"the member {printable(member)} does not answer; its jobs are not in this list\n")
    return 0


def _follow(client: TransformClient, query: dict[str, str | float], as_json: bool) -> int:
    """Write the newest jobs, and then those that finish."""
    all_kept = query | {"limit": 500}  # more than finish while the connection is lost
    older = {job["job_id"] for job in client.jobs(**all_kept)["jobs"]}
    shown: set[str] = set()
    with RunningJobs() as running:

        def show(jobs: list[dict[str, Any]]) -> None:
            for job in reversed(jobs):
                if job["job_id"] not in shown:
                    shown.add(job["job_id"])
                    running.print(_line(job, as_json))

        show(client.jobs(**query)["jobs"])
        shown |= older
        for event in client.stream(lambda error: running.tell(common.lost_text(error))):
            jobs, is_snapshot = event.data.get("jobs", []), event.name == "snapshot"
            running.take(jobs, is_all=is_snapshot)
            if is_snapshot:
                show(client.jobs(**all_kept)["jobs"])
            for job_id, request_id in [
                (job["job_id"], job["request_id"]) for job in jobs if job["state"] == "finished"
            ]:
                # by its id: after a step back of the clock, it is not among those that finished last
                found = client.jobs(**all_kept, request_id=request_id)["jobs"]
                show([job for job in found if job["job_id"] == job_id])
    return 0


def _line(job: dict[str, Any], as_json: bool) -> str:
    return json.dumps(job) if as_json else described(job)


def _result(client: TransformClient, options: argparse.Namespace) -> int:
    job_id = job_id_of(client, options.id)
    if str(options.out) == "-":
        sys.stdout.buffer.write(client.fetch_job(job_id) or b"")
        return 0
    job = client.job(job_id)
    facts = job["result"] or {}
    common.check_output("--out", options.out)
    kind = _kind_for(options.out, facts.get("data_format"))
    with tempfile.TemporaryDirectory(prefix="transform-result-") as directory:
        path = options.out if kind.is_plain else Path(directory) / "output"
        client.fetch_job(job_id, path)
        if not kind.is_plain:
            try:
                write_as(path, kind, options.out)
            except UnwritableResult as error:
                raise common.UsageError(f"--out {options.out}: {error}") from None
    rows, fields = (common.counted(facts[name], noun) for name, noun in (("rows", "row"), ("fields", "column")))
    sys.stderr.write(f"{rows}, {fields}, {options.out.stat().st_size:,} bytes in {options.out}\n")
    return 0


def _kind_for(path: Path, data_format: DataFormat | None) -> FileKind:
    """Return the kind of the file for a result; without a format there is none, and the gateway gives the reason."""
    try:
        kind = kind_of(path)
    except ValueError as error:
        if not path.suffix and data_format is not None:
            return FileKind(data_format)
        raise common.UsageError(f"--out {error}") from None
    if data_format is None or kind.data_format == data_format:
        return kind
    ending = FORMATS[data_format].endings[0]
    raise common.UsageError(
        f"--out {path}: the result is {data_format}, so the name must end in {ending}; `submit --format` chooses "
        "another format"
    )


def is_job_id(text: str) -> bool:
    """Return whether a text has the form of a job_id."""
    return re.fullmatch("[0-9a-f]{32}", text) is not None


def job_id_of(client: TransformClient, text: str, **query: str) -> str:
    """Return the job_id for a text: the text itself, or the id of the newest job with this request_id.

    Raises
    ------
    GatewayRefused
        There is no such job among those that `query` selects from the history.
    """
    if is_job_id(text):
        try:
            return str(client.job(text)["job_id"])
        except GatewayRefused as refusal:
            if refusal.status != 404:
                raise
    found = client.jobs(request_id=text, limit=1, **query)["jobs"]
    if not found:
        kind = " failed" if query.get("code") == "failed" else ""
        raise common.unknown_id(f"there is no{kind} job with the id {text!r}, or it was forgotten")
    return str(found[0]["job_id"])


def described(job: dict[str, Any]) -> str:
    """Return one line about a job."""
    moment = datetime.fromisoformat(job["created_at"]).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    outcome = job["code"] or job["state"]
    duration = f"{job['duration']:.2f} s" if job["duration"] is not None else "-"
    rows = common.counted(job["rows"], "row") if job["rows"] is not None else "-"
    name = job["label"] or ", ".join(job["tables"]) or "-"
    error = f": {job['error'].splitlines()[0]}" if job["error"] else ""
    line = f"{moment}  {job['job_id']}  {job['request_id']}  {outcome}  {duration}  {rows}  {name}{error}"
    return printable(line)
