"""The answer of ``GET /v1/jobs/{job_id}/bundle``."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import structs
from pydantic import Field

from gateway.core.formats import DataFormat
from gateway.http.schemas.history import ColumnResponse
from gateway.http.schemas.responses import ResponseModel
from gateway.jobs.bundles import Bundle, BundledTable
from gateway.jobs.bundles.bundle import Kept
from gateway.storage.inputs.compression import Compression


class BundledTableResponse(ResponseModel):
    """One table of a failed job."""

    name: str
    data_format: DataFormat
    used: bool = Field(description="Whether transform() may take it; the others were not fetched.")
    kept: Kept = Field(description="The part of its data that `/v1/jobs/{job_id}/bundle/{table}` returns.")
    bytes: int | None = Field(description="Size of the whole data; null if it was not fetched.")
    compression: Compression | None
    table_id: int | None = Field(description="Metabase's id of the table.")
    manifest: dict[str, Any] | None
    columns: list[ColumnResponse] = Field(description="The columns that the job read, if there is no manifest.")


class BundleResponse(ResponseModel):
    """A failed job, with everything that is needed to run it again."""

    job_id: str
    request_id: int | str
    label: str | None
    failure_code: str
    message: str
    exit_code: int
    code: str
    library: dict[str, str]
    tables: list[BundledTableResponse]
    output_format: DataFormat
    output_schema: dict[str, Any] | None
    timeout: float
    limits: dict[str, int]
    mixed_columns: str
    official_compatibility: bool
    allow_network: bool
    gateway_version: str
    python_version: str
    packages: dict[str, str] = Field(description="Name of each package that the job could import to its version.")
    log: list[dict[str, Any]]


def bundle_response(bundle: Bundle) -> BundleResponse:
    """Return a bundle as it is sent; takes some tenths of a second for a long log."""
    members = structs.asdict(bundle) | {
        "library": {module.name: module.source for module in bundle.library},
        "tables": [_table(table) for table in bundle.tables],
        "output_schema": None if bundle.output_schema is None else msgspec.json.decode(bundle.output_schema),
        "log": [msgspec.json.decode(line) for line in bundle.log],
    }
    members["timeout"] = members.pop("timeout_seconds")
    return BundleResponse.model_validate(members)


def _table(table: BundledTable) -> dict[str, Any]:
    columns = [{"name": name, "base_type": base_type} for name, base_type in table.columns]
    members = structs.asdict(table) | {"columns": columns}
    members["name"] = members.pop("alias")
    return members
