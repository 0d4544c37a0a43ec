"""Tables for a notebook: from files of the user's, URLs, a live Metabase, and frames of the kernel itself.

What comes is what a job would be sent: the gateway's own fetching brings it, with its retries and limits. Packed files
are unpacked here, because a table of a notebook goes on to a gateway as a file.
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

from gateway.client import FORMAT_OF_ENDING
from gateway.companion.tables import Table
from gateway.companion.wire import LoadTable
from gateway.jobs.events import Event, Progress
from gateway.jobs.model import DataFormat, FileSource, InputTable, MetabaseSource, Source, UrlSource
from gateway.settings import Settings
from gateway.storage.fetch import FetchedTable, fetch_tables
from gateway.storage.metabase import find_table
from gateway.storage.target import ExchangeError, Target

STALL_SECONDS = 30.0
METABASE = "metabase:"
PACKED_ENDINGS = {".gz": "gzip", ".zst": "zstd"}
_URL = re.compile(r"https?://", re.IGNORECASE)
_MAGIC: dict[bytes, DataFormat] = {b"PAR1": "parquet", b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrow"}


class SourceError(Exception):
    """A table cannot be had; the text is for the person who asked for it."""


async def fetch_source(request: LoadTable, directory: Path, report: Callable[[int], None]) -> Table:
    """Bring a table into an empty directory, readable for the kernel.

    Parameters
    ----------
    request : LoadTable
        What is wanted.
    directory : Path
        Of this table alone.
    report : callable
        Called now and then with the bytes that have come.

    Raises
    ------
    SourceError, JobFailed
        The text names the file, the host or the table, never a secret.
    """
    source, data_format, packed = await _source(request)
    manifest = _place(request.manifest) if request.manifest else None
    settings = Settings(state_dir=directory, working_dir_roots=(Path("/"),), storage_stall_seconds=STALL_SECONDS)
    table = InputTable(request.name, source, manifest, data_format or "jsonl")
    (fetched,) = await fetch_tables((table,), directory, settings, _Reporter(report))
    return await asyncio.to_thread(_settle, fetched, request, data_format, packed)


def copy_frame(descriptor: int, manifest: dict[str, Any] | None, directory: Path) -> Table:
    """Keep an Arrow file of the kernel's as a table."""
    data_path = directory / "data.arrow"
    with open(descriptor, "rb", closefd=False) as source, data_path.open("xb") as target:
        source.seek(0)
        shutil.copyfileobj(source, target, 1 << 20)
    return Table(data_path, _write_manifest(manifest, directory), "arrow")


async def _source(request: LoadTable) -> tuple[Source, DataFormat | None, str | None]:
    """Return where the data is, its format as far as its name tells, and how the name says it is packed."""
    text = request.source
    if text.startswith(METABASE):
        return await _metabase(text.removeprefix(METABASE)), "jsonl", None
    path = Path(urllib.parse.unquote(urllib.parse.urlsplit(text).path)) if _URL.match(text) else Path(text)
    packed = PACKED_ENDINGS.get(path.suffix.lower())
    ending = (path.with_suffix("") if packed else path).suffix.lower()
    return _place(text), request.data_format or FORMAT_OF_ENDING.get(ending), packed


def _place(text: str) -> Source:
    if _URL.match(text):
        return UrlSource(text)
    try:
        # the walk to it refuses links, which is for strangers' paths; this one is the user's own
        path = Path(text).expanduser().resolve(strict=True)
    except FileNotFoundError:
        raise SourceError(f"{text}: no such file{_hint(text)}") from None
    except (OSError, RuntimeError) as error:
        raise SourceError(f"{text}: {getattr(error, 'strerror', None) or error}") from None
    if not path.is_file():
        raise SourceError(f"{text}: is not a file")
    return FileSource(path)


def _hint(text: str) -> str:
    if ":" in text and not Path(text).is_absolute():
        return "; sources are a file, a URL (http, https), metabase:ID, metabase:NAME, or @variable"
    return "" if text.startswith(("/", "~")) else f" in {Path.cwd()}"


async def _metabase(which: str) -> MetabaseSource:
    url, key = os.environ.get("METABASE_URL", ""), os.environ.get("METABASE_API_KEY", "")
    missing = [name for name, value in (("METABASE_URL", url), ("METABASE_API_KEY", key)) if not value]
    if missing:
        raise SourceError(
            f"{' and '.join(missing)} must be set where Jupyter is started; the notebook itself never sees the key"
        )
    try:
        Target.parse(url)
    except ExchangeError as error:
        text = str(error).removeprefix("its URL ")
        raise SourceError(f"METABASE_URL, which is set where Jupyter is started, {text}") from None
    if not which:
        raise SourceError("expected metabase:ID or metabase:NAME")
    try:
        number = int(which) if which.isdecimal() else await find_table(url, key, which, STALL_SECONDS)
    except ExchangeError as error:
        raise SourceError(str(error)) from None
    return MetabaseSource(url, key, number)


def _settle(fetched: FetchedTable, request: LoadTable, data_format: DataFormat | None, packed: str | None) -> Table:
    """Give the files their final names: plain data, with the ending of what it holds."""
    data_path, directory = fetched.data_path, fetched.data_path.parent
    if compression := fetched.compression or packed:
        data_path = _unpacked(data_path, compression, request.source)
    found = data_format or (fetched.data_format if fetched.manifest_path else None) or _looked_at(data_path)
    settled = data_path.rename(directory / f"data.{found}")
    manifest_path = fetched.manifest_path
    if manifest_path is not None:
        manifest_path = manifest_path.rename(directory / "manifest.json")
    return Table(settled, manifest_path, found)


def _unpacked(path: Path, compression: str, source: str) -> Path:
    import pyarrow as pa  # only for packed files

    target = path.with_name("unpacked")
    try:
        with pa.input_stream(str(path), compression=compression) as packed, target.open("xb") as plain:
            while block := packed.read(1 << 20):
                plain.write(block)
    except (pa.ArrowInvalid, OSError) as error:
        raise SourceError(f"{source}: is not valid {compression} ({error})") from None
    path.unlink()
    return target


def _looked_at(path: Path) -> DataFormat:
    """Return the format that the first bytes are of; a name or the caller may not tell."""
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
    """The sink of one fetch."""

    def __init__(self, report: Callable[[int], None]) -> None:
        self._report = report

    def emit(self, event: Event) -> None:
        """Pass on how much has come."""
        if isinstance(event, Progress) and event.bytes is not None:
            self._report(event.bytes)
