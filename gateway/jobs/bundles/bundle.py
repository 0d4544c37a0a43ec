"""The bundle of a failed job. It has no member for a URL, a key or a token, so that none can be kept by mistake."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct

from gateway.core.formats import DataFormat
from gateway.core.job import LibraryModule, RequestId
from gateway.storage.inputs.compression import Compression

#: How much of a table's data is in a bundle.
Kept = Literal["whole", "first_rows", "nothing"]


class BundledTable(Struct, frozen=True, forbid_unknown_fields=True):
    """One table of a failed job.

    Attributes
    ----------
    alias : str
        Name of the parameter.
    data_format : DataFormat
    used : bool
        Whether transform() may take it; the others are not fetched.
    kept : {'whole', 'first_rows', 'nothing'}
        The part of its data that is in the bundle.
    bytes : int or None
        Size of the whole data; None if it was not fetched.
    compression : {'gzip', 'zstd'} or None
        Compression of the data that is kept.
    table_id : int or None
        Metabase's id of the table, by the manifest.
    manifest : dict or None
        With the members that Metabase documents.
    columns : tuple of (str, str)
        Name and base type of each column that the job read, where there is no manifest.
    """

    alias: str
    data_format: DataFormat
    used: bool
    kept: Kept = "nothing"
    bytes: int | None = None
    compression: Compression | None = None
    table_id: int | None = None
    manifest: dict[str, Any] | None = None
    columns: tuple[tuple[str, str], ...] = ()


class Bundle(Struct, frozen=True, forbid_unknown_fields=True):
    """A failed job without the data of its tables.

    Attributes
    ----------
    job_id : str
        The gateway's own id.
    request_id : int or str
    label : str or None
    failure_code, message : str
        How it ended.
    exit_code : int
    code : str
        Source of the script.
    library : tuple of LibraryModule
    tables : tuple of BundledTable
        All tables of the request, in its order.
    output_format : DataFormat
    output_schema : str or None
        The output contract of the request as JSON.
    timeout_seconds : float
    limits : dict of str to int
        Limits of the job.
    mixed_columns : str
    official_compatibility, allow_network : bool
        Settings of the gateway under which the job ran.
    gateway_version, python_version : str
    packages : dict of str to str
        Version of each package that the job could import.
    log : list of Raw
        Lines of the log, in the form for readers of the log.
    """

    job_id: str
    request_id: RequestId
    label: str | None
    failure_code: str
    message: str
    exit_code: int
    code: str
    library: tuple[LibraryModule, ...]
    tables: tuple[BundledTable, ...]
    output_format: DataFormat
    output_schema: str | None
    timeout_seconds: float
    limits: dict[str, int]
    mixed_columns: str
    official_compatibility: bool
    allow_network: bool
    gateway_version: str
    python_version: str
    packages: dict[str, str]
    log: list[msgspec.Raw]
