"""result.json: what a job has come to, written by rename as its last act.

The gateway believes a job only by this file and the files it finds; a file that is there is complete.
"""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["JobResult", "TableRead", "peak_memory_bytes", "write_result"]

#: A message is a sentence; what is longer stands in the log.
_MESSAGE_CHARS = 4000


@dataclass(frozen=True, slots=True)
class TableRead:
    """What was read of one table; for one that is read on demand, until the end of the job."""

    alias: str
    rows: int
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class JobResult:
    """The values of result.json; ``code`` is ``ok`` exactly if ``outcome`` is."""

    outcome: str
    code: str
    message: str = ""
    exit_code: int = 0
    rows: int = 0
    fields: int = 0
    output_bytes: int = 0
    sha256: str | None = None
    stages: Mapping[str, float] = field(default_factory=dict)
    tables: tuple[TableRead, ...] = ()
    error_type: str | None = None
    error_line: int | None = None


def peak_memory_bytes() -> int:
    """Largest resident set of this process so far: from getrusage(2), as /proc is closed to jobs in many places."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def write_result(path: Path, result: JobResult) -> None:
    """Write the file under another name, then rename it."""
    value: dict[str, Any] = {"version": 1, **asdict(result), "peak_memory_bytes": peak_memory_bytes()}
    value["message"] = result.message[:_MESSAGE_CHARS]
    value["stages"] = {name: round(seconds, 6) for name, seconds in result.stages.items()}
    partial = path.with_name(f".{path.name}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o660)
    try:
        os.write(descriptor, json.dumps(value).encode())
    finally:
        os.close(descriptor)
    partial.rename(path)
