"""The report of the code inside a kernel about its job: its progress, and the job result in ``result.json``.

User code can write both as well, so they are parsed strictly and within bounds. The kernel's side of the same
contract is `transform_shim.job.result`, and for the progress `transform_shim.core.progress` and `transform_shim.bars`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from gateway.core.events import Progress

#: Largest ``result.json`` that is read.
RESULT_CAP_BYTES = 1 << 20

Seconds = Annotated[float, Meta(ge=0, le=1e9)]
Name = Annotated[str, Meta(max_length=100)]
Count = Annotated[int, Meta(ge=0, le=(1 << 62))]
#: Name and base type of each.
Columns = Annotated[tuple[tuple[Name, Name], ...], Meta(max_length=500)]


class TableRead(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much the job read of one table, and name and base type of its columns."""

    alias: Annotated[str, Meta(max_length=200)]
    rows: Count
    bytes: Count
    seconds: Seconds
    columns: Columns = ()


class JobResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The result that a job reports.

    Attributes
    ----------
    outcome : {'ok', 'error'}
        Whether the job claims success.
    code : str
        ``ok``, or the failure code that the job claims.
    message : str
        One sentence about the failure.
    exit_code : int
        Exit code that the job claims.
    rows, fields, output_bytes : int
        Size of the output.
    columns : tuple of (str, str)
        Name and base type of each column of the output.
    sha256 : str or None
        Hash of the output in hexadecimal digits, if the request asked for it.
    stages : dict of str to float
        Seconds by stage.
    tables : tuple of TableRead
        How much was read of each table.
    peak_memory_bytes : int or None
        Largest resident set of the kernel process.
    """

    version: Literal[1]
    outcome: Literal["ok", "error"]
    code: Annotated[str, Meta(max_length=40)]
    message: Annotated[str, Meta(max_length=4_000)] = ""
    exit_code: Annotated[int, Meta(ge=-255, le=255)] = 1
    rows: Count = 0
    fields: Count = 0
    output_bytes: Count = 0
    columns: Columns = ()
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")] | None = None
    stages: Annotated[dict[str, Seconds], Meta(max_length=20)] = {}
    tables: Annotated[tuple[TableRead, ...], Meta(max_length=1_000)] = ()
    peak_memory_bytes: Count | None = None


Label = Annotated[str, Meta(max_length=200)]
#: Beyond 2**53 a float does not count by ones.
Amount = Annotated[int, Meta(ge=0, le=1 << 53)] | Annotated[float, Meta(ge=0, le=1 << 53)]


class _ReportedProgress(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One report; the stages are those that run in the kernel."""

    stage: Literal["read", "transform", "write"]
    table: Label | None = None
    rows: Count | None = None
    bytes: Count | None = None
    bar: Annotated[int, Meta(ge=0, lt=5)] | None = None
    description: Label = ""
    done: Amount | None = None
    total: Amount | None = None


_DECODER = msgspec.json.Decoder(JobResult)
_PROGRESS_DECODER = msgspec.json.Decoder(_ReportedProgress)


def parse_progress(data: bytes) -> Progress | None:
    """Parse a report of the progress.

    Parameters
    ----------
    data : bytes
        One JSON object.

    Returns
    -------
    Progress or None
        The progress, whose texts have no control characters, because terminals show them; None if it is malformed.
    """
    try:
        found = _PROGRESS_DECODER.decode(data)
    except (ValueError, RecursionError):
        return None
    values = msgspec.structs.asdict(found)
    table = None if found.table is None else _printable(found.table)
    return Progress(**{**values, "table": table, "description": _printable(found.description)})


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in text)


def parse_result(data: bytes | None) -> JobResult | None:
    """Parse ``result.json``.

    Parameters
    ----------
    data : bytes or None
        Content of the file; None if there is no such file.

    Returns
    -------
    JobResult or None
        The result, or None if the file is missing or malformed.
    """
    if data is None:
        return None
    try:
        return _DECODER.decode(data)
    except (ValueError, RecursionError):  # text that is not UTF-8 raises no error of msgspec's own
        return None
