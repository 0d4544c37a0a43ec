"""What callers may send, as pydantic models; the same models validate, build jobs and make the API description."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from gateway.http.fields import (
    EXPECTED_CONSOLE_MINUTES,
    EXPECTED_ID,
    EXPECTED_MINUTES,
    EXPECTED_TIMEOUT,
    EXPECTED_URL,
    ConsoleMinutesField,
    LibraryField,
    MinutesField,
    RequestIdField,
    TimeoutField,
    UrlField,
)
from gateway.http.validation import RequestModel
from gateway.jobs.model import DataFormat

HOLD_MINUTES = (
    "Keep the kernel that long if the job fails in it, for a console on the gateway's machine; the answer's `held` has "
    "the command. 0 is not at all. Default: the gateway's HOLD_FAILED."
)
FORMATS = '"jsonl", "csv", "parquet" or "arrow"'


class ExecuteRequest(RequestModel):
    """One job, in the form that Metabase sends.

    Results go to `output_url`. A request with none of the result URLs is the other form: the gateway keeps the result
    for a while, to be fetched under `/v1/results/{request_id}/`. A request with some of them but no `output_url`
    is refused, because a lost result would go unnoticed.
    """

    EXPECTED: ClassVar[dict[str, str]] = {
        "code": "a text: the Python script that defines transform()",
        "request_id": EXPECTED_ID,
        "timeout": EXPECTED_TIMEOUT,
        "library": "an object of module name to source text",
        "table_mapping": f"an object of table name to {EXPECTED_URL}",
        "manifest_mapping": f"an object of table name to {EXPECTED_URL}",
        "output_url": EXPECTED_URL,
        "output_manifest_url": EXPECTED_URL,
        "events_url": EXPECTED_URL,
        "runtime": '"python" (nothing else is run here)',
        "output_format": FORMATS,
        "data_format": f"{FORMATS}, or an object of table name to one of these",
        "inline": "true or false",
        "hold_minutes": EXPECTED_MINUTES,
    }

    code: str = Field(description="The script. It defines `transform()`; its parameters name the tables it needs.")
    request_id: RequestIdField = Field(description='Comes back with its JSON type; 7 and "7" are two ids.')
    timeout: TimeoutField | None = Field(
        None,
        description="Seconds, counted from the moment a slot is free. Default and largest value: see `/v1/status`.",
    )
    library: LibraryField | None = Field(None, description="Modules beside the script, with or without `.py`.")
    table_mapping: dict[str, UrlField] | None = Field(
        None, description="Table name to the URL of its data. The name may be any text."
    )
    manifest_mapping: dict[str, UrlField] | None = Field(
        None, description="Table name to the URL of its manifest, which gives column order and types."
    )
    output_url: UrlField | None = Field(None, description="Presigned PUT for the data.")
    output_manifest_url: UrlField | None = Field(None, description="Presigned PUT for the manifest.")
    events_url: UrlField | None = Field(None, description="Presigned PUT for the log; written on failure too.")
    runtime: Literal["python"] | None = None
    output_format: DataFormat | None = Field(None, description="What the data is written as. Default `jsonl`.")
    data_format: DataFormat | dict[str, DataFormat] | None = Field(
        None, description="What the tables are, for all or by name, where no manifest says so. Default `jsonl`."
    )
    inline: bool | None = Field(
        None, description="Also put a small kept result into the answer (`output`, `manifest`)."
    )
    hold_minutes: MinutesField | None = Field(None, description=HOLD_MINUTES)


class FirstExecuteRequest(RequestModel):
    """One job, in the form of the first public runner.

    With `working_dir`, the result is `output.csv` beside `stdout.log` and `stderr.log` in that directory, and tables
    are files below the allowed roots, or, with `metabase_url` and `api_key`, ids of Metabase tables. With `output_url`,
    everything goes to presigned URLs.
    """

    EXPECTED: ClassVar[dict[str, str]] = {
        "code": "a text: the Python script that defines transform()",
        "request_id": EXPECTED_ID,
        "timeout": EXPECTED_TIMEOUT,
        "working_dir": "a text: the absolute path of a directory",
        "table_mapping": "an object of table name to URL, file path or Metabase table id",
        "manifest_mapping": "an object of table name to URL or file path",
        "output_url": EXPECTED_URL,
        "output_manifest_url": EXPECTED_URL,
        "stdout_url": EXPECTED_URL,
        "stderr_url": EXPECTED_URL,
        "metabase_url": EXPECTED_URL,
        "api_key": "a text",
        "library": "an object of module name to source text",
        "hold_minutes": EXPECTED_MINUTES,
    }

    code: str
    request_id: RequestIdField | None = Field(None, description="Needed with `output_url`; made up otherwise.")
    timeout: TimeoutField | None = Field(None, description="Seconds.")
    working_dir: str | None = Field(None, description="Absolute path below one of the allowed roots.")
    table_mapping: dict[str, str | int] | None = None
    manifest_mapping: dict[str, str] | None = None
    output_url: UrlField | None = None
    output_manifest_url: UrlField | None = None
    stdout_url: UrlField | None = None
    stderr_url: UrlField | None = None
    metabase_url: UrlField | None = Field(None, description="Base URL of a Metabase whose tables are read.")
    api_key: str | None = Field(None, description="API key for `metabase_url`.")
    library: LibraryField | None = None
    hold_minutes: MinutesField | None = Field(None, description=HOLD_MINUTES)


class CancelRequest(RequestModel):
    """Which job to cancel."""

    EXPECTED: ClassVar[dict[str, str]] = {"request_id": EXPECTED_ID}

    request_id: RequestIdField


class ConsoleRequest(RequestModel):
    """How long a kernel is wanted for a console."""

    EXPECTED: ClassVar[dict[str, str]] = {"minutes": EXPECTED_CONSOLE_MINUTES}

    minutes: ConsoleMinutesField = Field(60.0, description="It is ended after that, whoever is attached.")


class ReleaseRequest(RequestModel):
    """Which held kernel to end."""

    EXPECTED: ClassVar[dict[str, str]] = {"id": "a text: the id of a held kernel"}

    id: str = Field(description="As in `held` of an answer, or from `/v1/held`.")
