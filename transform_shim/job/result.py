"""The job result inside the kernel: result.json, written by rename as the last act of a job.

The gateway decides about a job only by this file and the files that it finds; a file that exists is complete. The
gateway's side of the same contract, with the bounds that it accepts, is `gateway.local.output.job_result`.
"""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

__all__ = ["JobResult", "TableRead", "peak_memory_bytes", "write_result"]

#: The version of the file that this code writes.
RESULT_VERSION = 1
#: A message is a sentence; longer text is in the log.
_MESSAGE_CHARS = 4000
#: The gateway reads at most 1 MiB: 1000 tables and 500 columns with names of 100 characters stay below that in any
#: encoding.
_MOST_TABLES = 1000
_MOST_COLUMNS = 500
_NAME_CHARS = 100


@dataclass(frozen=True, slots=True)
class TableRead:
    """How much was read of one table; for a table that is read on demand, until the end of the job.

    Attributes
    ----------
    alias : str
    rows, bytes : int
    seconds : float
    columns : tuple of (str, str)
        Name and base type of each column; an empty type where only the file itself has it.
    """

    alias: str
    rows: int
    bytes: int
    seconds: float
    columns: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class JobResult:
    """The values of result.json.

    Attributes
    ----------
    outcome : {'ok', 'error'}
        Whether the job succeeded.
    code : str
        ``ok`` exactly if `outcome` is; else a failure code.
    message : str
        The sentence about the failure.
    exit_code : int
        0 for success; for `sys.exit`, the status that it was given.
    rows, fields, output_bytes : int
        Size of the output.
    columns : tuple of (str, str)
        Name and base type of each column of the output.
    sha256 : str or None
        Hash of the output file in hexadecimal digits, if the request asked for it.
    stages : mapping of str to float
        Seconds by stage.
    tables : tuple of TableRead
        How much was read of each table.
    """

    outcome: str
    code: str
    message: str = ""
    exit_code: int = 0
    rows: int = 0
    fields: int = 0
    output_bytes: int = 0
    columns: tuple[tuple[str, str], ...] = ()
    sha256: str | None = None
    stages: Mapping[str, float] = field(default_factory=dict)
    tables: tuple[TableRead, ...] = ()

    def to_json(self) -> bytes:
        """Return the bytes of result.json.

        Cuts texts and numbers of the user to the bounds of the gateway, which would refuse the whole result for one of
        them: half a surrogate pair in a message, or ``sys.exit(1000)``.

        Returns
        -------
        bytes
            One JSON object in UTF-8.
        """
        value = {"version": RESULT_VERSION, **_members(self), "peak_memory_bytes": peak_memory_bytes()}
        value["message"] = self.message[:_MESSAGE_CHARS]
        # as the parent of a process sees it (wait(2))
        value["exit_code"] = self.exit_code if -256 < self.exit_code < 256 else self.exit_code % 256
        value["stages"] = {name: round(seconds, 6) for name, seconds in self.stages.items()}
        value["columns"] = _columns_within_bounds(self.columns, _MOST_COLUMNS)
        value["tables"] = _within_bounds(self.tables[:_MOST_TABLES], _MOST_COLUMNS - len(value["columns"]))
        return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")


def _members(value: JobResult | TableRead) -> dict[str, Any]:
    """Return the members as they are; `dataclasses.asdict` copies them all the way down."""
    return {entry.name: getattr(value, entry.name) for entry in fields(value)}


def _within_bounds(tables: Sequence[TableRead], left: int) -> list[dict[str, Any]]:
    bounded = []
    for table in tables:
        columns = _columns_within_bounds(table.columns, left)
        bounded.append({**_members(table), "alias": table.alias[:_NAME_CHARS], "columns": columns})
        left -= len(columns)
    return bounded


def _columns_within_bounds(columns: Sequence[tuple[str, str]], most: int) -> list[list[str]]:
    return [[name[:_NAME_CHARS], kind[:_NAME_CHARS]] for name, kind in columns[:most]]


def peak_memory_bytes() -> int:
    """Return the largest resident set of this process so far.

    It comes from getrusage(2), because jobs cannot read /proc in many places.

    Returns
    -------
    int
        Bytes.
    """
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def write_result(path: Path, result: JobResult) -> None:
    """Write the file under another name, then rename it.

    Parameters
    ----------
    path : Path
        Where the gateway looks for the result.
    result : JobResult
        The result to write.

    Raises
    ------
    OSError
        If the file cannot be written whole.
    """
    partial = path.with_name(f".{path.name}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o660)
    with os.fdopen(descriptor, "wb") as file:
        file.write(result.to_json())
    partial.rename(path)
