"""Sources of a notebook's tables: the user's files, URLs, a live Metabase, and data frames of the kernel.

The gateway's own code fetches them, with its retries and limits, so a table is the same as for a job. Compressed files
are decompressed here, because the table is later sent to a gateway as a file.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gateway.client.request import FORMAT_OF_ENDING
from gateway.companion.protocol import LoadTable
from gateway.companion.tables import LoadedTable
from gateway.core.events import Event, Progress
from gateway.core.formats import DEFAULT_FORMAT, FORMATS, PACKED_ENDINGS, DataFormat
from gateway.core.job import FileSource, InputTable, MetabaseSource, Source, UrlSource
from gateway.core.settings import Settings
from gateway.storage.inputs.fetch import fetch_tables
from gateway.storage.inputs.fetched_table import FetchedTable
from gateway.storage.inputs.metabase import find_table
from gateway.storage.objects.client import ObjectClient
from gateway.storage.objects.errors import StorageError
from gateway.storage.objects.target import Target
from gateway.table_files.conversion import ConversionError, converted
from gateway.table_files.unpacking import UnpackingError, unpack

STALL_SECONDS = 30.0
METABASE = "metabase:"
_URL = re.compile(r"https?://", re.IGNORECASE)
_MAGIC = {magic: name for name, facts in FORMATS.items() for magic in facts.magic}


class SourceError(Exception):
    """A table could not be fetched; the text is for the user of the notebook."""


async def fetch_source(request: LoadTable, directory: Path, report: Callable[[int], None]) -> LoadedTable:
    """Fetch a table into an empty directory.

    Parameters
    ----------
    request : LoadTable
        The source of the table.
    directory : Path
        For this table only.
    report : callable
        Called repeatedly with the number of fetched bytes.

    Raises
    ------
    SourceError, JobFailed
        The text names the file, the host or the table, and no secret.
    """
    async with ObjectClient(STALL_SECONDS) as client:
        source, data_format, packed = await _source(client, request)
        manifest = _place(request.manifest) if request.manifest else None
        settings = Settings(state_dir=directory, working_dir_roots=(Path("/"),))
        table = InputTable(request.name, source, manifest, data_format or DEFAULT_FORMAT)
        (fetched,) = await fetch_tables(client, (table,), directory, settings, _Reporter(report))
    return await asyncio.to_thread(_settle, fetched, request, data_format, packed)


def copy_frame(descriptor: int, manifest: dict[str, Any] | None, directory: Path) -> LoadedTable:
    """Copy an Arrow file of the kernel and return it as a table."""
    data_path = directory / "data.arrow"
    with open(descriptor, "rb", closefd=False) as source, data_path.open("xb") as target:
        source.seek(0)
        shutil.copyfileobj(source, target, 1 << 20)
    return LoadedTable(data_path, _write_manifest(manifest, directory), "arrow")


async def _source(client: ObjectClient, request: LoadTable) -> tuple[Source, DataFormat | None, str | None]:
    """Return the source of the data, and its format and compression by its name, if they are known."""
    text = request.source
    if text.startswith(METABASE):
        return await _metabase(client, text.removeprefix(METABASE)), DEFAULT_FORMAT, None
    path = Path(urllib.parse.unquote(urllib.parse.urlsplit(text).path)) if _URL.match(text) else Path(text)
    packed = PACKED_ENDINGS.get(path.suffix.lower())
    ending = (path.with_suffix("") if packed else path).suffix.lower()
    return _place(text), request.data_format or FORMAT_OF_ENDING.get(ending), packed


def _place(text: str) -> Source:
    if _URL.match(text):
        return UrlSource(text)
    try:
        # fetching refuses links, which protects against foreign paths; this path is the user's own
        path = Path(text).expanduser().resolve(strict=True)
    except FileNotFoundError:
        raise SourceError(f"{text}: no such file{_hint(text)}") from None
    except (OSError, RuntimeError) as error:
        raise SourceError(f"{text}: {getattr(error, 'strerror', None) or error}") from None
    if not path.is_file():
        raise SourceError(f"{text}: not a file")
    return FileSource(path)


def _hint(text: str) -> str:
    if ":" in text and not Path(text).is_absolute():
        return "; sources are a file, a URL (http, https), metabase:ID, metabase:NAME, or @variable"
    return "" if text.startswith(("/", "~")) else f" in {Path.cwd()}"


async def _metabase(client: ObjectClient, which: str) -> MetabaseSource:
    url, key = os.environ.get("METABASE_URL", ""), os.environ.get("METABASE_API_KEY", "")
    missing = [name for name, value in (("METABASE_URL", url), ("METABASE_API_KEY", key)) if not value]
    if missing:
        raise SourceError(
            f"{' and '.join(missing)} must be set where Jupyter is started; the notebook never gets the key"
        )
    try:
        Target.parse(url)
    except StorageError as error:
        text = str(error).removeprefix("its URL ")
        raise SourceError(f"METABASE_URL, which is set where Jupyter is started, {text}") from None
    if not which:
        raise SourceError("expected metabase:ID or metabase:NAME")
    try:
        number = int(which) if which.isdecimal() else await find_table(client, url, key, which)
    except StorageError as error:
        raise SourceError(str(error)) from None
    return MetabaseSource(url, key, number)


def _settle(
    fetched: FetchedTable, request: LoadTable, data_format: DataFormat | None, packed: str | None
) -> LoadedTable:
    """Decompress and convert the data and give the files their final names, with the ending of their format."""
    data_path, directory = fetched.data_path, fetched.data_path.parent
    if compression := fetched.compression or packed:
        data_path = _unpacked(data_path, compression, request.source)
    if data_format in (None, "jsonl"):
        try:
            table_path = directory / "converted"
            other = converted(data_path, table_path)
        except ConversionError as error:
            raise SourceError(f"{request.source}: {error}") from None
        if other is not None:
            data_path.unlink()
            data_path, data_format = table_path, other
    found = data_format or (fetched.data_format if fetched.manifest_path else None) or _looked_at(data_path)
    settled = data_path.rename(directory / f"data.{found}")
    manifest_path = fetched.manifest_path
    if manifest_path is not None:
        manifest_path = manifest_path.rename(directory / "manifest.json")
    return LoadedTable(settled, manifest_path, found)


def _unpacked(path: Path, compression: str, source: str) -> Path:
    target = path.with_name("unpacked")
    try:
        unpack(path, compression, target)
    except UnpackingError as error:
        raise SourceError(f"{source}: {error}") from None
    path.unlink()
    return target


def _looked_at(path: Path) -> DataFormat:
    """Return the format of a file by its first bytes."""
    with path.open("rb") as file:
        start = file.read(4096)
    for magic, data_format in _MAGIC.items():
        if start.startswith(magic):
            return data_format
    return "jsonl" if start.lstrip().startswith(b"{") or not start else "csv"


def _write_manifest(manifest: dict[str, Any] | None, directory: Path) -> Path | None:
    if manifest is None:
        return None
    path = directory / "manifest.json"
    path.write_text(json.dumps(manifest))
    return path


class _Reporter:
    """Forwards the progress of a fetch."""

    def __init__(self, report: Callable[[int], None]) -> None:
        self._report = report

    def emit(self, event: Event) -> None:
        if isinstance(event, Progress) and event.bytes is not None:
            self._report(event.bytes)
