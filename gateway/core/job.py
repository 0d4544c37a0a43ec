"""A job and its verdict: frozen values, built once at the HTTP boundary.

They are msgspec structs, because `gateway.core.wire` gives them a JSON form in which unknown members are refused.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Literal

from msgspec import Struct, field

from gateway.core.errors import FAILURES, FailureCode, JobFailed
from gateway.core.formats import DataFormat

RequestId = int | str
ApiForm = Literal["v1", "first"]
Runtime = Literal["python"]
ResultPart = Literal["output", "manifest", "events"]


class UrlSource(Struct, frozen=True, forbid_unknown_fields=True, tag="url"):
    """An object behind a URL that is used exactly as given: any change makes a presigned URL invalid."""

    url: str


class FileSource(Struct, frozen=True, forbid_unknown_fields=True, tag="file"):
    """A file below one of the allowed roots, which the request names by its absolute path."""

    path: Path


class UploadSource(Struct, frozen=True, forbid_unknown_fields=True, tag="upload"):
    """A file that came with the request; ``name`` is its name in the request's `Uploads`."""

    name: str


class MetabaseSource(Struct, frozen=True, forbid_unknown_fields=True, tag="metabase"):
    """A table of a live Metabase, read over its REST API."""

    base_url: str
    api_key: str
    table_id: int


class ParcelSource(Struct, frozen=True, forbid_unknown_fields=True, tag="parcel"):
    """A parcel: a file at the member of a cluster that accepted the job. No request names one.

    Its URL alone grants access to the file, so no text shows it.
    """

    url: str

    def __repr__(self) -> str:
        return "ParcelSource(...)"


Source = UrlSource | FileSource | UploadSource | MetabaseSource | ParcelSource


class InputTable(Struct, frozen=True, forbid_unknown_fields=True):
    """One table of the request. ``alias`` may be any text and never becomes a path."""

    alias: str
    data: Source
    manifest: Source | None = None
    data_format: DataFormat = "jsonl"


class LibraryModule(Struct, frozen=True, forbid_unknown_fields=True):
    """A module beside the script; ``name`` has no ``.py`` and is a Python identifier."""

    name: str
    source: str


class UrlDelivery(Struct, frozen=True, forbid_unknown_fields=True, tag="url"):
    """Results go to presigned PUT URLs."""

    output_url: str
    manifest_url: str | None = None
    events_url: str | None = None
    stdout_url: str | None = None
    stderr_url: str | None = None


class DirectoryDelivery(Struct, frozen=True, forbid_unknown_fields=True, tag="directory"):
    """Results go to ``output.csv``, ``stdout.log`` and ``stderr.log`` in a directory of the caller's (legacy API)."""

    working_dir: Path


class KeptDelivery(Struct, frozen=True, forbid_unknown_fields=True, tag="kept"):
    """Results stay with the gateway for a while, to be fetched over HTTP; small ones may be part of the answer."""

    inline: bool = False


class ParcelDelivery(Struct, frozen=True, forbid_unknown_fields=True, tag="parcel"):
    """Results go back to the member of a cluster that accepted the job, which delivers them. No request names it."""

    output_url: str
    manifest_url: str

    def __repr__(self) -> str:
        return "ParcelDelivery(...)"


Delivery = UrlDelivery | DirectoryDelivery | KeptDelivery | ParcelDelivery


