"""A failed job as a notebook of the kernel `transform`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gateway.cli.replay.bundle_files import BundledTables, described
from gateway.scripts.template import notebook_text


def write_notebook(bundle: Mapping[str, Any], tables: BundledTables, path: Path, notes: list[str]) -> None:
    """Write the notebook; its cells name the tables' files by paths from its own directory."""
    cells = [("markdown", _introduction(bundle, tables, notes))]
    for name, files in tables.files.items():
        manifest = f" --manifest {_relative(files.manifest_path, path)}" if files.manifest_path is not None else ""
        cells.append(("code", f"%table {name} {_relative(files.data_path, path)}{manifest}"))
    for name, source in bundle["library"].items():
        cells.append(("code", f"%%library {name}\n{source}"))
    cells.append(("markdown", "`%%transform --here` runs it in this kernel, so that `%debug` opens the failed frame."))
    cells.append(("code", f"%%transform --timeout {bundle['timeout']:g}\n{_script(bundle)}"))
    path.write_text(notebook_text(cells), encoding="utf-8")


def _script(bundle: Mapping[str, Any]) -> str:
    """Return the script with the contract of the request, which a notebook cannot send, after its own lines."""
    contract = bundle["output_schema"]
    if contract is None:
        return str(bundle["code"])
    return f"{bundle['code']}\n\n# the output contract of the request\nOUTPUT_SCHEMA = {contract!r}\n"


def _introduction(bundle: Mapping[str, Any], tables: BundledTables, notes: list[str]) -> str:
    lines = [
        f"# Job {_plain(str(bundle['label'] or bundle['request_id']))}",
        "",
        f"`{bundle['job_id']}` failed with `{bundle['failure_code']}`:",
        "",
        *(f"    {line}" for line in bundle["message"].splitlines()),
    ]
    facts = {table["name"]: table for table in bundle["tables"]}
    partial = [facts[name] for name, files in tables.files.items() if not files.is_whole]
    for table in (*partial, *tables.missing):
        loads = f" `%table {table['name']} metabase:{table['table_id']}` loads it." if table["table_id"] else ""
        lines += ["", f"Table `{table['name']}` {described(table)}.{loads}"]
    for note in notes:
        lines += ["", _plain(note)]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Return a text that Markdown shows as it is, on one line."""
    return "".join(f"\\{char}" if char in "\\`*_[]<>#$!" else char for char in " ".join(text.split()))


def _relative(path: Path, notebook: Path) -> str:
    return shlex.quote(os.path.relpath(path.absolute(), notebook.absolute().parent))
