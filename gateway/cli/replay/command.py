"""`transform-gateway replay`: fetch the bundle of a failed job, and run it here or write it as a notebook."""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gateway.cli import common
from gateway.cli.display import printable
from gateway.cli.history import job_id_of
from gateway.cli.job_options import add_look, named_files
from gateway.cli.replay.bundle_files import BundledTables, described, fetch_tables, version_differences, write_script
from gateway.cli.replay.notebook import write_notebook
from gateway.cli.run import cancel_on_sigterm, run
from gateway.client.client import TransformClient
from gateway.client.errors import GatewayRefused
from gateway.core.settings import WITHOUT_LIMITS
from gateway.table_files.kinds import known
from kernel_spec.packages import job_packages
from kernel_spec.protocol.limits import LIMITS

#: Packages whose version decides how tables are read and written, besides those that the script names.
FRAME_PACKAGES = frozenset({"pandas", "numpy", "pyarrow", "polars", "duckdb"})

#: Rows of a result that are shown on a terminal.
TERMINAL_ROWS = 20


def main(name: str, arguments: Sequence[str]) -> int:
    """Run a failed job again and return its exit code, or write it as a notebook."""
    parser = common.parser(
        name,
        "Run a failed job again on this machine, from the bundle that a gateway with KEEP_FAILED_JOBS keeps: same "
        "code, tables and limits, in the same sandbox. It gets no network unless ALLOW_NETWORK is set here.",
    )
    parser.add_argument("id", help="job_id or request_id of the failed job")
    parser.add_argument(
        "--table",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help=f"a table instead of that of the bundle ({known()}); may be repeated",
    )
    parser.add_argument(
        "--first-rows", action="store_true", help="take the first rows of tables that were too large for the bundle"
    )
    parser.add_argument(
        "--notebook",
        type=Path,
        metavar="FILE",
        help="write a notebook instead, which loads the tables from the directory FILE.tables beside it",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="file for the result, if there is one this time")
    add_look(parser)
    common.add_local_gateway(parser)
    options = parser.parse_args(arguments)
    cancel_on_sigterm()
    return common.guarded(lambda: _replay(options))


def _replay(options: argparse.Namespace) -> int:
    given = named_files(options.table, "--table")
    for path in given.values():
        common.check_input(path, option="--table")
    if options.notebook is not None and options.notebook.suffix != ".ipynb":
        raise common.UsageError(f"--notebook {options.notebook}: the name must end in .ipynb")
    if options.notebook is not None and options.notebook.exists():
        raise common.UsageError(f"--notebook {options.notebook}: the file exists")
    client = common.local_client_of(options)
    bundle = client.bundle(_failed_job(client, options.id))
    if unknown := sorted(given.keys() - {table["name"] for table in bundle["tables"]}):
        raise common.UsageError(f"--table {unknown[0]}: the job has no table of this name")
    notes = _notes(bundle)
    if options.notebook is not None:
        directory = options.notebook.with_name(f"{options.notebook.name}.tables")
        tables = fetch_tables(client, bundle, directory, given, takes_first_rows=True)
        write_notebook(bundle, tables, options.notebook, notes)
        sys.stderr.write(f"wrote {options.notebook}; it runs on the kernel `transform`\n")
        return 0
    with tempfile.TemporaryDirectory(prefix="transform-replay-") as name:
        directory = Path(name)
        tables = fetch_tables(client, bundle, directory / "tables", given, takes_first_rows=options.first_rows)
        if tables.missing:
            raise common.UsageError(_missing(tables.missing[0]))
        if not options.quiet:
            sys.stderr.write(_introduction(bundle, notes))
        return run(_run_options(options, bundle, tables, directory), _settings(bundle))


def _failed_job(client: TransformClient, text: str) -> str:
    if re.fullmatch("[0-9a-f]{32}", text):
        return text
    try:
        return job_id_of(client, text, code="failed")
    except GatewayRefused as refusal:
        if refusal.status != 401:
            raise
        # the token in the state directory opens bundles, but not the history
        raise common.UsageError(
            f"{text!r} is not a job_id; to find a job by its request_id, give --url and the token"
        ) from None


def _missing(table: Mapping[str, Any]) -> str:
    name = table["name"]
    first = ", or take its first rows with --first-rows" if table["kept"] == "first_rows" else ""
    return f"table {name!r} {described(table)}. Give it with --table {name}=FILE{first}"


def _introduction(bundle: Mapping[str, Any], notes: Sequence[str]) -> str:
    message = (bundle["message"].splitlines() or [""])[-1]
    text = f"job {bundle['request_id']} failed with {bundle['failure_code']}: {message}"
    lines = [printable(text), *notes]
    return "".join(f"{line}\n" for line in lines)


def _notes(bundle: Mapping[str, Any]) -> list[str]:
    """Return the differences between the failed job and one that runs here."""
    words = set(re.findall(r"[a-z_][a-z0-9_]*", "\n".join([bundle["code"], *bundle["library"].values()]).lower()))
    here = {package.name: package.version for package in job_packages(())}
    notes = []
    if differences := version_differences(bundle, here, words | FRAME_PACKAGES):
        notes.append(f"versions of the failed job: {'; '.join(differences)}")
    if bundle["allow_network"]:
        notes.append("the failed job had access to the network (ALLOW_NETWORK)")
    return notes


def _settings(bundle: Mapping[str, Any]) -> dict[str, str]:
    """Return settings with which a gateway here treats the job as the gateway did in which it failed."""
    limits = {LIMITS[name].setting: str(value) for name, value in bundle["limits"].items() if name in LIMITS}
    if bundle["limits"] == {name: getattr(WITHOUT_LIMITS, name) for name in LIMITS}:
        limits = {"DISABLE_LIMITS": "true"}
    return {
        **limits,
        "MIXED_COLUMNS": bundle["mixed_columns"],
        "OFFICIAL_COMPATIBILITY": str(bundle["official_compatibility"]).lower(),
    }


def _run_options(
    options: argparse.Namespace, bundle: Mapping[str, Any], tables: BundledTables, directory: Path
) -> argparse.Namespace:
    """Return the options with which `transform-gateway run` runs the job."""
    script, library = write_script(bundle, directory)
    head = options.head
    if head is None and options.out is None and not options.profile and sys.stdout.isatty():
        head = TERMINAL_ROWS
    return argparse.Namespace(
        **{
            **vars(options),
            "script": script,
            "library": library,
            "table": [f"{name}={files.data_path}" for name, files in tables.files.items()],
            "manifest": [
                f"{name}={files.manifest_path}" for name, files in tables.files.items() if files.manifest_path
            ],
            "timeout": bundle["timeout"],
            # the output is written as it was; the ending of --out may say otherwise
            "format": bundle["output_format"] if options.out is None else None,
            "head": head,
            "id": None,
            "hold": None,
            "watch": False,
            "url": None,
        }
    )