class Job(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A validated job.

    Attributes
    ----------
    request_id : int or str
        The caller's id; its JSON type counts.
    code : str
        Source of the script.
    timeout_seconds : float
        Counts from the moment a slot is free for the job.
    delivery : Delivery
        Where output, manifest and log go.
    library : tuple of LibraryModule
        Modules beside the script.
    tables : tuple of InputTable
        Input tables.
    output_format : DataFormat
        Format of the data; the manifest is always JSON.
    form : {'v1', 'first'}
        API in which the request came.
    runtime : {'python'}
        Language of the script.
    trace_parent : str or None
        The caller's W3C ``traceparent``, returned and logged.
    hold_seconds : float
        How long the kernel is kept for inspection if the job fails in it; 0 for no hold.
    label : str or None
        The caller's description of the job, shown in the history.
    output_schema : str or None
        The output contract as JSON; like the script, only the kernel interprets it.
    profile : bool
        Whether the columns of the result are profiled, for its job's displays.
    """

    request_id: RequestId
    code: str
    timeout_seconds: float
    delivery: Delivery
    library: tuple[LibraryModule, ...] = ()
    tables: tuple[InputTable, ...] = ()
    output_format: DataFormat = "jsonl"
    form: ApiForm = "v1"
    runtime: Runtime = "python"
    trace_parent: str | None = None
    hold_seconds: float = 0.0
    label: str | None = None
    output_schema: str | None = None
    profile: bool = False


class JobState(StrEnum):
    """State of a job; callers see these words."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"


class OutputFacts(Struct, frozen=True):
    """The output of a successful job, with name and base type of at most 500 of its columns."""

    rows: int
    fields: int
    output_bytes: int
    sha256: str | None
    data_format: DataFormat
    columns: tuple[tuple[str, str], ...] = ()


class TableFacts(Struct, frozen=True):
    """The part of one table that a job read, by its own account.

    Attributes
    ----------
    alias : str
    rows, bytes : int
    columns : tuple of (str, str)
        Name and base type of each column, of 500 columns of output and tables at most.
    """

    alias: str
    rows: int
    bytes: int
    columns: tuple[tuple[str, str], ...] = ()


class HeldKernel(Struct, frozen=True):
    """A kernel that is kept for inspection.

    Attributes
    ----------
    id : str
        Name under which it is released.
    request_id, code
        Of the job that failed in it; None for a kernel that was requested as a console.
    held_at, expires_at : float
        Seconds since the epoch.
    access : dict of str to str
        How a console attaches to it, in members that only the runner understands; they are part of the answer.
    """

    id: str
    request_id: RequestId | None
    code: str | None
    held_at: float
    expires_at: float
    access: dict[str, str] = field(default_factory=dict)


class Verdict(Struct, frozen=True):
    """How a job ended; every answer, log line and metric about it is made from this one value.

    Attributes
    ----------
    code : FailureCode or None
        None is success.
    message : str
        Empty on success; otherwise the cause, with the limit and the peak.
    exit_code : int
        0 on success.
    execution_seconds : float
        From the slot to the end of the job; not capped, so it may exceed the timeout by the time of the kill.
    stages_seconds : dict of str to float
        Seconds by stage: ``queue``, ``fetch``, ``claim``, ``execute`` (inside it ``read``, ``import``,
        ``transform``, ``write``, ``profile``), ``kill``, ``deliver``.
    output : OutputFacts or None
        The output of a successful job.
    peak_memory_bytes : int or None
        Largest memory of the job, where it is known.
    bytes_in : int
        Size of the input tables.
    tables : tuple of TableFacts
        The tables that the job read.
    held : HeldKernel or None
        The kernel of a failed job, if it is kept.
    not_held : str
        Why it is not, although the request asked for it.
    retryable : bool or None
        Whether the same request may succeed when sent again; None stands for the value of the failure code.
    host : str
        The member of a cluster that ran it; empty without a cluster, and if no host had it.
    """

    code: FailureCode | None
    message: str
    exit_code: int
    execution_seconds: float = 0.0
    stages_seconds: dict[str, float] = field(default_factory=dict)
    output: OutputFacts | None = None
    peak_memory_bytes: int | None = None
    bytes_in: int = 0
    tables: tuple[TableFacts, ...] = ()
    held: HeldKernel | None = None
    not_held: str = ""
    retryable: bool | None = None
    host: str = ""

    @classmethod
    def of(cls, failure: JobFailed) -> Verdict:
        """Return the verdict on a job that ended with `failure`, without times."""
        return cls(failure.code, failure.message, failure.exit_code, retryable=failure.retryable)

    @classmethod
    def internal(cls) -> Verdict:
        """Return the verdict on a job for which the gateway itself failed, without the cause."""
        kind = FAILURES[FailureCode.INTERNAL]
        return cls(FailureCode.INTERNAL, kind.meaning, kind.exit_code)

    @property
    def ok(self) -> bool:
        return self.code is None

    @property
    def may_retry(self) -> bool:
        """Whether the same request may succeed when sent again."""
        return self.code is not None and (FAILURES[self.code].retryable if self.retryable is None else self.retryable)

    @property
    def timed_out(self) -> bool:
        return self.code is FailureCode.TIMEOUT

    @property
    def cancelled(self) -> bool:
        return self.code is FailureCode.CANCELLED

    @property
    def status(self) -> int:
        """HTTP status of the answer to ``execute``."""
        return 200 if self.code is None else FAILURES[self.code].status


class Scope(Struct, frozen=True):
    """The jobs that a caller may see: those that came with one name of a token, or all.

    Attributes
    ----------
    token_name : str or None
        Name of the caller's token, which its new jobs get. None for AUTH_TOKEN and where no token is needed.
    sees_all : bool
        Whether the jobs of other names are visible too.
    """

    token_name: str | None = None
    sees_all: bool = True

    def includes(self, token_name: str | None) -> bool:
        """Return whether a job that came with `token_name` is visible."""
        return self.sees_all or token_name == self.token_name


ALL_JOBS = Scope()
