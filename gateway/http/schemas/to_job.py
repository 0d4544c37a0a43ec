"""Make a `Job` of a validated request, with the rules that concern several fields."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.core.errors import BadRequest
from gateway.core.formats import DEFAULT_FORMAT, DataFormat
from gateway.core.job import (
    Delivery,
    InputTable,
    Job,
    KeptDelivery,
    LibraryModule,
    UploadSource,
    UrlDelivery,
    UrlSource,
)
from gateway.core.settings import Settings
from gateway.http.schemas.fields import MAX_LABEL_CHARACTERS, module_name
from gateway.http.schemas.requests import ExecuteRequest

#: A docstring begins within so many characters: a script may have 64 MB.
DOCSTRING_CHARACTERS = 4096

_DOCSTRING = re.compile(r"""(?:\s+|#[^\n]*\n)*+[rR]?(\"{3}|'{3})\s*(?P<line>[^\s"'][^\n]*?)\s*(?:\1|\n)""")


@dataclass(frozen=True, slots=True)
class ReceivedTable:
    """A table that was sent as files; `data_format` is by the ending of the file name, if it is known."""

    data: UploadSource | None = None
    manifest: UploadSource | None = None
    data_format: DataFormat | None = None


@dataclass(frozen=True, slots=True)
class Received:
    """The files that were sent with the JSON part of a request."""

    tables: Mapping[str, ReceivedTable] | None = None


def execute_job(request: ExecuteRequest, settings: Settings, received: Received, trace_parent: str | None) -> Job:
    """Return the job that `request` asks for.

    Raises
    ------
    BadRequest
        Fields contradict each other; the text names the one to fix.
    """
    return Job(
        request_id=request.request_id,
        code=request.code,
        timeout_seconds=request.timeout or settings.default_timeout_seconds,
        delivery=_delivery(request),
        library=library_modules(request.library),
        tables=_tables(request, received.tables or {}),
        output_format=request.output_format or DEFAULT_FORMAT,
        form="v1",
        runtime=request.runtime or "python",
        trace_parent=trace_parent,
        hold_seconds=hold_seconds(request.hold_minutes, settings),
        label=request.label or title_of(request.code),
        output_schema=_contract(request.output_schema),
        profile=bool(request.profile),
    )


def title_of(code: str) -> str | None:
    """Return the first line of a script's docstring, the label of a request that has none."""
    found = _DOCSTRING.match(code[:DOCSTRING_CHARACTERS])
    line = found["line"][:MAX_LABEL_CHARACTERS] if found is not None else ""
    return line if line and line.isprintable() else None


def hold_seconds(minutes: float | None, settings: Settings) -> float:
    """Return the seconds to hold a failed job's kernel, by the request or else by the settings."""
    return 60.0 * (settings.hold_failed_minutes if minutes is None else minutes)


def library_modules(library: dict[str, str] | None) -> tuple[LibraryModule, ...]:
    """Return the modules with their names without ``.py``."""
    return tuple(LibraryModule(module_name(name), source) for name, source in (library or {}).items())


def refuse_orphans(manifests: Mapping[str, object], tables: Mapping[str, object]) -> None:
    """Refuse a manifest without a table: its name is misspelt, and it would have no effect.

    Raises
    ------
    BadRequest
        There is no table of the manifest's name.
    """
    for alias in manifests:
        if alias not in tables:
            name = repr(alias[:60])
            raise BadRequest(f"manifest_mapping[{name}]: there is no table of this name", field="manifest_mapping")


def _delivery(request: ExecuteRequest) -> Delivery:
    if request.output_url is None:
        for name in ("output_manifest_url", "events_url"):
            if getattr(request, name) is not None:
                text = f"output_url: required with {name}; leave out all result URLs to keep the result on the gateway"
                raise BadRequest(text, field="output_url")
        return KeptDelivery(inline=bool(request.inline))
    if request.inline:
        raise BadRequest("inline: not allowed with output_url; use one of them", field="inline")
    return UrlDelivery(request.output_url, request.output_manifest_url, request.events_url)


def _contract(schema: dict[str, Any] | None) -> str | None:
    """Return the contract as the kernel reads it, with numbers of any size, which orjson refuses."""
    try:
        return None if schema is None else json.dumps(schema)
    except RecursionError:
        raise BadRequest("output_schema: it is nested too deeply", field="output_schema") from None


def _tables(request: ExecuteRequest, received: Mapping[str, ReceivedTable]) -> tuple[InputTable, ...]:
    urls, manifests = request.table_mapping or {}, request.manifest_mapping or {}
    refuse_orphans(manifests, {**urls, **received})
    tables = []
    for alias, url in urls.items():
        if alias in received:
            name = repr(alias[:60])
            raise BadRequest(f"table_mapping[{name}]: this table was also sent as a file", field="table_mapping")
        manifest = UrlSource(manifests[alias]) if alias in manifests else None
        tables.append(InputTable(alias, UrlSource(url), manifest, _format(request, alias, None)))
    for alias, table in received.items():
        tables.append(_received_table(request, alias, table))
    return tuple(tables)


def _received_table(request: ExecuteRequest, alias: str, table: ReceivedTable) -> InputTable:
    if table.data is None:
        raise BadRequest(f"the part manifest:{alias[:60]} needs a part table:{alias[:60]}", field="multipart")
    url = (request.manifest_mapping or {}).get(alias)
    manifest = table.manifest or (UrlSource(url) if url else None)
    return InputTable(alias, table.data, manifest, _format(request, alias, table.data_format))


def _format(request: ExecuteRequest, alias: str, by_name: DataFormat | None) -> DataFormat:
    asked = request.data_format
    if isinstance(asked, dict):
        asked = asked.get(alias)
    return asked or by_name or DEFAULT_FORMAT
