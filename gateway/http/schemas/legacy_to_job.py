"""Make a `Job` of a request of the legacy API. It reads the disk, so it runs in a thread."""

from __future__ import annotations

import errno
import os
import re
import uuid
from pathlib import Path

from gateway.core.directories import open_below, output_directory
from gateway.core.errors import BadRequest
from gateway.core.formats import DEFAULT_FORMAT, ENDINGS, DataFormat
from gateway.core.job import (
    Delivery,
    DirectoryDelivery,
    FileSource,
    InputTable,
    Job,
    MetabaseSource,
    Source,
    UrlDelivery,
    UrlSource,
)
from gateway.core.settings import Settings
from gateway.http.schemas.fields import check_host, check_url
from gateway.http.schemas.requests import LegacyExecuteRequest
from gateway.http.schemas.to_job import hold_seconds, library_modules, refuse_orphans

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


def legacy_job(request: LegacyExecuteRequest, settings: Settings, trace_parent: str | None) -> Job:
    """Return the job that `request` asks for.

    Raises
    ------
    BadRequest
        Among others, a path does not exist or is outside of the allowed roots.
    """
    delivery = _delivery(request, settings)
    if request.request_id is None and not isinstance(delivery, DirectoryDelivery):
        raise BadRequest("request_id: required with output_url", field="request_id")
    return Job(
        request_id=uuid.uuid4().hex if request.request_id is None else request.request_id,
        code=request.code,
        timeout_seconds=request.timeout or settings.default_timeout_seconds,
        delivery=delivery,
        library=library_modules(request.library),
        tables=_tables(request, settings),
        output_format="csv",
        form="first",
        trace_parent=trace_parent,
        hold_seconds=hold_seconds(request.hold_minutes, settings),
    )


def _delivery(request: LegacyExecuteRequest, settings: Settings) -> Delivery:
    if request.working_dir is None:
        if request.output_url is None:
            raise BadRequest("working_dir: expected either working_dir or output_url", field="working_dir")
        return UrlDelivery(
            request.output_url,
            request.output_manifest_url,
            stdout_url=request.stdout_url,
            stderr_url=request.stderr_url,
        )
    if request.output_url is not None:
        raise BadRequest("working_dir: not allowed with output_url; use one of them", field="working_dir")
    path = Path(request.working_dir)
    try:
        with output_directory(path, settings) as directory:
            if not os.access(".", os.W_OK, dir_fd=directory):
                raise PermissionError(errno.EACCES, f"user {os.geteuid()}, the gateway's own, may not write there")
            return DirectoryDelivery(path)
    except (OSError, ValueError) as error:
        raise _refused_path("working_dir", error) from None


def _tables(request: LegacyExecuteRequest, settings: Settings) -> tuple[InputTable, ...]:
    values, manifests = request.table_mapping or {}, request.manifest_mapping or {}
    refuse_orphans(manifests, values)
    if request.metabase_url is not None and not request.api_key:
        raise BadRequest("api_key: required with metabase_url", field="api_key")
    tables = []
    for alias, value in values.items():
        where = f"table_mapping[{alias[:60]!r}]"
        source, data_format = _source(where, value, request, settings)
        manifest: Source | None = None
        if alias in manifests:
            manifest, _ = _source(f"manifest_mapping[{alias[:60]!r}]", manifests[alias], request, settings)
        tables.append(InputTable(alias, source, manifest, data_format))
    return tuple(tables)


def _source(
    where: str, value: str | int, request: LegacyExecuteRequest, settings: Settings
) -> tuple[Source, DataFormat]:
    field = where.partition("[")[0]
    if isinstance(value, int) or (request.metabase_url is not None and re.fullmatch("[0-9]{1,18}", value)):
        if request.metabase_url is None or request.api_key is None:
            raise BadRequest(f"{where}: a table id needs metabase_url and api_key", field=field)
        return MetabaseSource(request.metabase_url, request.api_key, int(value)), DEFAULT_FORMAT
    if _URL.match(value):
        try:
            return UrlSource(check_host(check_url(value), settings)), DEFAULT_FORMAT
        except ValueError as error:
            raise BadRequest(f"{where}: {error}", field=field) from None
    try:
        descriptor, _ = open_below(Path(value), settings.working_dir_roots)
    except (OSError, ValueError) as error:
        raise _refused_path(where, error) from None
    os.close(descriptor)
    return FileSource(Path(value)), ENDINGS.get(Path(value).suffix.lower(), DEFAULT_FORMAT)


def _refused_path(where: str, error: OSError | ValueError) -> BadRequest:
    # the reason reveals whether a path exists, but only below the allowed roots: other paths are refused unread
    reason = (error.strerror or str(error)) if isinstance(error, OSError) else "is not a path"
    return BadRequest(f"{where}: {reason}", field=where.partition("[")[0])
