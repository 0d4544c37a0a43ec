"""Requests as pydantic models, which validate, build jobs and make the API description."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from gateway.core.formats import DEFAULT_FORMAT
from gateway.http.schemas.fields import (
    CodeField,
    ConsoleMinutesField,
    Expected,
    FormatField,
    FormatsField,
    LabelField,
    LibraryField,
    MinutesField,
    OutputSchemaField,
    RequestIdField,
    TableSourcesField,
    TimeoutField,
    UrlField,
    UrlsField,
)
from gateway.http.schemas.validation import RequestModel

HOLD_MINUTES = (
    "Minutes to keep the kernel if the job fails in it, for a console on the gateway's machine; the response's `held` "
    "has the command. 0: do not keep it. Default: the gateway's HOLD_FAILED."
)


class ExecuteRequest(RequestModel):
    """One job.

    The result is uploaded to `output_url`. Without any result URL the gateway keeps the result for a while under
    `/v1/results/{request_id}/`. A request with other result URLs but no `output_url` is refused, because the
    result would be lost without notice.
    """

    code: CodeField = Field(
        description="The script. It defines `transform()`, whose parameters name the tables that it needs."
    )
    request_id: RequestIdField = Field(description='Responses have the same JSON type; 7 and "7" are two ids.')
    timeout: TimeoutField | None = Field(
        None,
        description="Seconds from the moment a slot is free. Default: DEFAULT_TIMEOUT; at most MAX_TIMEOUT.",
    )
    library: LibraryField | None = Field(
        None, description="Module name, with or without `.py`, to the source of a module that the script can import."
    )
    table_mapping: UrlsField | None = Field(None, description="Table name to the URL of its data.")
    manifest_mapping: UrlsField | None = Field(
        None, description="Table name to the URL of its manifest, which has the order and types of columns."
    )
    output_url: UrlField | None = Field(None, description="Presigned URL for the PUT of the data.")
    output_manifest_url: UrlField | None = Field(None, description="Presigned URL for the PUT of the manifest.")
    events_url: UrlField | None = Field(
        None, description="Presigned URL for the PUT of the log, which is also uploaded when the job fails."
    )
    runtime: Annotated[Literal["python"], Expected('"python" (nothing else is run here)')] | None = None
    output_format: FormatField | None = Field(None, description=f"Format of the result. Default: `{DEFAULT_FORMAT}`.")
    data_format: FormatsField | None = Field(
        None,
        description="Format of all tables, or of each by name, unless a manifest names it. "
        f"Default: `{DEFAULT_FORMAT}`.",
    )
    inline: Annotated[bool, Expected("true or false")] | None = Field(
        None, description="Include a small kept result in the response (`output`, `manifest`)."
    )
    hold_minutes: MinutesField | None = Field(None, description=HOLD_MINUTES)
    label: LabelField | None = Field(
        None, description="Words of your own for the job, shown in the history. Default: the docstring's first line."
    )
    output_schema: OutputSchemaField | None = Field(
        None,
        description="The columns that the result must have, and their rules. A result that breaks them is not "
        "published: the job fails with `output_schema_violated`. A wrong contract fails with `user_error`.",
    )
    profile: Annotated[bool, Expected("true or false")] | None = Field(
        None,
        description="Profile the columns of the result (nulls, distinct values, smallest and largest, quartiles, a "
        "histogram) in the time of the job; the profile is among the job's displays.",
    )


class LegacyExecuteRequest(RequestModel):
    """One job of the legacy API.

    With `working_dir`, the result is written to `output.csv`, `stdout.log` and `stderr.log` in that directory. Tables
    are files below the allowed roots or, with `metabase_url` and `api_key`, ids of Metabase tables. With `output_url`,
    the result is uploaded to presigned URLs.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": [name], "properties": {name: {"type": "string"}}} for name in ("working_dir", "output_url")
            ]
        }
    )

    code: CodeField
    request_id: RequestIdField | None = Field(None, description="Required with `output_url`; default: a random id.")
    timeout: TimeoutField | None = Field(None, description="Seconds.")
    working_dir: Annotated[str, Expected("a text: the absolute path of a directory")] | None = Field(
        None,
        description="Absolute path below one of WORKING_DIR_ROOTS. Without them, on loopback: below the system's "
        "temporary directory, where it is made.",
    )
    table_mapping: TableSourcesField | None = None
    manifest_mapping: Annotated[dict[str, str], Expected("an object of table name to URL or file path")] | None = None
    output_url: UrlField | None = None
    output_manifest_url: UrlField | None = None
    stdout_url: UrlField | None = None
    stderr_url: UrlField | None = None
    metabase_url: UrlField | None = Field(None, description="Base URL of a Metabase whose tables are read.")
    api_key: Annotated[str, Expected("a text")] | None = Field(None, description="API key for `metabase_url`.")
    library: LibraryField | None = None
    hold_minutes: MinutesField | None = Field(None, description=HOLD_MINUTES)


class CancelRequest(RequestModel):
    """The job to cancel."""

    request_id: RequestIdField


class ConsoleRequest(RequestModel):
    """A kernel for a console."""

    minutes: ConsoleMinutesField = Field(
        60.0, description="The kernel ends after that time, also while a console is attached."
    )


class HoldRequest(RequestModel):
    """How long the kernel of a running job is held after the job was ended."""

    minutes: ConsoleMinutesField = Field(60.0, description="The kernel ends after that time.")


class ReleaseRequest(RequestModel):
    """The held kernel to release."""

    id: Annotated[str, Expected("a text: the id of a held kernel")] = Field(
        description="The id in a response's `held` or in `/v1/held`."
    )
