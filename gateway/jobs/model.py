"""What a job is, and what can be said of it when it is over: frozen values, built once at the HTTP boundary."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal

from gateway.errors import FAILURES, FailureCode

RequestId = int | str
DataFormat = Literal["jsonl", "csv", "parquet", "arrow"]
ApiForm = Literal["v1", "first"]


@dataclass(frozen=True, slots=True)
class UrlSource:
    """An object behind a URL that is used exactly as given: a presigned one dies with any change."""

    url: str


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file on the gateway's disk: checked against the allowed roots, or received with the request.

    ``owned`` files came with the request and are the job's to move; others are copied.
    """

    path: Path
    owned: bool = False


@dataclass(frozen=True, slots=True)
class MetabaseSource:
    """A table of a live Metabase, read over its REST API."""

    base_url: str
    api_key: str
    table_id: int


Source = UrlSource | FileSource | MetabaseSource


@dataclass(frozen=True, slots=True)
class InputTable:
    """One table of the request. ``alias`` may be any text and never becomes a path."""

    alias: str
    data: Source
    manifest: Source | None = None
    data_format: DataFormat = "jsonl"


@dataclass(frozen=True, slots=True)
class LibraryModule:
    """A module beside the script; ``name`` has no ``.py`` and is a Python identifier."""

    name: str
    source: str


@dataclass(frozen=True, slots=True)
class UrlDelivery:
    """Results go to presigned PUT URLs."""

    output_url: str
    manifest_url: str | None = None
    events_url: str | None = None
    stdout_url: str | None = None
    stderr_url: str | None = None


@dataclass(frozen=True, slots=True)
class DirectoryDelivery:
    """Results go to ``output.csv``, ``stdout.log`` and ``stderr.log`` in a directory of the caller's (first API
    form).
    """

    working_dir: Path


@dataclass(frozen=True, slots=True)
class KeptDelivery:
    """Results stay with the gateway for a while, to be fetched over HTTP; small ones may stand in the answer."""

    inline: bool = False


Delivery = UrlDelivery | DirectoryDelivery | KeptDelivery


@dataclass(frozen=True, slots=True)
class Job:
    """A validated job.

    Attributes
    ----------
    timeout_seconds : float
        Counts from the moment a slot is free for the job.
    output_format : DataFormat
        What the data is written as; the manifest is JSON always.
    upload_dir : Path or None
        Directory with files that came with the request; removed with the job.
    trace_parent : str or None
        The caller's W3C ``traceparent``, given back and logged.
    hold_seconds : float
        How long the kernel is kept for inspection if the job fails in it; 0 is not at all.
    """

    request_id: RequestId
    code: str
    timeout_seconds: float
    delivery: Delivery
    library: tuple[LibraryModule, ...] = ()
    tables: tuple[InputTable, ...] = ()
    output_format: DataFormat = "jsonl"
    form: ApiForm = "v1"
    upload_dir: Path | None = None
    trace_parent: str | None = None
    hold_seconds: float = 0.0


class JobState(StrEnum):
    """Where a job stands; the words that callers see."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class OutputFacts:
    """What came out of a successful job."""

    rows: int
    fields: int
    output_bytes: int
    sha256: str | None
    data_format: DataFormat


@dataclass(frozen=True, slots=True)
class HeldKernel:
    """A kernel kept for a person.

    Attributes
    ----------
    attach : str
        The exact command that attaches a console to it, for who may read ``connection_file``.
    request_id, code
        Of the job that failed in it; None for one that was asked for as a console.
    held_at, expires_at : float
        Seconds since the epoch.
    """

    id: str
    attach: str
    connection_file: str
    request_id: RequestId | None
    code: str | None
    held_at: float
    expires_at: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a job ended; every answer, log line and metric about it is made from this one value.

    Attributes
    ----------
    code : FailureCode or None
        None is success.
    message : str
        Empty on success; otherwise the sentence with the limit and the peak.
    execution_seconds : float
        From the slot to the end of the job; capped by nothing, so it may exceed the time-out by the kill.
    stages_seconds : dict
        Seconds by stage: ``queue``, ``fetch``, ``claim``, ``execute`` (inside it ``read``, ``import``,
        ``transform``, ``write``), ``kill``, ``deliver``.
    peak_memory_bytes : int or None
    held : HeldKernel or None
        The kernel of a failed job, if it is kept.
    not_held : str
        Why it is not, though that was asked for.
    """

    code: FailureCode | None
    message: str
    exit_code: int
    execution_seconds: float = 0.0
    stages_seconds: dict[str, float] = field(default_factory=dict)
    output: OutputFacts | None = None
    peak_memory_bytes: int | None = None
    bytes_in: int = 0
    held: HeldKernel | None = None
    not_held: str = ""

    @property
    def ok(self) -> bool:
        """Whether the job did what it was asked to."""
        return self.code is None

    @property
    def timed_out(self) -> bool:
        """Whether the time-out ended it."""
        return self.code is FailureCode.TIMEOUT

    @property
    def cancelled(self) -> bool:
        """Whether somebody cancelled it."""
        return self.code is FailureCode.CANCELLED

    @property
    def status(self) -> int:
        """HTTP status of the answer to ``execute``."""
        return 200 if self.code is None else FAILURES[self.code].status
