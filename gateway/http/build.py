"""From a validated request to a `Job`: the rules that take more than one field to tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gateway.errors import BadRequest
from gateway.http.fields import module_name
from gateway.http.models import ExecuteRequest
from gateway.jobs.model import (
    DataFormat,
    Delivery,
    FileSource,
    InputTable,
    Job,
    KeptDelivery,
    LibraryModule,
    UrlDelivery,
    UrlSource,
)
from gateway.settings import Settings


@dataclass(frozen=True, slots=True)
class ReceivedTable:
    """A table whose file came with the request; `data_format` is what the file name says, if anything."""

    data_path: Path | None = None
    manifest_path: Path | None = None
    data_format: DataFormat | None = None


@dataclass(frozen=True, slots=True)
class Received:
    """Everything that came with the request beside its JSON part."""

    directory: Path | None = None
    tables: Mapping[str, ReceivedTable] | None = None


def execute_job(request: ExecuteRequest, settings: Settings, received: Received, trace_parent: str | None) -> Job:
    """Return the job that `request` asks for.

    Raises
    ------
    BadRequest
        Fields that contradict each other; names the one to mend.
    """
    return Job(
        request_id=request.request_id,
        code=request.code,
        timeout_seconds=request.timeout or settings.default_timeout_seconds,
        delivery=_delivery(request),
        library=library_modules(request.library),
        tables=_tables(request, received.tables or {}),
        output_format=request.output_format or "jsonl",
        form="v1",
        upload_dir=received.directory,
        trace_parent=trace_parent,
        hold_seconds=hold_seconds(request.hold_minutes, settings),
    )


def hold_seconds(minutes: float | None, settings: Settings) -> float:
    """Return how long a failed job's kernel is kept, by what the request says, else by the settings."""
    return 60.0 * (settings.hold_failed_minutes if minutes is None else minutes)


def library_modules(library: dict[str, str] | None) -> tuple[LibraryModule, ...]:
    """Return the modules with their bare names."""
    return tuple(LibraryModule(module_name(name), source) for name, source in (library or {}).items())


def refuse_orphans(manifests: Mapping[str, object], tables: Mapping[str, object]) -> None:
    """Refuse a manifest for a table that is not there: it is a misspelt name, and would silently do nothing."""
    for alias in manifests:
        if alias not in tables:
            name = repr(alias[:60])
            raise BadRequest(f"manifest_mapping[{name}]: there is no table of this name", field="manifest_mapping")


def _delivery(request: ExecuteRequest) -> Delivery:
    if request.output_url is None:
        for name in ("output_manifest_url", "events_url"):
            if getattr(request, name) is not None:
                text = f"output_url: required beside {name}; leave out all result URLs to have the result kept here"
                raise BadRequest(text, field="output_url")
        return KeptDelivery(inline=bool(request.inline))
    if request.inline:
        raise BadRequest("inline: only without output_url; the result goes to one place", field="inline")
    return UrlDelivery(request.output_url, request.output_manifest_url, request.events_url)


def _tables(request: ExecuteRequest, received: Mapping[str, ReceivedTable]) -> tuple[InputTable, ...]:
    urls, manifests = request.table_mapping or {}, request.manifest_mapping or {}
    refuse_orphans(manifests, {**urls, **received})
    tables = []
    for alias, url in urls.items():
        if alias in received:
            name = repr(alias[:60])
            raise BadRequest(f"table_mapping[{name}]: this table also came as a file", field="table_mapping")
        manifest = UrlSource(manifests[alias]) if alias in manifests else None
        tables.append(InputTable(alias, UrlSource(url), manifest, _format(request, alias, None)))
    for alias, table in received.items():
        tables.append(_received_table(request, alias, table))
    return tuple(tables)


def _received_table(request: ExecuteRequest, alias: str, table: ReceivedTable) -> InputTable:
    if table.data_path is None:
        raise BadRequest(f"the part manifest:{alias[:60]} came without the part table:{alias[:60]}", field="multipart")
    url = (request.manifest_mapping or {}).get(alias)
    manifest: FileSource | UrlSource | None = UrlSource(url) if url else None
    if table.manifest_path is not None:
        manifest = FileSource(table.manifest_path, owned=True)
    data = FileSource(table.data_path, owned=True)
    return InputTable(alias, data, manifest, _format(request, alias, table.data_format))


def _format(request: ExecuteRequest, alias: str, by_name: DataFormat | None) -> DataFormat:
    asked = request.data_format
    if isinstance(asked, dict):
        asked = asked.get(alias)
    return asked or by_name or "jsonl"
