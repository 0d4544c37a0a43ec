"""A small job that pays in advance the extra cost of a process's first job.

Most of that is not imports. A forked process pays for each page that it first reads or writes (fork(2): copy-on-write),
and a job touches some 3,000 of them: 10 ms, where the second job of the same process takes 6 ms in all (measured). The
fork server rehearses so that each copy has the results of work that is done once. A kernel that it forks gets those
pages ahead (`kernel_spec.fork_server.prefault`); one that is started otherwise rehearses itself, before it is ready.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transform_shim.job.request import JobRequest
from transform_shim.job.result import write_result
from transform_shim.job.run import attempt
from transform_shim.job.script import forget_modules
from transform_shim.job.warm_up import convert_every_type

__all__ = ["rehearse", "warm_up"]

_CODE = """
import pandas as pd


def transform(left, right):
    groups = left.groupby("text", as_index=False)["number"].sum().sort_values("number")
    return left[left["number"] > 0].merge(groups, on="text", how="left", suffixes=("", "_sum"))
"""
_FIELDS = {"whole": "Integer", "number": "Float", "text": "Text", "flag": "Boolean", "at": "DateTime"}
#: So many that the result is written as a large one is (`transform_shim.writing.lines.rows`).
_ROWS = 200
#: A table that is read as a large one is (`transform_shim.reading.jsonl.small_blocks`).
_DECIMAL = {"decimal": "Decimal"}


def warm_up(rehearsals: int = 1) -> None:
    """Pay the costs of a process's first job; leave no thread, no descriptor and no file behind.

    Parameters
    ----------
    rehearsals : int
        Number of small jobs; see `rehearse`.
    """
    convert_every_type()
    for _ in range(rehearsals):
        rehearse()


def rehearse() -> None:
    """Do a small job in a temporary directory and leave nothing behind: no file, no module, no output.

    Raises
    ------
    RuntimeError
        If the job did not succeed; no other would either.
    """
    # in the fork server of a launcher that is killed, it stays; the next launcher removes what has such a name
    with tempfile.TemporaryDirectory(prefix="try-", dir=_place()) as name:
        request = _request(Path(name))
        stderr = io.StringIO()
        result = attempt(request, stderr)
        write_result(request.result_path, result)
        forget_modules()
    for path in [path for path in sys.path_importer_cache if path.startswith(name)]:
        del sys.path_importer_cache[path]
    if result.outcome != "ok":
        raise RuntimeError(f"the rehearsal of a job failed: {stderr.getvalue() or result.message}")


def _place() -> str | None:
    """Return the working directory if it is writable, as in a kernel: a job's files will be there too; else None."""
    return str(Path.cwd()) if os.access(Path.cwd(), os.W_OK) else None


def _request(directory: Path) -> JobRequest:
    work_dir = directory / "work"
    work_dir.mkdir()
    rows = [
        {"whole": i, "number": i / 4, "text": f"t{i % 5}", "flag": i % 2 == 0, "at": f"2024-01-15T10:{i % 60:02}:00"}
        for i in range(_ROWS)
    ]
    tables = [_table(directory, "left", _FIELDS, rows), _table(directory, "right", _DECIMAL, [{"decimal": 1.5}])]
    return JobRequest.from_json(
        json.dumps(
            {
                "version": 1,
                "code": _CODE,
                "tables": tables,
                "output_path": str(directory / "output"),
                "manifest_path": str(directory / "output-manifest.json"),
                "result_path": str(directory / "result.json"),
                "work_dir": str(work_dir),
            }
        )
    )


def _table(directory: Path, alias: str, kinds: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    data_path, manifest_path = directory / f"{alias}.data", directory / f"{alias}.manifest"
    data_path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    fields = [{"name": name, "base_type": f"type/{kind}"} for name, kind in kinds.items()]
    manifest_path.write_text(json.dumps({"fields": fields}))
    return {"alias": alias, "data_path": str(data_path), "manifest_path": str(manifest_path)}
